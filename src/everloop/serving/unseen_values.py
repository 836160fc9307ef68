"""Finds values that a model has not seen in training: numbers outside their range and new categories.

The endpoint's option `unseen` decides what happens then: `refuse` (the request gets a 4xx that names row and input) or
`flag` (it is answered, and the response lists the values). Without the option, values are not checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.packages.signature import Signature
    from everloop.records import Json


class UnseenValueChecks:
    """Checks rows whose values are in the order of the signature. Immutable."""

    def __init__(self, signature: Signature, *, refuse: bool) -> None:
        numbered = list(enumerate(signature.inputs))
        self.refuse = refuse
        self._names = signature.names
        self._ranges = [
            (index, item.low, item.high)
            for index, item in numbered
            if item.type in ("int", "float") and item.low is not None and item.high is not None
        ]
        self._categories = [(index, frozenset(item.categories)) for index, item in numbered if item.categories]

    def find(self, rows: Sequence[Sequence[Any]]) -> list[dict[str, Json]]:
        """A flag for every unseen value: `row`, `input`, `flag` (out_of_range or unseen_category), and the seen range.

        Raises:
            RequestError: a value is unseen, and such rows are refused.
        """
        found: list[dict[str, Json]] = []
        for number, row in enumerate(rows):
            for index, low, high in self._ranges:
                value = row[index]
                if value is not None and not low <= value <= high:
                    seen = {"seen": [low, high]}
                    found.append({"row": number, "input": self._names[index], "flag": "out_of_range", **seen})
            for index, known in self._categories:
                value = row[index]
                if value is not None and value not in known:
                    found.append({"row": number, "input": self._names[index], "flag": "unseen_category"})
            if found and self.refuse:
                first = found[0]
                name = str(first["input"])
                seen_text = f", seen: {first['seen'][0]:g} to {first['seen'][1]:g}" if "seen" in first else ""
                raise RequestError(
                    f"rows[{number}].{name}: {row[self._names.index(name)]!r} was not seen in training"
                    f" ({str(first['flag']).replace('_', ' ')}{seen_text}).",
                    help="This endpoint refuses rows with values that training has not seen.",
                )
        return found


def checks_for(signature: Signature, policy: str | None) -> UnseenValueChecks | None:
    """The checks for an endpoint's setting `unseen`; None if it is not set."""
    return None if policy is None else UnseenValueChecks(signature, refuse=policy == "refuse")
