"""Sources: files, URLs, queries and Python generators read as Polars frames."""
