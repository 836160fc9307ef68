"""Pickling of steps and jobs for other processes: by reference to their modules, or with the code itself."""

from __future__ import annotations

import pickle
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from everloop.errors import StepError
from everloop.pipeline.steps import by_value as modules_by_value

if TYPE_CHECKING:
    from everloop.pipeline.job import Job


def pickle_for_worker(value: object, job: Job, *, by_value: bool) -> bytes:
    """Pickle a job or its step.

    Args:
        by_value: pickle the code of the project's modules itself instead of its names, for a process that has other
            code under those names.

    Raises:
        StepError: something in it cannot be pickled.
    """
    import cloudpickle

    with ExitStack() as stack:
        if by_value:
            token = modules_by_value.set(frozenset(job.modules))
            stack.callback(modules_by_value.reset, token)
            for name in job.modules:
                cloudpickle.register_pickle_by_value(sys.modules[name])
                stack.callback(cloudpickle.unregister_pickle_by_value, sys.modules[name])
        try:
            data: bytes = cloudpickle.dumps(value)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise StepError(
                f"Step '{job.name}' cannot be sent to a worker: {error}.",
                help="Its function or its parameters hold something that cannot be pickled. "
                'Run it with executor="inline" and without timeout_s.',
            ) from error
    return data
