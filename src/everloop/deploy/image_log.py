"""The prediction log of an image: open it before serving, ship the rest of it when the container stops."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, UnavailableError
from everloop.prediction_log.log_sinks import VARIABLE, choose_log_url, log_of, make_own_folder
from everloop.prediction_log.segment_stores import open_segments
from everloop.prediction_log.segments import shown
from everloop.prediction_log.shipping import bytes_left, ship_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.prediction_log.log_sinks import ShippingOptions


def open_log(url: str | None, report: Callable[[str], None]) -> ShippingOptions | None:
    """Check that the prediction log can be written, and put its URL into the environment for all worker processes.

    Args:
        url: the log's URL, or `none`; None takes the environment's.
        report: receives each line about the log, with its line break.

    Returns:
        How predictions are shipped; None if nothing is logged.

    Raises:
        UsageError: no log is configured, or its settings are invalid.
        UnavailableError: the log's store does not respond or is not writable.
    """
    os.environ[VARIABLE] = choose_log_url(os.environ, url)
    log = log_of(os.environ)
    if log is None or isinstance(log, str):
        report("everloop log: none. Predictions are not logged; every response says so in X-Everloop-Log.\n")
        return None
    make_own_folder(log.folder)
    open_segments(log.where).check()
    journal = f"the local journal in {log.folder}" if log.durable == "local" else "the store"
    report(f"everloop log: {shown(log.where)}. A response is sent once {journal} has it.\n")
    if log.durable == "local":
        report(
            f"everloop log: if {log.folder} is not on a mounted volume, the predictions of the last {log.segment_s:g} s"
            " can be lost with the container's disk. Set EVERLOOP_LOG_DURABLE=store to wait for the store instead.\n"
        )
    return log


def ship_rest(log: ShippingOptions, report: Callable[[str], None], *, again: bool) -> None:
    """Check that the whole log has reached its store.

    Args:
        report: receives each line about a problem, with its line break.
        again: ship the rest first; killed workers may have left some.

    Raises:
        UnavailableError: part of the log has not reached the store.
    """
    left = bytes_left(log.folder)
    if left and again:
        try:
            for spool in sorted(log.folder.iterdir()):
                ship_leftovers(open_segments(log.where), spool)
        except (EverloopError, OSError) as error:
            report(f"{type(error).__name__}: {error}\n")
        left = bytes_left(log.folder)
    if left:
        raise UnavailableError(
            f"{left} bytes of the log have not reached {shown(log.where)}.",
            help=f"They are in {log.folder}. Start another container with this folder, and it ships them.",
        )


__all__ = ["open_log", "ship_rest"]
