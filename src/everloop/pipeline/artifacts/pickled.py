"""Anything else, by cloudpickle. Such bytes are code: they are signed when written and loaded only if trusted."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from everloop.pipeline.artifacts.formats import Stored, UnkeepableError

if TYPE_CHECKING:
    from everloop.stores import ContentStore


class PickleFormat:
    """`meta`: `class`. Equal objects may have different bytes, so what follows such a step may run again."""

    name = "pickle"

    def accepts(self, value: object) -> bool:
        return True

    def keep(self, value: object, objects: ContentStore) -> Stored:
        import cloudpickle

        from everloop.stores import trust

        kind = type(value)
        try:
            data = cloudpickle.dumps(value)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise UnkeepableError(f"it cannot be pickled: {error}") from error
        digest = objects.add(data)
        return Stored(
            self.name, digest, len(data), {"class": f"{kind.__module__}.{kind.__qualname__}"}, trust.sign(digest)
        )

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        from everloop.stores import trust

        trust.check(stored.digest, stored.signature)
        return pickle.loads(objects.read(stored.digest))  # noqa: S301 - signed by a key that is trusted here
