"""Executors: run steps in this process, in a warm pool of worker processes, or on a Ray cluster."""

from everloop.pipeline.executors.executor import Executor

__all__ = ["Executor"]
