"""Read dlt sources, which cover hundreds of services, without a dlt pipeline or destination.

A resource runs unchanged: its pagination, incremental cursors and transformers work. The rows or tables that it yields
become one frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_dlt(source: object) -> bool:
    """Whether an object is a dlt source or resource. Does not import dlt."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(source).__mro__}
    return bool(kinds & {"dlt.DltSource", "dlt.DltResource"})


def open_dlt(source: Any, resource: str | None) -> tuple[str, Iterable[Any]]:
    """The name and the items of one resource.

    Args:
        resource: the resource to read, if the source has several.

    Raises:
        UsageError: the source has several resources and none was chosen, or it has none with this name.
    """
    from everloop.data.table_inputs import nearest

    resources = getattr(source, "selected_resources", None)
    if resources is None:
        return str(source.name), _items(source)
    names = list(resources)
    if resource is None and len(names) != 1:
        raise UsageError(
            f"The source '{source.name}' has {len(names)} resources, and one can be read.",
            help=f"Choose one with resource=: {', '.join(names)}.",
        )
    chosen = resource or names[0]
    if chosen not in resources:
        raise UsageError(f"The source '{source.name}' has no resource '{chosen}'.", help=nearest(chosen, names))
    return chosen, _items(resources[chosen])


def _items(resource: Any) -> Iterable[Any]:
    try:
        yield from resource
    except Exception as error:  # dlt wraps the service's errors in its own classes
        cause = error.__cause__ or error
        raise SourceError(f"The resource '{resource.name}' failed: {cause}.") from error
