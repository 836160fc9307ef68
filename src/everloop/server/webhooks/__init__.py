"""Webhooks: events sent to external URLs, signed and retried, and never to an internal address."""
