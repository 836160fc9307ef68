"""NumPy arrays in NumPy's own format, without pickled parts."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError

if TYPE_CHECKING:
    from everloop.stores import ContentStore


class ArrayFormat:
    """`meta`: `shape`, `dtype`. Format: NumPy enhancement proposal 1, version chosen by NumPy."""

    name = "array"

    def accepts(self, value: object) -> bool:
        return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"

    def keep(self, value: Any, objects: ContentStore) -> Stored:
        import numpy as np

        if value.dtype.hasobject:
            raise UnkeepableError("the array holds Python objects")
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        data = buffer.getvalue()
        meta = {"shape": list(value.shape), "dtype": str(value.dtype)}
        return Stored(self.name, objects.add(data), len(data), meta)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        import numpy as np

        return np.load(io.BytesIO(objects.read(stored.digest)), allow_pickle=False)
