"""The answers of an endpoint as a source of `el.read`: `predictions:returns`. So one loop can feed another.

The rows are what clients were answered, one per prediction:

    id, key             of the prediction, and the key that the client sent, or null
    event_at, arrived_at    when the predicted event happened, and when the request arrived
    version, score, label   as in the prediction log; `scores` for several classes
    <input>             the inputs that were logged, by their names

During a replay, and in a run with a simulated clock, answers that arrived later are left out.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from everloop.data.time_travel import find_horizon
from everloop.errors import NotFoundError, SourceError
from everloop.prediction_log.label_matching import ANSWERED
from everloop.prediction_log.log_reading import read_predictions
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    import polars as pl

    from everloop.records import Json
    from everloop.stores import Store

_COLUMNS = ("id", "entity", "event_at", "arrived_at", "version", "score", "label", "scores")
_INPUT = "input_"


def scan_answers(endpoint: str) -> tuple[pl.LazyFrame, str]:
    """The answers of an endpoint to its clients, and a text that changes when there are more.

    The endpoint is looked up in the store of the current run, or else in the store of this folder.

    Raises:
        SourceError: the endpoint does not exist, or has not answered yet.
    """
    with ExitStack() as stack:
        store = _store(stack)
        try:
            answers = _answers(store, endpoint)
        except NotFoundError as error:
            known = [one.name for one in store.records.find(EndpointRecord, order="key")]
            exist = f"Endpoints: {', '.join(known)}." if known else "Release a version first: everloop run"
            raise SourceError(f"No endpoint '{endpoint}' to read predictions of.", help=exist) from error
        names = answers.collect_schema().names()
        state = _state(answers)
        if state == _NOTHING:
            raise SourceError(
                f"The endpoint '{endpoint}' has not answered any request yet.", help="Read again once it has."
            )
        inputs = {name: name.removeprefix(_INPUT) for name in names if name.startswith(_INPUT)}
        # An input that is called like one of the other columns keeps its longer name.
        renamed = {old: new for old, new in inputs.items() if new not in (*_COLUMNS, "key")}
        frame = answers.select([name for name in _COLUMNS if name in names] + list(inputs))
        return frame.rename({"entity": "key", **renamed}), state


def answers_state(spec: dict[str, Json], since: str | None = None) -> str:
    """A text that changes when the endpoint of `spec["url"]` has answered more requests."""
    with ExitStack() as stack:
        try:
            return _state(_answers(_store(stack), str(spec["url"]).partition(":")[2]))
        except NotFoundError:
            return _NOTHING


def answers_change(before: str, after: str) -> str:
    """Describe the change between two states; empty if there is none."""
    if before == after:
        return ""
    more = int(after.partition(" ")[0]) - int(before.partition(" ")[0])
    return f"{more:,} new predictions" if more > 0 else "other predictions"


_NOTHING = "0 predictions"


def _answers(store: Store, endpoint: str) -> pl.LazyFrame:
    import polars as pl

    answers = read_predictions(store, endpoint, roles=ANSWERED)
    horizon = find_horizon()
    return answers if horizon is None else answers.filter(pl.col("arrived_at") <= horizon)


def _state(answers: pl.LazyFrame) -> str:
    import polars as pl

    rows, last = answers.select(pl.len(), pl.col("arrived_at").max().dt.epoch("us")).collect().row(0)
    return f"{rows} predictions until {last}" if rows else _NOTHING


def _store(stack: ExitStack) -> Store:
    from everloop.stores import checked_store, open_store
    from everloop.tracking import current_run

    run, checked = current_run(), checked_store()
    if checked is not None:
        return checked
    return run.store if run is not None else stack.enter_context(open_store(create=False))


__all__ = ["answers_change", "answers_state", "scan_answers"]
