"""How the values that steps return are kept: one file per format, chosen by the plugin table."""

from everloop.pipeline.artifacts.artifact_formats import ArtifactFormat, Stored, UnkeepableError, keep_value, load_value

__all__ = ["ArtifactFormat", "Stored", "UnkeepableError", "keep_value", "load_value"]
