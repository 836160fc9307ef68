"""Create a project for a user's own table: inspect its columns and draft a `loop.py` for them."""
