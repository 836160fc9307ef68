"""Tables that grow (Delta), their checks, and frames of other libraries as Polars frames."""
