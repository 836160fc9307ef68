"""Executors: run steps in this process or in a warm pool of worker processes."""

from everloop.pipeline.executors.executor import Executor

__all__ = ["Executor"]
