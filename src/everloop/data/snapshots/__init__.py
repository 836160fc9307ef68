"""Immutable dataset versions: Parquet files by digest, their statistics and differences."""
