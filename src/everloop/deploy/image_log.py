"""The prediction log of an image: opened before anything is served, and what is left of it when the container stops."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, UnavailableError
from everloop.prediction_log.log_sinks import VARIABLE, choose_log_url, log_of, make_own_folder
from everloop.prediction_log.segment_stores import open_segments
from everloop.prediction_log.segments import shown
from everloop.prediction_log.shipping import bytes_left, ship_leftovers

if TYPE_CHECKING:
    from everloop.prediction_log.log_sinks import ShippingOptions


def open_log(given: str | None) -> ShippingOptions | None:
    """Have the log's place in the environment, where all processes of this container look, and say what it is.

    Raises:
        UsageError: there is none, or one that cannot be used.
        UnavailableError: it does not answer, or does not let us write.
    """
    os.environ[VARIABLE] = choose_log_url(os.environ, given)
    log = log_of(os.environ)
    if log is None or isinstance(log, str):
        sys.stderr.write("everloop log: none. No answer is written down, and every answer says so (X-Everloop-Log).\n")
        return None
    make_own_folder(log.folder)
    open_segments(log.where).check()
    wait = f"the local journal in {log.folder}" if log.durable == "local" else "the store"
    sys.stderr.write(f"everloop log: {shown(log.where)}. An answer leaves when {wait} has it.\n")
    if log.durable == "local":
        sys.stderr.write(
            f"everloop log: if {log.folder} is not on a mounted volume, the answers of the last {log.segment_s:g} s are"
            " lost with the container's disk. EVERLOOP_LOG_DURABLE=store waits for the store instead.\n"
        )
    return log


def ship_rest(log: ShippingOptions, *, again: bool) -> None:
    """Say what is left of the log.

    Args:
        again: try to ship it first: some of it may be of workers that were killed.

    Raises:
        UnavailableError: something is left that the store does not have.
    """
    left = bytes_left(log.folder)
    if left and again:
        try:
            for spool in sorted(log.folder.iterdir()):
                ship_leftovers(open_segments(log.where), spool)
        except (EverloopError, OSError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        left = bytes_left(log.folder)
    if left:
        raise UnavailableError(
            f"{left} bytes of the log have not reached {shown(log.where)}.",
            help=f"They are in {log.folder}: the next container that has this folder ships them.",
        )


__all__ = ["open_log", "ship_rest"]
