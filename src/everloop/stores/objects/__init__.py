"""Bytes by key and by content: local folders and buckets, SHA-256 addresses, folders as manifests."""
