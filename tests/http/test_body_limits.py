"""Bodies: what is packed is unpacked once, and never beyond the limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from everloop.http.body_limits import BodyError, declared_length, unpacked

BODY = b'{"rows": [1, 2, 3]}' * 100


def packed(body: bytes) -> bytes:
    """Without the time in it: every process of a test run must name its tests alike."""
    return gzip.compress(body, mtime=0)


def bare(body: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(body) + packing.flush()


def test_what_clients_pack_is_unpacked() -> None:
    for encoding, body in (
        ("", BODY), ("identity", BODY), ("gzip", packed(BODY)), ("x-gzip", packed(BODY)),
        ("GZIP ", packed(BODY)), ("deflate", zlib.compress(BODY)), ("deflate", bare(BODY)),
    ):  # fmt: skip
        assert unpacked(encoding, body, 1 << 20) == BODY, encoding
    assert unpacked("gzip", packed(BODY), len(BODY)) == BODY


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", packed(BODY), 413),
        ("br", b"x", 415),
        ("zstd", b"x", 415),
        ("gzip, gzip", packed(packed(b"")), 415),
        ("gzip,identity", packed(b""), 415),
        ("gzip\x00", packed(b""), 415),
        ("gzip", b"", 400),
        ("gzip", b"{}", 400),
        ("gzip", packed(b"12345678" * 9)[:-9], 400),
        ("gzip", packed(b"a") + b"more", 400),
        ("gzip", packed(b"a") * 2, 400),
        ("deflate", b"\xff\xff\xff", 400),
        ("deflate", b"", 400),
    ],
)
def test_what_is_not_taken(encoding: str, body: bytes, status: int) -> None:
    with pytest.raises(BodyError) as refused:
        unpacked(encoding, body, 100)
    assert refused.value.status_code == status


@pytest.mark.slow
def test_a_bomb_is_not_unpacked() -> None:
    bomb = packed(b"\0" * (100 << 20))
    tracemalloc.start()
    with pytest.raises(BodyError, match="longer than 1000000"):
        unpacked("gzip", bomb, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_announced_lengths() -> None:
    assert declared_length([(b"content-length", b"12")]) == 12
    assert [declared_length([(b"content-length", value)]) for value in (b"", b"-1", b"x", b"9" * 5000)] == [None] * 4
