"""Detection and masking of secrets in the records of runs."""
