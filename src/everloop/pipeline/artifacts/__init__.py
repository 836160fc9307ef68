"""How values that steps return are stored: one module per format, chosen through the plugin table."""

from everloop.pipeline.artifacts.artifact_formats import ArtifactFormat, Stored, UnkeepableError, keep_value, load_value

__all__ = ["ArtifactFormat", "Stored", "UnkeepableError", "keep_value", "load_value"]
