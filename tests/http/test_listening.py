"""Sockets: their URLs, and who can reach them."""

from __future__ import annotations

import socket

import pytest

from everloop.errors import ConflictError
from everloop.http.host_names import is_loopback
from everloop.http.listening import bind, is_public, url_of


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("127.0.0.2", True), ("0.0.0.0", False)])
def test_who_can_reach_a_socket(host: str, local: bool) -> None:
    with bind(host, 0) as bound:
        assert is_public(bound) is not local
        assert is_loopback(host) is local
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        bound.listen()
        with socket.create_connection(("127.0.0.1" if not local else host, port)):
            pass


@pytest.mark.parametrize(("name", "local"), [("localhost", True), ("::1", True), ("::", False), ("lan.example", False)])
def test_loopback_names(name: str, local: bool) -> None:
    assert is_loopback(name) is local


def test_a_shared_port_is_shared_with_those_who_share_it() -> None:
    with bind("127.0.0.1", 0, shared=True) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        for shared in (False, True):
            with pytest.raises(ConflictError, match=f"Port {port}"):
                bind("127.0.0.1", port, shared=shared)
