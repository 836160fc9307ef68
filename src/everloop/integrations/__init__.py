"""Integrations with other systems, one folder each. They are loaded through `everloop.plugins` only."""
