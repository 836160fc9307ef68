"""Pickles, for all other values. A pickle can run code, so it is signed when written and loaded only if trusted.

A pickle only names the classes and functions of the project, so it would stay the same when their code is edited, and
the steps that follow would not run again. So the digest of that code is written behind the pickle, where loading does
not read.
"""

from __future__ import annotations

import io
import pickle
from types import FunctionType
from typing import TYPE_CHECKING, Any

from everloop.errors import StepOutputError
from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError
from everloop.pipeline.artifacts.frame import as_form, form_of
from everloop.pipeline.code.code_origin import origin_of
from everloop.pipeline.code.step_code import code_of
from everloop.pipeline.value_digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.records import Json
    from everloop.stores import ContentStore


class PickleFormat:
    """`meta`: `class`. Equal objects may have different bytes, so steps that follow may run again."""

    name = "pickle"

    def accepts(self, value: object) -> bool:
        return True

    def keep(self, value: object, objects: ContentStore) -> Stored:
        from everloop.stores import trust

        kind = type(value)
        try:
            data = _pickled(value)
        except BaseException as error:
            # Each library raises its own errors; Polars raises a PanicException, which is not a subclass of Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UnkeepableError(f"it cannot be pickled: {error}") from error
        meta: dict[str, Json] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
        if form_of(kind) is not None:
            meta |= _describe(value)
            _check_loads(data, value)
        digest = objects.add(data)
        return Stored(self.name, digest, len(data), meta, trust.sign(digest))

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        from everloop.stores import trust

        trust.check(stored.digest, stored.signature)
        value = pickle.loads(objects.read(stored.digest))  # noqa: S301 - signed by a key that is trusted here
        try:
            return as_form(value, wanted)
        except UnkeepableError as error:
            raise StepOutputError(
                f"A stored {kind_name(value)} cannot be converted to the declared type: {error}.",
                help="Declare the type that the earlier step returns, and convert it in this step.",
            ) from error


def kind_name(value: object) -> str:
    """The type of a value, as messages name it."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _pickled(value: object) -> bytes:
    """The pickle of a value, and behind it the digest of the project's code that the pickle names, if there is any."""
    import cloudpickle

    named: dict[str, Callable[..., Any]] = {}

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, type | FunctionType) and origin_of(value.__module__ or "") == "project":
                named[f"{value.__module__}.{value.__qualname__}"] = value
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file).dump(value)
    if named:
        codes = (f"{name} {code_of(value).digest}" for name, value in sorted(named.items()))
        file.write(f"\n# code {digest_text(*codes)}\n".encode())
    return file.getvalue()


def _describe(value: Any) -> dict[str, Json]:
    """`rows` and `columns` of a table, as in the `meta` of a Parquet artifact."""
    if form_of(type(value)) == "lazy":
        return {}
    if form_of(type(value)) == "arrow":
        return {"rows": value.num_rows, "columns": {field.name: str(field.type) for field in value.schema}}
    kinds = list(value.dtypes)
    labels = [str(label) for label in value.columns]
    return {"rows": len(value), "columns": {label: str(kind) for label, kind in zip(labels, kinds, strict=True)}}


def _check_loads(data: bytes, value: Any) -> None:
    """Refuse a table that can be pickled but is not loaded as it was."""
    try:
        loaded = pickle.loads(data)  # noqa: S301 - written a moment ago
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnkeepableError(f"its pickle cannot be loaded again: {error}") from error
    if form_of(type(value)) == "polars" and not (loaded.schema == value.schema and loaded.equals(value)):
        raise UnkeepableError("loading its pickle gives another table")
