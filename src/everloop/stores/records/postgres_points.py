"""Points in PostgreSQL's binary format of COPY, which the server reads without parsing texts.

Format: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS, "Binary Format".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

POINTS = b"COPY points (metric, step, at, written_at, value, crc) FROM STDIN (FORMAT binary)"

_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
# The number of columns; then each value behind its length in bytes, which is -1 for NULL.
_ROW = struct.Struct(">hiqiqiqiqidiq")
_ROW_WITHOUT_VALUE = struct.Struct(">hiqiqiqiqiiq")


def packed_points(rows: Sequence[Sequence[Any]]) -> bytes | None:
    """The rows of the table of points (metric, step, at, written_at, value, crc) for COPY.

    Returns:
        None if a number does not fit its column, so that an INSERT can raise a better error.
    """
    row, without = _ROW.pack, _ROW_WITHOUT_VALUE.pack
    try:
        return b"".join(
            (
                _HEAD,
                *(
                    row(6, 8, metric, 8, step, 8, at, 8, written, 8, value, 8, crc)
                    if value is not None
                    else without(6, 8, metric, 8, step, 8, at, 8, written, -1, 8, crc)
                    for metric, step, at, written, value, crc in rows
                ),
                _END,
            )
        )
    except struct.error:
        return None
