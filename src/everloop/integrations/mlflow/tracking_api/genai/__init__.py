"""Traces, assessments, scorers and evaluation datasets of language programs."""
