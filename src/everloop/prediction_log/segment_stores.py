"""Opens the segment store at a location: a folder, a bucket or PostgreSQL."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, UsageError
from everloop.prediction_log.segments import BUCKETS, PLACES_HELP, PUT_TIMEOUT_S, ObjectSegments, is_url
from everloop.stores.objects.byte_stores import ObstoreBytes, open_bytes

if TYPE_CHECKING:
    from everloop.prediction_log.segments import SegmentStore


@lru_cache(maxsize=16)
def open_segments(where: str) -> SegmentStore:
    """Open the segments in a folder, at a bucket's URL or at a PostgreSQL URL, without connecting yet.

    Raises:
        UsageError: the URL does not name such a store.
        MissingExtraError: the library for it is not installed.
    """
    scheme = where.partition("://")[0] if is_url(where) else ""
    if scheme in ("postgresql", "postgres"):
        from everloop.prediction_log.segments_postgres import PostgresSegments

        return PostgresSegments(where)
    if scheme in ("", "file"):
        return ObjectSegments(open_bytes(where))
    if scheme not in BUCKETS:
        raise UsageError(f"Cannot keep a log at '{scheme}://…'.", help=PLACES_HELP)
    try:
        return ObjectSegments(ObstoreBytes(where, **_time_limits()))
    except EverloopError:
        raise
    except Exception as error:
        # Neither the URL nor the library's message is quoted, because either may contain a password.
        raise UsageError(
            f"Cannot keep the log at '{scheme}://…': this URL, or its provider's settings, cannot be used "
            f"({type(error).__name__}).",
            help=PLACES_HELP,
        ) from error


def _time_limits() -> dict[str, object]:
    """Time limits for requests. By default obstore retries for three minutes, but a stopping container has less."""
    limit = timedelta(seconds=PUT_TIMEOUT_S)
    # Passed options replace those of the environment, which a test server without TLS needs.
    plain = any(os.environ.get(f"{of}_ALLOW_HTTP", "").lower() in ("1", "true") for of in ("AWS", "AZURE", "GOOGLE"))
    return {
        "retry_config": {"max_retries": 3, "retry_timeout": limit},
        "client_options": {"timeout": limit, "connect_timeout": limit / 2, "allow_http": plain},
    }
