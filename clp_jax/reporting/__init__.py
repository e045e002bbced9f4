"""What is said to people: errors, the console, logs of metrics."""
