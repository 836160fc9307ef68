"""Models of other libraries as `Model`: how each is saved to files, loaded, and used for prediction."""
