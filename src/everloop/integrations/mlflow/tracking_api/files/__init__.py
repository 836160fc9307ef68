"""Clients' files: the folders and buckets that keep them, and how they come and go."""
