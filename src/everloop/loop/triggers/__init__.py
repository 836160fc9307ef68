"""Triggers: when a loop runs again."""
