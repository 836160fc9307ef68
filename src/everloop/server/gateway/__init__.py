"""Gateway: forwards requests for endpoints, so that each has one stable URL whatever the port of its process."""
