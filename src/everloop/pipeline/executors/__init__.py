"""Where steps run: in this process or in a warm pool of others."""

from everloop.pipeline.executors.executor import Executor

__all__ = ["Executor"]
