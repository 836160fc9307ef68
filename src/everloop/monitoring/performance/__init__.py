"""Performance of a model on live data: measured from labels, or estimated before they arrive."""
