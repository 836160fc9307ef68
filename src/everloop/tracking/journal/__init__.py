"""A run's journal: written by the training process, uploaded, ingested and folded into the store exactly once."""
