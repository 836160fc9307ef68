"""Records, points and events: one protocol over SQLite and PostgreSQL, and one query tree for searches."""
