"""Layer 3: losses, distributed collectives, optimizers, samplers."""
