"""What gin files and command lines configure."""
