"""Kubeflow Pipelines: run their compiled pipelines as local processes, and compile loops to them."""
