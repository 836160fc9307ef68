"""Object storage: bytes by key in local folders and buckets, and content-addressed objects and folders above them."""
