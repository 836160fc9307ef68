"""What a table must look like: inferred once, edited by people, checked on every new table."""
