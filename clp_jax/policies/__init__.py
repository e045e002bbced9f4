"""Steerable policies: a weighting in, completions out; CLP and what it is compared with."""
