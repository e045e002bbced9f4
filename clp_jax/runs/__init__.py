"""What happens to a MODEL_DIR: training, checkpoints, restoring, generation, export."""
