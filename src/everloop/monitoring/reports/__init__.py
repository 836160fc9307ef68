"""Reports of monitoring for people: tables and HTML."""
