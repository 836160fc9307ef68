"""Webhooks: events sent to URLs outside, signed, retried, and never to an internal address."""
