"""MLflow compatibility without MLflow: its tracking API, its model folders, and import of its runs."""
