"""What a model has not seen in training: numbers outside its range, categories that are new to it.

An endpoint's option `unseen` says what is done about it: `refuse` (the request gets a 4xx that names row and input)
or `flag` (it is answered, and the answer lists what was unseen). Without the option nothing is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.packages.signature import Signature
    from everloop.records import Json


class UnseenValueChecks:
    """Looks at rows whose values stand in the order of the signature. Immutable."""

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
        """Every unseen value: `row`, `input`, `flag` (out_of_range or unseen_category), and what was seen.

        Raises:
            RequestError: there is one, and such rows are refused.
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
                    help="This endpoint refuses such rows.",
                )
        return found


def checks_for(signature: Signature, policy: str | None) -> UnseenValueChecks | None:
    """The checks that an endpoint's setting `unseen` asks for."""
    return None if policy is None else UnseenValueChecks(signature, refuse=policy == "refuse")
