"""Store the rows of a project's feature views: from the command line, from a script, or in a step of a pipeline.

    @el.step
    def stored(weather: pl.DataFrame) -> str:
        return el.materialize(reports, rows=weather, online="online.db").state

The step runs again if its input changes, and adds the rows that are new. Its result changes with the rows, so steps
that join the view run after it.
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
    """Store the new rows of a feature view, and publish the latest row of each entity to an online store.

    Args:
        rows: the rows of the view's source. Default: the source is called.
        online: the online store that serving reads, or its path or URL. Default: nothing is published.
        store: default: the store of the surrounding step or run, otherwise the one that `open_store()` finds.
    """
    from everloop.data.features import materialize as materialize_view

    with ExitStack() as stack:
        offline, opened = _stores(stack, store, online)
        return materialize_view(offline, view, rows=rows, online=opened, code=_code(view))


def backfill(
    view: FeatureView,
    *,
    rows: Any = None,
    start: datetime | None = None,
    end: datetime | None = None,
    online: str | Path | OnlineStore | None = None,
    store: Store | None = None,
) -> Materialized:
    """Add past rows that have become known only now. A join as of an earlier moment does not see them.

    Args:
        rows: the rows of the view's source. Default: the source is called.
        start: time of the first event to add.
        end: time of the first event after those to add.
        online: the online store that serving reads, or its path or URL. Default: nothing is published.
        store: default: the store of the surrounding step or run, otherwise the one that `open_store()` finds.
    """
    from everloop.data.features import backfill as backfill_view

    with ExitStack() as stack:
        offline, opened = _stores(stack, store, online)
        return backfill_view(offline, view, rows=rows, start=start, end=end, online=opened, code=_code(view))


def _code(view: FeatureView) -> str | None:
    from everloop.pipeline.code.step_code import code_of

    function: Any = getattr(view.source, "function", view.source)
    return code_of(function).digest if callable(function) else None


def _stores(
    stack: ExitStack, store: Store | None, online: str | Path | OnlineStore | None
) -> tuple[Store, OnlineStore | None]:
    from pathlib import Path

    from everloop.data.features import open_online
    from everloop.pipeline import current_step
    from everloop.stores import open_store
    from everloop.tracking import current_run

    step, run = current_step(), current_run()
    surrounding = step.store if step is not None else run.store if run is not None else None
    offline = store or surrounding or stack.enter_context(open_store())
    if online is None or not isinstance(online, str | Path):
        return offline, online
    opened = open_online(online)
    stack.callback(opened.close)
    return offline, opened
