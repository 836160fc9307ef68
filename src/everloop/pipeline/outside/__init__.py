"""Outside state that a step reads: tracked while it runs, recorded, and compared before a cached result is used."""
