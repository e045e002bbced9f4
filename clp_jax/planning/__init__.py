"""What a run needs of a TPU slice, found by compiling for it without having it."""
