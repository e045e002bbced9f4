"""clp-jax: steerable multi-objective finetuning with Conditional Language Policy."""
