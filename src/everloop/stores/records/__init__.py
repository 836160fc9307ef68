"""The database of records, metric points and events: one protocol, implemented for SQLite and PostgreSQL."""
