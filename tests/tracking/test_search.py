from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import EverloopError, UsageError
from everloop.records import Run
from everloop.stores import Store, open_store
from everloop.tracking import start_run
from everloop.tracking.search.run_filters import And, Compare, Expression, Not, Or, field_path, matches, parse_filter
from everloop.tracking.search.run_search import aggregate_children, count_runs, search_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def test_the_example_reads_as_it_stands() -> None:
    text = 'metrics.auc > 0.9 and (params.lr < 0.01 or tags.team in ("a","b")) and not archived'
    assert parse_filter(text) == And(
        (
            Compare(("metrics", "auc"), ">", 0.9),
            Or((Compare(("params", "lr"), "<", 0.01), Compare(("tags", "team"), "in", ("a", "b")))),
            Not(Compare(("archived_at",), "is not null")),
        )
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", And(())),
        ('name == "a"', Compare(("name",), "=", "a")),
        ("name = 'it\\'s'", Compare(("name",), "=", "it's")),
        ('metrics."a b" >= -1e-5', Compare(("metrics", "a b"), ">=", -1e-5)),
        ('metrics.`a "b` < inf', Compare(("metrics", 'a "b'), "<", math.inf)),
        ("metrics.val/auc.1<3", Compare(("metrics", "val/auc.1"), "<", 3)),
        ("param.x not in (1, 'a',)", Compare(("params", "x"), "not in", (1, "a"))),
        ("params.x in ()", Compare(("params", "x"), "in", ())),
        ("name NOT ILIKE '%x_'", Compare(("name",), "not ilike", "%x_")),
        ("loop is null", Compare(("loop",), "is null")),
        ("loop IS NOT NULL", Compare(("loop",), "is not null")),
        ("loop != null", Compare(("loop",), "is not null")),
        ("params.on = true", Compare(("params", "on"), "=", True)),
        ("archived = false", Compare(("archived_at",), "is null")),
        ("archived != true", Compare(("archived_at",), "is null")),
        ("seconds > 2h", Compare(("seconds",), ">", 7200.0)),
        ('started_at > "7d"', Compare(("started_at",), ">", NOW - timedelta(days=7))),
        ('started_at > "12h ago"', Compare(("started_at",), ">", NOW - timedelta(hours=12))),
        ("started_at > 1d12h", Compare(("started_at",), ">", NOW - timedelta(hours=36))),
        ('ended_at <= "2026-03-01"', Compare(("ended_at",), "<=", datetime(2026, 3, 1, tzinfo=UTC))),
        (
            'ended_at = "2026-03-01T12:00+02:00"',
            Compare(("ended_at",), "=", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ),
        (
            "not name = 'a' and loop = 'b' or id = 'c'",
            Or((And((Not(Compare(("name",), "=", "a")), Compare(("loop",), "=", "b"))), Compare(("id",), "=", "c"))),
        ),
        ("status = 'failed'", Compare(("state",), "=", "failed")),
    ],
)
def test_texts_and_their_trees(text: str, expected: Expression) -> None:
    assert parse_filter(text, now=NOW) == expected


