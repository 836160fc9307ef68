"""MLflow's web page, and the routes that only this page uses."""
