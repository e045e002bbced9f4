"""The machine a run is on: hosts, preemption, accelerators, memory."""
