"""Rewards R_i(x, y): stack (`base`), names (`registry`), ROUGE (`rouge`); paper, App. B."""
