"""Finding and masking secrets in what a run records about itself."""
