"""Incidents: what a person is shown. They are opened once, joined, updated, acknowledged and resolved."""
