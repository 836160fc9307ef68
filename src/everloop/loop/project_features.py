"""Feature views of a project, kept: from the command line, from a script, or as a step of a pipeline.

    @el.step
    def kept(weather: pl.DataFrame) -> str:
        return el.materialize(reports, rows=weather, online="online.db").state

The step runs again when the step before it gives something else, and adds the rows that are new. What it returns
changes with the rows, so steps that join the view run after it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from everloop.data import FeatureView
    from everloop.data.features import Materialized, OnlineStore
    from everloop.stores import Store


def materialize(
    view: FeatureView,
    *,
    rows: Any = None,
    online: str | Path | OnlineStore | None = None,
    store: Store | None = None,
) -> Materialized:
    """Keep the rows of a view that are new, and publish the latest of each entity.

    Args:
        rows: what the view's source gives; without them it is called.
        online: the store that serving asks, or its address.
        store: default: that of the step or run around it, else the one that `open_store()` finds.
    """
    from everloop.data.features import materialize as keep

    with ExitStack() as stack:
        place, kept = _places(stack, store, online)
        return keep(place, view, rows=rows, online=kept, code=_code(view))


def backfill(
    view: FeatureView,
    *,
    rows: Any = None,
    start: datetime | None = None,
    end: datetime | None = None,
    online: str | Path | OnlineStore | None = None,
    store: Store | None = None,
) -> Materialized:
    """Add rows of the past that are known only now; a join at an earlier moment does not see them.

    Args:
        start: the first event's time; `end`, the first that is left out.
    """
    from everloop.data.features import backfill as fill

    with ExitStack() as stack:
        place, kept = _places(stack, store, online)
        return fill(place, view, rows=rows, start=start, end=end, online=kept, code=_code(view))


def _code(view: FeatureView) -> str | None:
    from everloop.pipeline.code.step_code import code_of

    function: Any = getattr(view.source, "function", view.source)
    return code_of(function).digest if callable(function) else None


def _places(
    stack: ExitStack, store: Store | None, online: str | Path | OnlineStore | None
) -> tuple[Store, OnlineStore | None]:
    from pathlib import Path

    from everloop.data.features import open_online
    from everloop.pipeline import current_step
    from everloop.stores import open_store
    from everloop.tracking import current_run

    step, run = current_step(), current_run()
    around = step.store if step is not None else run.store if run is not None else None
    place = store or around or stack.enter_context(open_store())
    if online is None or not isinstance(online, str | Path):
        return place, online
    kept = open_online(online)
    stack.callback(kept.close)
    return place, kept
