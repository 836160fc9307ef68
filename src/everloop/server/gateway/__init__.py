"""Endpoints behind the control plane's own port: one stable address for each, whatever port its process has."""
