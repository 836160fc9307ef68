"""MLflow's model folders, read and written without MLflow."""
