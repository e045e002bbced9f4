"""T5 in Flax linen, sampling from it with a key-value cache, and its value head."""
