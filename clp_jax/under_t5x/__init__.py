"""CLP under the unmodified t5x, which is imported here and nowhere else."""
