"""Forks of a store: copy-on-write records, objects and tables over a read-only view of another store."""
