"""Layer 5: gradient step, training loop, checkpoints."""
