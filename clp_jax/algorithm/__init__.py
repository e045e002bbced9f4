"""The paper as pure functions of pytrees: (α, w), S, conditioning, Algorithm 1."""