@pytest.mark.parametrize(
    ("text", "at", "word"),
    [
        ("metrcs.auc > 1", 1, "Did you mean 'metrics'"),
        ("name = 'a' and stat = 'b'", 16, "Did you mean 'state'"),
        ("metrics.auc >", 14, "the end"),
        ("(name = 'a'", 12, r"'\)' is expected"),
        ("name = 'a')", 11, "not expected"),
        ("name = abc", 8, "'abc'"),
        ("name ~ 'a'", 6, "cannot be read"),
        ("name = 'a", 8, "cannot be read"),
        ("metrics > 1", 1, "is not the name of a single value"),
        ("started_at > 'soon'", 14, "is not a time"),
        ("name in 'a'", 9, "expected"),
        ("name like 1", 11, "a string is expected"),
        ("archived > 1", 12, "true or false"),
        ("name 'a'", 6, "a comparison is expected"),
        ("and", 1, "a field is expected"),
        ("name < null", 12, "no order"),
        ("name is 3", 9, "null is expected"),
        ("(" * 200 + "name = 'a'", 101, "too deep"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_the_place(text: str, at: int, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        parse_filter(text, now=NOW)
    assert f"at character {at}:" in caught.value.message


@given(
    st.text(
        alphabet="metrics.auc params name and or not in is null like ()\"'`<>=!,0123456789.eE-+dh\\\x00é", max_size=60
    )
)
@settings(max_examples=300, deadline=None)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        parse_filter(text, now=NOW)
    except EverloopError as error:
        assert isinstance(error, UsageError)  # noqa: PT017


def test_field_paths() -> None:
    assert field_path("metrics.`a b`") == ("metrics", "a b")
    assert field_path("tags.a.b") == ("tags", "a.b")
    with pytest.raises(UsageError, match="Did you mean 'started_at'"):
        field_path("startd_at")


def test_the_tree_serves_without_a_store() -> None:
    held: dict[tuple[str, ...], tuple[float | None, str | None]] = {
        ("name",): (None, "Ab"),
        ("params", "x"): (3.0, "3"),
    }
    for text, expected in (
        ("name = 'Ab' and params.x > 2", True),
        ("name ilike 'a%' and name not like 'a%'", True),
        ("params.x = '3' and params.x = 3", True),
        ("params.y != 1 and not params.y = 1 and params.y is null", True),
        ("params.y < 1 or params.y >= 1", False),
    ):
        assert matches(parse_filter(text), held.get) is expected, text


@pytest.fixture
def filled(store: Store) -> Store:
    other = store.for_project("other")
    for number in range(30):
        home = store if number % 3 else other
        home.records.put(
            home.new(
                Run,
                name=f"run {number:02}",
                state="finished" if number % 2 else "failed",
                started_at=NOW + timedelta(hours=number),
                params={"lr": 10.0 ** -(number % 4), "kind": "ab"[number % 2]},
                tags={"team": "xyz"[number % 3]},
                metrics={"auc": (number * 7 % 30) / 30} if number % 5 else {},
            )
        )
    return store


def _walk(store: Store, size: int, **asked: Any) -> list[Any]:
    found: list[Any] = []
    after = None
    while True:
        page = search_runs(store, limit=size, after=after, **asked)
        found += page.rows
        after = page.next
        if after is None:
            return found


@pytest.mark.parametrize("order", [["-started_at"], ["-metrics.auc"], ["params.lr", "-metrics.auc"], ["-project", "name"], ["name", "project"]])  # fmt: skip # noqa: E501
@pytest.mark.parametrize("projects", [None, ["default", "other"], ["other"]])
def test_pages_together_are_the_whole(filled: Store, order: list[str], projects: Sequence[str] | None) -> None:
    asked: dict[str, Any] = {
        "order_by": order,
        "projects": projects,
        "where": 'state = "finished" or metrics.auc > 0.2',
    }
    whole = search_runs(filled, **asked).rows
    assert len(whole) == count_runs(filled, asked["where"], projects=projects)
    for size in (1, 4, 50):
        assert _walk(filled, size, **asked) == whole
    narrow = _walk(filled, 7, columns=["name"], **asked)
    assert [row["name"] for row in narrow] == [run.name for run in whole]  # type: ignore[union-attr]


def test_projects_come_together_in_order(filled: Store) -> None:
    rows = search_runs(filled, projects=["default", "other"], order_by=["name"], columns=["name", "project"]).rows
    assert [row["name"] for row in rows] == [f"run {number:02}" for number in range(30)]  # type: ignore[index]
    found = search_runs(filled, "project = 'other'", projects=["default", "other"], order_by=["name"]).rows
    assert {run.project for run in found} == {"other"}  # type: ignore[union-attr]
    assert count_runs(filled, "project = 'other'") == 0
    assert count_runs(filled, "project != 'other'") == 20


def test_columns_and_frames(filled: Store) -> None:
    page = search_runs(filled, order_by=["name"], columns=["name", "metrics.auc", "params.lr", "started_at"], limit=5)
    assert list(page.rows[0]) == ["id", "name", "metrics.auc", "params.lr", "started_at"]  # type: ignore[arg-type]
    frame = page.frame()
    assert frame.columns == ["id", "name", "metrics.auc", "params.lr", "started_at"]
    assert frame["name"].to_list() == ["run 01", "run 02", "run 04", "run 05", "run 07"]
    assert frame["metrics.auc"].null_count() == 1
    whole = search_runs(filled, order_by=["name"], limit=5).frame()
    assert whole["params.kind"].to_list() == ["b", "a", "a", "b", "b"]
    assert search_runs(filled, "name = 'none'").frame().is_empty()
    mixed = filled.new(Run, name="run 00", started_at=NOW, params={"lr": "high"})
    filled.records.put(mixed)
    shown = search_runs(filled, order_by=["name"], columns=["params.lr"], limit=2).frame()
    assert shown["params.lr"].to_list() == ["high", "0.1"]


def test_wrong_questions_are_refused(filled: Store) -> None:
    first = search_runs(filled, limit=2)
    other = search_runs(filled, limit=2, order_by=["name"])
    for asked in (
        {"where": "nam = 1"},
        {"order_by": ["-metrics"]},
        {"order_by": ["nothing"]},
        {"columns": ["params"]},
        {"limit": 0},
        {"limit": 10**9},
        {"after": "is not the cursor of a page"},
        {"after": "bm90IGpzb24="},
        {"after": other.next},
        {"after": first.next, "projects": ["other"]},
        {"projects": []},
        {"projects": ["../x"]},
    ):
        with pytest.raises(UsageError):
            search_runs(filled, **asked)  # type: ignore[arg-type]


def test_a_view_of_the_past_is_searched_alike(filled: Store) -> None:
    moment = filled.now()
    late = filled.new(Run, name="late", started_at=NOW + timedelta(days=9))
    filled.records.put(late)
    past = filled.as_of(moment)
    asked: dict[str, Any] = {"where": "metrics.auc > 0.3", "order_by": ["-metrics.auc"]}
    assert _walk(past, 3, **asked) == search_runs(filled, **asked).rows
    assert count_runs(past) == count_runs(filled) - 1


def test_children_are_summed_up(store: Store) -> None:
    parents = [store.new(Run, name="p", started_at=store.now()) for _ in range(2)]
    children = [
        store.new(Run, name="c", parent=parents[0].id, started_at=store.now(), metrics={"loss": value, "n": 1.0})
        for value in (1.0, 3.0, math.nan)
    ]
    store.records.put(*parents, *children)
    loss, counted = aggregate_children(store, [parent.id for parent in parents], ["loss", "n", "none"])
    assert (loss.parent, loss.metric, loss.count, loss.min, loss.max, loss.mean) == (parents[0].id, "loss", 2, 1, 3, 2)
    assert (counted.metric, counted.count) == ("n", 3)


NUMBER_OR_ODD = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, -2.5])
LOSSES: list[float | None] = [math.nan, math.inf, -math.inf, 0.0, 1.0, -2.5, None]


def spelled_number(value: float) -> str:
    return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(repr(value), repr(value))


def holds(op: str, held: float | None, value: float) -> bool:
    """What a filter means, in Python."""
    if op in ("!=", "is not nan"):
        return not holds("=" if op == "!=" else "is nan", held, value)
    if held is None:
        return False
    same = held == value or (math.isnan(held) and math.isnan(value))
    compared = {"<": held < value, "<=": held <= value, ">": held > value, ">=": held >= value}
    return math.isnan(held) if op == "is nan" else same if op == "=" else compared[op]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One run for each loss, finished."""
    with open_store(tmp_path_factory.mktemp("odd")) as store:
        for loss in LOSSES:
            values = {} if loss is None else {"loss": loss}
            run = store.new(Run, name=repr(loss), state="finished", started_at=NOW, metrics=values, params=values)
            store.records.put(run)
        yield store


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "is nan", "is not nan"]),
    value=NUMBER_OR_ODD,
    field=st.sampled_from(["metrics", "params"]),
    denied=st.booleans(),
    ordered=st.booleans(),
)
def test_nan_and_infinities_are_found_as_python_finds_them(
    odd: Store, op: str, value: float, field: str, denied: bool, ordered: bool
) -> None:
    where = f"{field}.loss {op}" + ("" if "nan" in op else f" {spelled_number(value)}")
    where = f"not ({where})" if denied else where
    if math.isnan(value) and op in ("<", "<=", ">", ">="):
        with pytest.raises(UsageError, match="nan has no order"):
            search_runs(odd, where)
        return
    expected = {repr(loss) for loss in LOSSES if holds(op, loss, value) != denied}
    order = [f"-{field}.loss"] if ordered else ["name"]
    found = search_runs(odd, where, order_by=order, limit=3)
    names = [run.name for run in found.rows]  # type: ignore[union-attr]
    while found.next:
        found = search_runs(odd, where, order_by=order, limit=3, after=found.next)
        names += [run.name for run in found.rows]  # type: ignore[union-attr]
    assert sorted(names) == sorted(expected)
    assert count_runs(odd, where) == len(expected)
    past = search_runs(odd.as_of(odd.now()), where)
    assert {run.name for run in past.rows} == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("spelling", ["nan", "NaN", "NAN"])
def test_nan_is_spelled_in_any_case_and_in_lists(odd: Store, spelling: str) -> None:
    def found(where: str) -> set[str]:
        return {run.name for run in search_runs(odd, where).rows}  # type: ignore[union-attr]

    assert found(f"metrics.loss == {spelling}") == {"nan"}
    assert found(f"metrics.loss in ({spelling}, 1)") == {"nan", "1.0"}
    assert found(f"metrics.loss not in ({spelling}, 1) and metrics.loss is not null") == {"inf", "-inf", "0.0", "-2.5"}
    assert found("metrics.loss = Infinity or metrics.loss = -INF") == {"inf", "-inf"}
    assert found('params.loss = "nan"') == set()  # a text compares with texts
    with pytest.raises(UsageError, match="null is expected"):
        search_runs(odd, "metrics.loss is 1")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("metrics.val.auc > 0.5", 'metrics."val/auc"'),
        ("metrics.`val auc` > 0.5", 'metrics."val/auc"'),
        ("metrics.val_auc is null", 'metrics."val/auc"'),
        ("not (name = 'x' or metrics.Val.AUC > 0.5)", 'metrics."val/auc"'),
        ("params.model/depth = 3", "params.model.depth"),
        ('tags."my-tag" = "a"', 'tags."my tag"'),
    ],
)
def test_a_name_that_is_joined_otherwise_is_suggested(store: Store, asked: str, meant: str) -> None:
    params = {"model": {"depth": 3}}
    with start_run("r", store=store, params=params, tags={"my tag": "a"}) as run:
        run.log({"val": {"auc": 0.9}})
    assert search_runs(store, 'metrics."val/auc" > 0.5 and metrics.val/auc > 0.5 and params.model.depth = 3').rows
    for look in (search_runs, count_runs):
        with pytest.raises(UsageError, match=re.escape(f"Did you mean {meant}?")):
            look(store, asked)


def test_a_name_is_suggested_in_orders_and_columns_too_and_only_where_it_helps(store: Store) -> None:
    with start_run("r", store=store) as run:
        run.log({"val": {"auc": 0.9}, "a.b": 1.0, "a/b": 2.0})
    for asked in ({"order_by": ["-metrics.val.auc"]}, {"columns": ["name", "metrics.val.auc"]}):
        with pytest.raises(UsageError, match=r'Did you mean metrics\."val/auc"'):
            search_runs(store, **asked)  # type: ignore[arg-type]
    # Both exist, or there is nothing like it yet.
    for where in ("metrics.a.b = 1", "metrics.a/b = 2"):
        assert len(search_runs(store, where).rows) == 1
    assert search_runs(store, "metrics.valauc > 0 or metrics.other.auc > 0").rows == []
    other = store.for_project("other")
    assert search_runs(other, "metrics.val.auc > 0").rows == []
    with pytest.raises(UsageError, match="Did you mean"):
        search_runs(other, "metrics.val.auc > 0", projects=["default", "other"])


@pytest.mark.parametrize(
    "where",
    [
        "state = 'runing'",
        'status != "done"',
        "state in ('lost', 'killed')",
        "not state = 'Lost'",
        "state = 1",
        "state = nan",
    ],
)
def test_a_state_that_does_not_exist_is_an_error(store: Store, where: str) -> None:
    for look in (search_runs, count_runs):
        with pytest.raises(UsageError, match="There is no state") as caught:
            look(store, where)
        assert all(state in str(caught.value.help) for state in ("running", "finished", "interrupted", "lost"))
    with pytest.raises(UsageError, match="There is no state 'x'"):
        search_runs(store, And((Not(Compare(("state",), "in", ("lost", "x"))),)))
    assert search_runs(store, "state like 'fin%' or state in ('scheduled', 'lost')").rows == []


def test_names_are_read_once_however_many_a_search_has(store, monkeypatch):
    from everloop.stores.records.sql_search import SqlSearch

    asked: list[str] = []
    real = SqlSearch.search_names

    def counted(self, kind, field):
        asked.append(field)
        return real(self, kind, field)

    monkeypatch.setattr(SqlSearch, "search_names", counted)
    where = " and ".join(f'metrics."a/{number}" > 1 and params."b/{number}" = "x"' for number in range(100))
    assert search_runs(store, where).rows == []
    assert sorted(asked) == ["metrics", "params"]
