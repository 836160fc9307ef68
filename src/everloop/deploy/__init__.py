"""Model versions on other platforms: container images and Azure ML."""
