"""Layer 2: texts to vectors."""
