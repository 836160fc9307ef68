from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from everloop.stores import collect_observations, observe


def test_observing_outside_a_collector_does_nothing() -> None:
    observe("files", {"path": "a"}, "1")


def test_distinct_observations_are_collected_in_order() -> None:
    with collect_observations() as seen:
        observe("files", {"path": "b"}, "1")
        observe("files", {"path": "a"}, "1")
        observe("files", {"path": "b"}, "1")
        observe("files", {"path": "b"}, "2")
    observe("files", {"path": "c"}, "1")
    assert seen == [
        {"kind": "files", "spec": {"path": "b"}, "state": "1"},
        {"kind": "files", "spec": {"path": "a"}, "state": "1"},
        {"kind": "files", "spec": {"path": "b"}, "state": "2"},
    ]


def test_collectors_nest() -> None:
    with collect_observations() as outer:
        observe("x", {}, "1")
        with collect_observations() as inner:
            observe("x", {}, "2")
        observe("x", {}, "3")
    assert [one["state"] for one in outer] == ["1", "3"]
    assert [one["state"] for one in inner] == ["2"]


def test_another_thread_is_outside() -> None:
    with collect_observations() as seen, ThreadPoolExecutor(1) as pool:
        pool.submit(observe, "x", {}, "1").result()
    assert seen == []
