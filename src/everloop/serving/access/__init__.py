"""Controls who may call an endpoint: tokens and rate limits, reloaded while it serves."""
