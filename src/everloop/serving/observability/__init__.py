"""An endpoint's metrics (summed over its worker processes), access log and traces."""
