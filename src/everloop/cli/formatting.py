"""Format versions, their history and their differences for `everloop models`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everloop.cli.output import cell, short

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.records import AliasRequest, Event, Json, ModelVersion
    from everloop.registry import AliasTenure

FIRST_COLUMNS = 12
FIRST_ITEMS = 10

_DIGEST = re.compile(r"(\w+:)?[0-9a-f]{32,64}")


def second(moment: datetime | None) -> str | None:
    """Format a time to the second, because several decisions can fall into one minute."""
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def done(event: Event, key: str) -> str:
    """Describe what an event did to the version `key`."""
    alias = event.key if event.kind == "alias" else str(event.data.get("alias", ""))
    if event.kind == "alias_request":
        return {
            "requested": f"requested {alias}",
            "agreed": f"approved for {alias}, more approvals needed",
            "approved": f"approved for {alias}, with enough approvals",
            "rejected": f"rejected for {alias}",
            "withdrawn": f"request for {alias} withdrawn",
            "void": f"request for {alias} became void",
        }.get(event.verb, f"{event.verb} {alias}")
    if event.kind == "alias":
        if event.verb != "alias_set":
            return f"{alias} was removed"
        if event.data.get("version") == key:
            before = event.data.get("previous")
            return f"became {alias}" + (f" after {before}" if before else "")
        return f"lost {alias} to {event.data.get('version')}"
    tags = event.data.get("tags")
    named = (f"{name}={value or ''}" for name, value in tags.items()) if isinstance(tags, dict) else ()
    return " ".join((event.verb.replace("_", " "), *named))


def deciders(tenure: AliasTenure) -> str:
    """Format who moved an alias, and who approved."""
    return " + ".join((tenure.actor, *tenure.approved_by))


def since(tenure: AliasTenure) -> str:
    """Format since when a version holds an alias, who decided it, and why."""
    why = f": {tenure.reason}" if tenure.reason else ""
    return f"{second(tenure.since)} UTC by {deciders(tenure)}{why}"


def votes(request: AliasRequest) -> str:
    """Format the votes on a request: who approved or rejected it, and why."""
    texts = []
    for vote in request.votes:
        why = f" ({vote.reason})" if vote.reason else ""
        texts.append(f"{vote.by} {'approved' if vote.approve else 'rejected'}{why}")
    return ", ".join(texts)


def metrics(version: ModelVersion) -> list[str]:
    """Format each metric, with its confidence interval if known."""
    evaluated = version.evaluation.get("metrics")
    texts = []
    for name, value in version.metrics.items():
        one = evaluated.get(name) if isinstance(evaluated, dict) else None
        low, high = (one.get("low"), one.get("high")) if isinstance(one, dict) else (None, None)
        interval = f" [{cell(low)} to {cell(high)}]" if isinstance(low, float) and isinstance(high, float) else ""
        texts.append(f"{name} {cell(value)}{interval}")
    return texts


def columns(side: Json, key: str) -> str:
    """Format the inputs or outputs of a signature: the first ones by name, the others as a number."""
    ones = [one for one in side if isinstance(one, dict)] if isinstance(side, list) else []
    texts = []
    for one in ones[:FIRST_COLUMNS]:
        nullable = ", may be null" if one.get("nullable") else ""
        texts.append(f"{one.get('name')} ({one.get('type')}{nullable})")
    more = len(ones) - len(texts)
    return ", ".join(texts) + (f" and {more:,} more, see: everloop models card {key}" if more > 0 else "")


def change(value: float | None) -> str | None:
    """Format a difference with its sign."""
    if value is None:
        return None
    return f"+{cell(value)}" if value > 0 else cell(value)


def apart(a: Json, b: Json) -> tuple[Json, Json]:
    """Reduce two values that differ to what only one of them has."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        pairs = {name: apart(a.get(name), b.get(name)) for name in names}
        left = {name: pairs[name][0] for name in names if name in a}
        return left, {name: pairs[name][1] for name in names if name in b}
    if _is_list(a) and _is_list(b):
        return _only(a, b), _only(b, a)
    return _brief(a), _brief(b)


def _is_list(value: Json) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _only(items: Sequence[Json], other: Sequence[Json]) -> Json:
    """Format the number of items, and those that the other list does not contain."""
    missing = [item for item in items if item not in other]
    if not missing:
        return f"{len(items):,} in all"
    names = ", ".join(str(item) for item in missing[:FIRST_ITEMS])
    more = f" and {len(missing) - FIRST_ITEMS:,} more" if len(missing) > FIRST_ITEMS else ""
    return f"{len(items):,} in all; only here: {names}{more}"


def _brief(value: Json) -> Json:
    """Shorten digests and commits to a prefix that still distinguishes them."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        kind, colon, digest = value.rpartition(":")
        return f"{kind}{colon}{digest[:12]}"
    return short(value) if isinstance(value, str) else value
