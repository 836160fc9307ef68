"""Quality of live data and of the service: contract, volume, freshness, latency, errors, duplicates."""
