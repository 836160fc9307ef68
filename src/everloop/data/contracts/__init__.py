"""Data contracts: descriptions of a table that are inferred once, edited by people, and checked on every new table."""
