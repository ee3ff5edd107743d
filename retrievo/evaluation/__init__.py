"""Layer 2: metrics, significance, reports."""
