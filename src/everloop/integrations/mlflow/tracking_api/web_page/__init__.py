"""What only MLflow's own page asks, and the page itself."""
