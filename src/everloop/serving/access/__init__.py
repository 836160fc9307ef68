"""Who may call an endpoint: tokens and their limits, reloaded while it serves."""
