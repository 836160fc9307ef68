"""Sources of dlt: hundreds of services behind one form, read here without a pipeline or a destination.

A resource is run as it is: its own pagination, incremental cursors and transformers work; what it yields, rows or
tables, becomes one frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_dlt(source: object) -> bool:
    """Whether it is a source or a resource of dlt, without importing dlt."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(source).__mro__}
    return bool(kinds & {"dlt.DltSource", "dlt.DltResource"})


def open_dlt(source: Any, resource: str | None) -> tuple[str, Iterable[Any]]:
    """Name and items of one resource.

    Args:
        resource: which one, of a source that has several.

    Raises:
        UsageError: it has several, or none of that name.
    """
    from everloop.data.table_inputs import nearest

    resources = getattr(source, "selected_resources", None)
    if resources is None:
        return str(source.name), _told(source)
    names = list(resources)
    if resource is None and len(names) != 1:
        raise UsageError(f"The source '{source.name}' has {len(names)} resources.", help=f"resource= of {names}")
    chosen = resource or names[0]
    if chosen not in resources:
        raise UsageError(f"The source '{source.name}' has no resource '{chosen}'.", help=nearest(chosen, names))
    return chosen, _told(resources[chosen])


def _told(resource: Any) -> Iterable[Any]:
    try:
        yield from resource
    except Exception as error:  # dlt wraps whatever the service raised in classes of its own
        cause = error.__cause__ or error
        raise SourceError(f"The resource '{resource.name}' failed: {cause}.") from error
