"""Profiles of tables: distributions, possible leakage, and shifts between versions."""
