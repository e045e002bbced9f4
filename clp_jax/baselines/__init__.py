"""What conditional language policies are compared with; each is steered as they are."""
