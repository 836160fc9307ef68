from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from everloop.errors import UsageError
from everloop.records import Route
from everloop.serving.routing import RoutingTable, position_of


def table(*percents: float, endpoint: str = "delays") -> RoutingTable:
    """Canaries with these percents and a champion with the rest."""
    canaries = [Route(version=f"m@{number}", percent=percent, role="canary") for number, percent in enumerate(percents)]
    return RoutingTable(endpoint, [Route(version="m@9", percent=100 - sum(percents)), *canaries])


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_a_growing_canary_keeps_whom_it_has(key: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if table(small).pick(key) == 0:
        assert table(large).pick(key) == 0


@given(st.text(), st.lists(st.floats(0, 33), max_size=3))
def test_a_key_always_meets_the_same_version(key: str, percents: list[float]) -> None:
    first, second = table(*percents), table(*percents)
    assert first.pick(key) == second.pick(key)
    assert 0 <= position_of("delays", key) < 100


def test_shares_are_what_was_asked_for() -> None:
    split = table(10, 30)
    picked = [split.pick(f"key-{number}") for number in range(20_000)]
    assert picked.count(0) == pytest.approx(2000, rel=0.1)
    assert picked.count(1) == pytest.approx(6000, rel=0.05)
    assert picked.count(split.champion) == pytest.approx(12_000, rel=0.05)


def test_endpoints_split_anew() -> None:
    keys = [f"key-{number}" for number in range(1000)]
    one, other = table(50), table(50, endpoint="other")
    same = sum(one.pick(key) == other.pick(key) for key in keys)
    assert 400 < same < 600


@pytest.mark.parametrize("percents", [(0,), (100,), (0, 100), (50, 50)])
def test_ends_of_the_scale(percents: tuple[float, ...]) -> None:
    split = table(*percents)
    picked = {split.pick(f"key-{number}") for number in range(500)}
    expected = {place for place, percent in enumerate((*percents, 100 - sum(percents))) if percent}
    assert picked == expected


def test_shadows_answer_nobody() -> None:
    routes = [Route(version="m@1", percent=100), Route(version="m@2", percent=100, role="shadow")]
    split = RoutingTable("delays", routes)
    assert split.single
    assert [shadow.version for shadow in split.shadows] == ["m@2"]
    assert split.answering[split.pick("x")].version == "m@1"


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        ([], "needs exactly one champion; it has: none"),
        ([Route(version="m@1", percent=50), Route(version="m@2", percent=50)], "m@1, m@2"),
        ([Route(version="m@1", percent=60)], "60 percent"),
        ([Route(version="m@1", percent=120), Route(version="m@2", percent=-20, role="canary")], "cannot take"),
        ([Route(version="m@1", percent=100), Route(version="m@2", percent=10, role="canary")], "110 percent"),
        ([Route(version="m@1", percent=float("nan"))], "cannot take"),
    ],
)
def test_routes_that_make_no_table(routes: list[Route], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        RoutingTable("delays", routes)
