"""Other people's systems, one folder each. They are reached through `everloop.plugins`, never by name."""
