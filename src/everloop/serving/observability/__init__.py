"""An endpoint's metrics, summed over its worker processes, and its access log and traces."""
