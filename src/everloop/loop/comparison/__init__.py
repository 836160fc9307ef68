"""Compare two versions of a model whose columns or classes may differ."""
