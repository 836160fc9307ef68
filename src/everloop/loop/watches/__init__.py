"""Watches: what is checked in every window of an endpoint."""
