"""A step's code: what it depends on, and a digest that changes only when its behaviour may change."""
