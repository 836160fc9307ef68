"""Releases: how a candidate takes the traffic, step by step, or loses it."""
