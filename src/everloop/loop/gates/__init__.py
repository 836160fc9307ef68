"""Gates: what a candidate must pass before it gets traffic."""
