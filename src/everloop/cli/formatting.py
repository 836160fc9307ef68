"""How versions, their past and their differences are put into words."""

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
    """A time to the second: decisions follow one another within a minute."""
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def done(event: Event, key: str) -> str:
    """What an event did to the version with this key."""
    alias = event.key if event.kind == "alias" else str(event.data.get("alias", ""))
    if event.kind == "alias_request":
        return {
            "requested": f"asked for {alias}",
            "agreed": f"agreed to {alias}, others must, too",
            "approved": f"agreed to {alias}, enough have",
            "rejected": f"refused {alias}",
            "withdrawn": f"took back the wish for {alias}",
            "void": f"the wish for {alias} came to nothing",
        }.get(event.verb, f"{event.verb} {alias}")
    if event.kind == "alias":
        if event.verb != "alias_set":
            return f"{alias} was removed"
        if event.data.get("version") == key:
            before = event.data.get("previous")
            return f"became {alias}" + (f" after {before}" if before else "")
        return f"gave {alias} to {event.data.get('version')}"
    tags = event.data.get("tags")
    named = (f"{name}={value or ''}" for name, value in tags.items()) if isinstance(tags, dict) else ()
    return " ".join((event.verb.replace("_", " "), *named))


def deciders(tenure: AliasTenure) -> str:
    """Who moved an alias, and who agreed."""
    return " + ".join((tenure.actor, *tenure.approved_by))


def since(tenure: AliasTenure) -> str:
    """Since when an alias is held, by whose decision and why."""
    why = f": {tenure.reason}" if tenure.reason else ""
    return f"{second(tenure.since)} UTC by {deciders(tenure)}{why}"


def answers(request: AliasRequest) -> str:
    """What the others said to a request."""
    told = []
    for vote in request.votes:
        why = f" ({vote.reason})" if vote.reason else ""
        told.append(f"{vote.by} {'agreed' if vote.approve else 'refused'}{why}")
    return ", ".join(told)


def metrics(version: ModelVersion) -> list[str]:
    """Each metric with its interval, where one is known."""
    known = version.evaluation.get("metrics")
    told = []
    for name, value in version.metrics.items():
        one = known.get(name) if isinstance(known, dict) else None
        low, high = (one.get("low"), one.get("high")) if isinstance(one, dict) else (None, None)
        between = f" [{cell(low)} to {cell(high)}]" if isinstance(low, float) and isinstance(high, float) else ""
        told.append(f"{name} {cell(value)}{between}")
    return told


def columns(side: Json, key: str) -> str:
    """The inputs or outputs of a signature, the first of them by name."""
    ones = [one for one in side if isinstance(one, dict)] if isinstance(side, list) else []
    told = []
    for one in ones[:FIRST_COLUMNS]:
        nullable = ", may be null" if one.get("nullable") else ""
        told.append(f"{one.get('name')} ({one.get('type')}{nullable})")
    more = len(ones) - len(told)
    return ", ".join(told) + (f" and {more:,} more, see: everloop models card {key}" if more > 0 else "")


def change(value: float | None) -> str | None:
    """A difference, with its sign."""
    if value is None:
        return None
    return f"+{cell(value)}" if value > 0 else cell(value)


def apart(a: Json, b: Json) -> tuple[Json, Json]:
    """Two values that differ, of each only what the other has not."""
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


def _only(mine: Sequence[Json], other: Sequence[Json]) -> Json:
    """How many there are, and those that the other list has not."""
    own = [item for item in mine if item not in other]
    if not own:
        return f"{len(mine):,} in all"
    named = ", ".join(str(item) for item in own[:FIRST_ITEMS])
    more = f" and {len(own) - FIRST_ITEMS:,} more" if len(own) > FIRST_ITEMS else ""
    return f"{len(mine):,} in all; only here {named}{more}"


def _brief(value: Json) -> Json:
    """A value as short as two still can be told apart: digests and commits by their beginning."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        kind, colon, digest = value.rpartition(":")
        return f"{kind}{colon}{digest[:12]}"
    return short(value) if isinstance(value, str) else value
