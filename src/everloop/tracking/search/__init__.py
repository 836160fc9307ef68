"""Searching and comparing runs."""
