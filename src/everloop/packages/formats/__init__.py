"""Other libraries' models as `Model`: how each is kept in files, read back and asked."""
