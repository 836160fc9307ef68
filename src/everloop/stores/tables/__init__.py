"""Append-only Delta tables, checking their files, and converting data frames of other libraries to Polars."""
