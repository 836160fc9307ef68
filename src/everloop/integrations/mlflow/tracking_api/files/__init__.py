"""Artifact files: the folders and buckets that store them, and uploads and downloads."""
