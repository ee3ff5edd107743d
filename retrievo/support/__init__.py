"""Layer 0: errors, options, console, files. Knows nothing about retrieval."""
