"""Layer 4: how rows become vectors and vectors become a loss."""
