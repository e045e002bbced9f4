"""Sec. 6 and App. E in numbers: problems small enough to be solved exactly."""
