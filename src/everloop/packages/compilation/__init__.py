"""A faster form of a packaged model, which answers only where it has been proved equal to the original."""
