"""Compile a packaged model to a faster form, which is used only if it has been proved equal to the original."""
