"""CLP under the unmodified t5x, which is imported here and, on call, by `clp_jax.t5x_driver`."""
