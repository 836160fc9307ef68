"""Profiles of tables: figures, leakage and shifts between versions."""
