"""Training of reward models, and what they are worth on held-out examples."""
