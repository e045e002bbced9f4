"""Comparisons that are too large for the tests, each with the commands that make it."""
