"""JSON files: one object per line, or one array of objects per file.

Every object is looked at before the lazy frame is handed out, so that values of two kinds under one key, whole numbers
that fractions would round, keys that stand twice in an object, and keys that only some files have are errors with the
line and the key.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.file_states import literal
from everloop.data.sources.json_types import cast_to, readable
from everloop.data.sources.reading_options import advice, named_types
from everloop.data.sources.row_values import ValueKinds, signature
from everloop.data.sources.unified_types import unified
from everloop.data.table_inputs import nearest, type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.data.sources.data_files import DataFile

_SPACED_KEY = re.compile(rb'"\s{2,}:|"[\t\r\n]:')
_OURS = ("missing_columns", "schema_overrides")


def scan_json(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of each file, in the order of `files`, with the same columns and types.

    Args:
        options: of `polars.scan_ndjson`; `schema_overrides` names types, of keys that a file may lack as well;
            `missing_columns="insert"` lets files lack any key.

    Raises:
        SourceError: a file is empty, a line is no object, values of a key do not fit together, or files differ in
            their keys.
        UsageError: an option does not exist, or names a type that does not.
    """
    named = {**named_types(options.get("schema") or {}), **named_types(options.get("schema_overrides") or {})}
    given = {name: value for name, value in options.items() if name not in _OURS}
    kinds = ValueKinds()
    keys = [_look(file, kinds, named, several=len(files) > 1) for file in files]
    problem = kinds.finish()
    if problem is not None:
        raise _misfit(problem)
    if options.get("missing_columns") != "insert":
        _compare(files, keys, named)
    for name in named:
        if not any(name in each for each in keys):
            known = {name: None for each in keys for name in each}
            raise UsageError(f"'{files[0]}' has no key '{name}', which an option names.", help=nearest(name, known))
    scans = []
    for file, found in zip(files, keys, strict=True):
        types = {name: dtype for name, dtype in named.items() if name in found}
        scans.append(_scan(file, {"schema_overrides": types or None, **given}))
        # Whole numbers beyond int64 are never beyond uint64 here, and only that can be kept.
        large = {name: pl.UInt64() for name, dtype in scans[-1].collect_schema().items() if dtype == pl.Int128()}
        if large:
            scans[-1] = _scan(file, {"schema_overrides": {**types, **large}, **given})
    if len(files) == 1:
        return scans
    schema = _together(files, [scan.collect_schema() for scan in scans], named)
    given.pop("infer_schema_length", None)
    return [_scan(file, {**given, "schema": schema}) for file in files]


def _scan(file: DataFile, options: Mapping[str, Any]) -> pl.LazyFrame:
    chosen = {"infer_schema_length": None, **options}
    if "schema" in chosen:
        chosen.pop("infer_schema_length")
    chosen = {name: value for name, value in chosen.items() if value is not None or name == "infer_schema_length"}
    types: dict[str, pl.DataType] = {}
    for option in ("schema", "schema_overrides"):
        if option in chosen:
            types |= named_types(chosen[option])
            chosen[option] = {name: readable(name, dtype) for name, dtype in named_types(chosen[option]).items()}
    try:
        if _is_array(file):
            return cast_to(pl.read_json(file.path, **chosen).lazy(), types, str(file)).collect().lazy()
        scan = cast_to(pl.scan_ndjson(literal(file.path), **chosen), types, str(file))
        # Reads every line now: a bad one would fail in the middle of a query, without its number.
        scan.null_count().collect(engine="streaming")
    except TypeError as error:
        raise UsageError(f"Reading json failed: {error}.", help="Options are those of polars.scan_ndjson.") from error
    except pl.exceptions.PolarsError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SourceError(
            f"'{file}' cannot be read as json: {said}.", help="Correct it, or name types with schema_overrides={…}."
        ) from error
    return scan


def _is_array(file: DataFile) -> bool:
    with file.path.open("rb") as stream:
        while chunk := stream.read(4096):
            if start := chunk.lstrip()[:1]:
                return start == b"["
    raise SourceError(f"'{file}' is empty.", help="Remove it, or write one JSON object per line.")


