"""A new project for a user's own table: what each column is, and the `loop.py` that follows from it."""
