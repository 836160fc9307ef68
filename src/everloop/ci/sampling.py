"""A loop's graph with a step that takes a sample of the prepared rows, for a quick check of a change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.pipeline import Graph, step

if TYPE_CHECKING:
    import polars as pl

LEAST_ROWS = 100
_SEED = 7919
"""Differs from the seed of splits: with the same one, a sample of rows without a time would be all held-out rows."""


@step
def sample(table: pl.DataFrame, rows: int, key: str | None) -> pl.DataFrame:
    """Take a sample of the rows in which every key is in or out as a whole. The order of the rows stays.

    The same rows give the same sample on every machine, and a row that was in the sample stays in it while the table
    does not grow.

    Args:
        rows: about this number of rows is taken.
        key: the column that identifies a row's entity. Without one, rows are taken by their content.
    """
    return take_sample(table, rows, key)


def take_sample(table: pl.DataFrame, rows: int, key: str | None) -> pl.DataFrame:
    """Return a sample of a table; see `sample`."""
    import polars as pl

    from everloop.data.splits import hashes

    if table.height <= rows:
        return table
    if key is not None and key in table.columns:
        names = table[key].cast(pl.String)
    else:
        names = table.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    order = hashes(names, _SEED)
    limit = order.sort()[rows - 1]
    return table.filter(order <= limit)


def sampled_graph(graph: Graph, rows: int, key: str | None) -> Graph:
    """Return a loop's graph in which the snapshot is taken of a sample.

    Args:
        graph: what `graph_of` returns.
        rows: size of the sample, at least 100.

    Raises:
        UsageError: the sample is too small.
    """
    from everloop.pipeline.graph import Ref

    if rows < LEAST_ROWS:
        raise UsageError(f"A sample of {rows} rows is too small.", help=f"Take at least {LEAST_ROWS}: --sample 20000")
    sampled = Graph(graph.name)
    name = "sample"
    while name in graph.nodes:
        name = f"_{name}"
    for one, node in graph.nodes.items():
        if one == "snapshot":
            sampled.add(sample, name=name, inputs={"table": node.inputs["table"], "rows": rows, "key": key})
            node = replace(node, inputs={**node.inputs, "table": Ref(name, None, sampled)})
        sampled.nodes[one] = node
    return sampled