def _look(file: DataFile, kinds: ValueKinds, named: Mapping[str, Any], *, several: bool) -> dict[str, str]:
    """Every key of a file, with the place where it first stands."""
    keys: dict[str, str] = {}
    known: set[Any] = set()
    unit = "object" if _is_array(file) else "line"
    for number, row in _objects(file, unit):
        sign = signature(row)
        if sign is not None and sign in known:
            continue
        known.add(sign)
        place = f"{unit} {number} of '{file}'"
        for name, value in row.items():
            keys.setdefault(name, place)
            if name in named:
                continue
            problem = kinds.take(name, value, place)
            if problem is not None:
                raise _misfit(problem)
    if not keys:
        raise SourceError(
            f"The objects of '{file}' have no keys.", help="Remove it, or write one JSON object per line."
        )
    return keys


def _objects(file: DataFile, unit: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import msgspec

    if unit == "object":
        try:
            # As Polars does, an array is read as a whole.
            items = json.loads(file.path.read_bytes(), object_pairs_hook=_Pairs.of)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SourceError(f"'{file}' is no JSON: {error}.") from error
        for number, item in enumerate(items, 1):
            if not isinstance(item, dict):
                raise SourceError(f"Object {number} of '{file}' is no JSON object.")
            _refuse_doubled(item, f"Object {number} of '{file}'")
            yield number, item
        return
    decoder = msgspec.json.Decoder()
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                value = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _no_json(file, number, line) from error
            if not isinstance(value, dict):
                raise SourceError(f"Line {number} of '{file}' is no JSON object.")
            if line.count(b'":') + line.count(b'" :') > len(value) or _SPACED_KEY.search(line):
                # Nested objects, a text that looks like a key, or a key that stands twice.
                _refuse_doubled(json.loads(line, object_pairs_hook=_Pairs.of), f"Line {number} of '{file}'")
            yield number, value


def _no_json(file: DataFile, number: int, line: bytes) -> SourceError:
    try:
        json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return SourceError(f"Line {number} of '{file}' has the byte 0x{line[error.start]:02x}, which is no UTF-8.")
    except json.JSONDecodeError as problem:
        return SourceError(f"Line {number} of '{file}' is no JSON: {problem.msg}.")
    return SourceError(
        f"Line {number} of '{file}' is no JSON that can be read: it has NaN, Infinity or a number out of range.",
        help="Write null where there is no value.",
    )


class _Pairs(dict[str, Any]):
    """An object that remembers a key that stood in it twice."""

    doubled: str | None = None

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        kept = cls(made)
        names = [name for name, _ in pairs]
        kept.doubled = next(name for name in names if names.count(name) > 1)
        return kept


def _refuse_doubled(value: Any, place: str) -> None:
    if isinstance(value, _Pairs) and value.doubled is not None:
        raise SourceError(f"{place} has the key '{value.doubled}' twice.", help="Rename one.")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_doubled(inner, place)


def _misfit(problem: str) -> SourceError:
    column = problem.split("'")[1]
    top = re.split(r"\.|\[\]", column)[0]
    return SourceError(
        problem,
        **advice("Correct it, or take the values as they are written, with {}.", schema_overrides={top: pl.String()}),
    )


def _compare(files: list[DataFile], keys: list[dict[str, str]], named: Mapping[str, Any]) -> None:
    for file, found in zip(files[1:], keys[1:], strict=True):
        for lacking, known, having in ((file, found, keys[0]), (files[0], keys[0], found)):
            for name, place in having.items():
                if name not in known and name not in named:
                    raise SourceError(
                        f"'{lacking}' has no key '{name}', which {place} has.",
                        **advice(
                            f"{nearest(name, known)} If the file may lack it, name its type: {{}}.",
                            schema_overrides={name: pl.String()},
                        ),
                    )


def _together(
    files: list[DataFile], schemas: list[pl.Schema], named: Mapping[str, pl.DataType]
) -> dict[str, pl.DataType]:
    types: dict[str, pl.DataType] = {}
    first: dict[str, DataFile] = {}
    for file, schema in zip(files, schemas, strict=True):
        for name, dtype in schema.items():
            if name in named:
                types[name] = named[name]
                continue
            wider = unified(types.get(name, pl.Null()), dtype, open_structs=True)
            if wider is None:
                raise SourceError(
                    f"Column '{name}' holds {type_name(types[name])} in '{first[name]}' but {type_name(dtype)} "
                    f"in '{file}'.",
                    **advice("Take it as it is written, with {}.", schema_overrides={name: pl.String()}),
                )
            types[name] = wider
            first.setdefault(name, file)
    return types
