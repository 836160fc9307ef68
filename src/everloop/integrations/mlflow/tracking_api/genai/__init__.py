"""Routes for generative AI: traces, assessments, scorers and evaluation datasets."""
