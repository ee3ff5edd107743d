"""Layer 2: models that turn texts into vectors and scores."""
