"""State outside a step that it reads: noticed while it runs, recorded, and compared before a cached result is used."""
