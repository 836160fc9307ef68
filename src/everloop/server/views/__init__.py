"""What the pages of the web page show, read from the records with a few queries each."""
