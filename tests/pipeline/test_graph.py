"""Graphs: wiring, tracing, order, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from everloop.errors import GraphError, UsageError
from everloop.pipeline import Each, Graph, Step, step, trace
from everloop.pipeline.binding import set_params


@step
def flights() -> list[int]:
    """Every flight.

    In rows.
    """
    return [1, 2]


@step
def weather() -> int:
    return 10


@step
def prepare(flights: list[int], weather: int, scale: int = 2) -> list[int]:
    return [row * weather * scale for row in flights]


@step(outputs=("train", "test"))
def split(prepare: list[int]) -> tuple[list[int], list[int]]:
    return prepare[:1], prepare[1:]


@step
def fit(train: list[int]) -> int:
    return sum(train)


def test_a_step_is_its_function() -> None:
    assert prepare([1, 2], 3) == [6, 12]
    assert prepare([1], weather=1, scale=5) == [5]
    assert prepare.__name__ == "prepare"
    assert flights.__doc__ is not None
    assert fit.map([[1], [2, 3]]) == [1, 5]


def test_wiring_goes_by_the_names_of_parameters_and_outputs() -> None:
    graph = Graph.wire([fit, split, prepare, weather, flights])
    assert set(graph.edges()) == {
        ("flights", "prepare", "flights"),
        ("weather", "prepare", "weather"),
        ("prepare", "split", "prepare"),
        ("split", "fit", "train"),
    }
    assert graph.get("prepare").params == {"scale": 2}


def test_steps_beside_the_one_that_asks_are_found() -> None:
    assert set(Graph.wire([fit, split]).nodes) == {"fit", "split", "prepare", "weather", "flights"}


def test_given_values_and_steps_come_first() -> None:
    graph = Graph.wire([prepare], given={"flights": [7]})
    assert list(graph.nodes) == ["weather", "prepare"]
    assert graph.get("prepare").params == {"flights": [7], "scale": 2}
    graph = Graph.wire([fit], given={"train": flights})
    assert graph.edges() == [("flights", "fit", "train")]
    graph = Graph.wire([fit], given={"train": split.test})
    assert graph.get("fit").inputs["train"].output == "test"


def test_a_traced_function_is_the_same_graph() -> None:
    def pipeline() -> None:
        train, test = split(prepare(flights(), weather()))
        fit(train)
        fit(test)

    graph = Graph.from_function(pipeline)
    assert graph.name == "pipeline"
    assert list(graph.nodes) == ["flights", "weather", "prepare", "split", "fit", "fit_2"]
    assert set(Graph.wire([fit, split]).edges()) <= set(graph.edges())


def test_references_may_stand_in_lists_and_dicts() -> None:
    @step
    def gather(parts: Any) -> Any:
        return parts

    with trace() as graph:
        gather([flights(), {"w": weather()}])
    assert graph.get("gather").needs == ("flights", "weather")


def test_nodes_can_be_added_one_by_one() -> None:
    graph = Graph()
    rows = graph.add(flights)
    graph.add(weather)
    both = graph.add(prepare, name="scaled", inputs={"flights": rows, "weather": weather, "scale": 3})
    graph.add(split, inputs={"prepare": both})
    graph.add(fit, inputs={"train": Each(split.train)})
    assert graph.order(["scaled"]) == ["flights", "weather", "scaled"]
    assert graph.get("fit").mapped == "train"


def test_a_graph_can_be_drawn() -> None:
    drawn = Graph.wire([split]).describe()
    assert json.loads(json.dumps(drawn)) == drawn
    assert {"from": "weather", "to": "prepare", "input": "weather"} in drawn["edges"]
    first = next(node for node in drawn["nodes"] if node["name"] == "flights")
    assert first["description"] == "Every flight."


def cyclic() -> list[Step[..., Any]]:
    one = Step(lambda b: b, name="a")
    two = Step(lambda c: c, name="b")
    three = Step(lambda a: a, name="c")
    return [one, two, three]


def unready() -> None:
    with trace():
        if flights():  # a result to come is neither true nor false
            return


def unpacked() -> None:
    with trace():
        _, _ = flights()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Graph.wire(cyclic()), "a → b → c → a"),
        (lambda: Graph.wire([Step(lambda me: me, name="me")]), "me → me"),
        (
            lambda: Graph.wire([flights, Step(lambda fligths: 1, name="x")]),
            "'fligths' of step 'x'. Did you mean 'flights'",
        ),
        (lambda: Graph.wire([Step(lambda wether: 1, name="x")]), "'wether' of step 'x'. Did you mean 'weather'"),
        (lambda: Graph.wire([Step(lambda q: 1, name="x")]), "Nothing provides the input 'q' of step 'x'"),
        (lambda: Graph.wire([flights, Step(lambda: 1, name="flights")]), "two steps called 'flights'"),
        (
            lambda: Graph.wire([split, Step(lambda: 1, name="o", outputs=("train",)), fit]),
            "Input 'train' of step 'fit' could come from: split, o",
        ),
        (lambda: Graph.wire([weather]).order(["wether"]), "The graph has no step 'wether'. Did you mean 'weather'?"),
        (lambda: Graph().add(prepare, inputs={"flight": 1}), "no parameter 'flight'. Did you mean 'flights'"),
        (lambda: Graph().add(prepare, inputs={"flights": 1}), "needs the input 'weather', which is missing"),
        (lambda: Graph().add(fit, inputs={"train": flights}), "the output of 'flights', which is not in the graph"),
        (unready, "cannot branch"),
        (unpacked, "cannot be iterated"),
        (lambda: Graph.from_function(lambda: split(prepare(flights(), weather()))["trian"]), "no output 'trian'"),
        (lambda: Graph.from_function(lambda: fit(1, 2)), "too many positional arguments"),
    ],
)
def test_what_cannot_be_wired_is_refused(make: Any, message: str) -> None:
    with pytest.raises(GraphError) as raised:
        make()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": "train"},
        {"outputs": ("a", "a")},
        {"retries": -1},
        {"timeout_s": 0},
        {"name": "no spaces"},
    ],
)
def test_a_step_is_declared_with_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        step(**options)(lambda: 1)


def test_a_generator_is_no_step() -> None:
    with pytest.raises(UsageError, match="generator"):

        @step
        def rows() -> Any:
            yield 1


@pytest.mark.slow
@given(st.data())
def test_every_order_is_topological(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    graph = Graph()
    for number in range(size):
        needs = data.draw(st.lists(st.integers(0, number - 1), unique=True)) if number else []
        graph.add(Step(lambda parts: parts, name=f"s{number}"), inputs={"parts": [graph_ref(n) for n in needs]})
    targets = data.draw(st.lists(st.sampled_from(sorted(graph.nodes)), min_size=1))
    order = graph.order(targets)
    assert len(set(order)) == len(order)
    assert set(targets) <= set(order)
    for name in order:
        needs_of = graph.get(name).needs
        assert all(order.index(need) < order.index(name) for need in needs_of)
    # Nothing is there that no target needs.
    needed = {need for name in order for need in graph.get(name).needs}
    assert set(order) == needed | set(targets)


def graph_ref(number: int) -> Any:
    from everloop.pipeline import Ref

    return Ref(f"s{number}")


def circular(kind: type) -> Any:
    """A list that contains itself, inside a value of this kind."""
    inner: list[Any] = [1]
    inner.append({"again": inner})
    return {"list": inner, "x": (inner,)} if kind is dict else kind([inner])


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def traced(value: Any) -> Graph:
    return Graph.from_function(lambda: fit(value))


@pytest.mark.parametrize(
    "make",
    [
        traced,
        lambda value: Graph.wire([fit], given={"train": value}),
        lambda value: Graph.wire([Step(lambda train=value: 1, name="fit")]),
        lambda value: Graph().add(fit, inputs={"train": Each(value)}),
        lambda value: set_params(Graph.wire([fit], given={"train": 1}), {"fit.train": value}),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_value_that_contains_itself_is_refused(make: Any, kind: type) -> None:
    with pytest.raises(GraphError, match="parameter 'train' of step 'fit' has a value that contains itself"):
        make(circular(kind))
    with pytest.raises(GraphError, match="'train' of step 'fit' has a value that is nested more than 100 levels"):
        make(kind([("x", nested(5_000))]))


def test_a_value_may_occur_twice() -> None:
    same = [1]
    assert traced([same, {"again": same}, nested(90)]).nodes["fit"].inputs["train"][:2] == [[1], {"again": [1]}]
