"""Opens the log sink that the environment configures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from everloop.prediction_log.log_sinks import JournalSink, NoSink, log_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.stores import Store


def open_sink(store: Store, stream: str, environment: Mapping[str, str] = os.environ) -> LogSink:
    """Open the sink that the environment configures.

    Raises:
        UsageError: the environment has an impossible value.
    """
    found = log_of(environment)
    if found is None:
        return JournalSink(store.journals, stream)
    if isinstance(found, str):
        return NoSink()
    from everloop.prediction_log.shipping import ShippingSink

    return ShippingSink(found, stream)
