"""Read JSON files with one object per line, or one array of objects per file.

Every object is checked before the lazy frame is returned. Mixed kinds of values under one key, whole numbers that would
be rounded among fractions, repeated keys in an object, and keys that only some files have are errors that name the line
and the key.
"""

from __future__ import annotations

import json
import re
import sys
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
_EVERLOOP_OPTIONS = ("missing_columns", "schema_overrides")


def scan_json(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of each file, in the order of `files`, with the same columns and types.

    Args:
        options: those of `polars.scan_ndjson`. `schema_overrides` sets the types of keys; some files may lack these
            keys. With `missing_columns="insert"`, files may lack any key.

    Raises:
        SourceError: a file is empty, a line is not an object, the values of a key have incompatible types, or files
            have different keys.
        UsageError: an option does not exist, or it names a type that does not exist.
    """
    named = {**named_types(options.get("schema") or {}), **named_types(options.get("schema_overrides") or {})}
    polars_options = {name: value for name, value in options.items() if name not in _EVERLOOP_OPTIONS}
    kinds = ValueKinds()
    keys = [_check_objects(file, kinds, named) for file in files]
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
        scans.append(_scan(file, {"schema_overrides": types or None, **polars_options}))
        # Numbers beyond int64 fit into uint64 here, and only uint64 can be stored.
        large = {name: pl.UInt64() for name, dtype in scans[-1].collect_schema().items() if dtype == pl.Int128()}
        if large:
            scans[-1] = _scan(file, {"schema_overrides": {**types, **large}, **polars_options})
    if len(files) == 1:
        return scans
    schema = _common_types(files, [scan.collect_schema() for scan in scans], named)
    polars_options.pop("infer_schema_length", None)
    return [_scan(file, {**polars_options, "schema": schema}) for file in files]


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
        # Read every line now. A bad line would otherwise fail in the middle of a query, without a line number.
        scan.null_count().collect(engine="streaming")
    except TypeError as error:
        raise UsageError(
            f"Reading json failed: {error}.", help="The options are those of polars.scan_ndjson."
        ) from error
    except pl.exceptions.PolarsError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SourceError(
            f"'{file}' cannot be read as json: {reason}.",
            help="Correct the file, or set the types of its keys with schema_overrides={…}.",
            option_help="Correct the file, or set the types of its keys with --schema.",
        ) from error
    return scan


def _is_array(file: DataFile) -> bool:
    with file.path.open("rb") as stream:
        while chunk := stream.read(4096):
            if start := chunk.lstrip()[:1]:
                return start == b"["
    raise SourceError(f"'{file}' is empty.", help="Remove it, or write one JSON object per line.")


def _check_objects(file: DataFile, kinds: ValueKinds, named: Mapping[str, Any]) -> dict[str, str]:
    """Check every object of a file, and return its keys with the position where each first occurs."""
    keys: dict[str, str] = {}
    known: set[Any] = set()
    unit = "object" if _is_array(file) else "line"
    for number, row in _objects(file, unit):
        sign = signature(row)
        if sign is not None and sign in known:
            continue
        known.add(sign)
        position = f"{unit} {number} of '{file}'"
        for name, value in row.items():
            keys.setdefault(name, position)
            if name in named:
                continue
            problem = kinds.add(name, value, position)
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
            # Polars also reads a whole array at once.
            items = _parse(file.path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SourceError(f"'{file}' is not valid JSON: {error}.") from error
        for number, item in enumerate(items, 1):
            if not isinstance(item, dict):
                raise SourceError(
                    f"Item {number} of '{file}' is not a JSON object.", help="Write an array of objects, one per row."
                )
            _refuse_repeated(item, f"Object {number} of '{file}'")
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
                raise _invalid_json(file, number, line) from error
            if not isinstance(value, dict):
                raise SourceError(
                    f"Line {number} of '{file}' is not a JSON object.", help="Write one object per line, one per row."
                )
            if line.count(b'":') + line.count(b'" :') > len(value) or _SPACED_KEY.search(line):
                # Nested objects, a string that looks like a key, or a repeated key.
                _refuse_repeated(json.loads(line, object_pairs_hook=_Pairs.of), f"Line {number} of '{file}'")
            yield number, value


def _parse(text: bytes) -> Any:
    """The parsed JSON. A number that is too long for Python becomes another that is too long for any column."""
    try:
        return json.loads(text, object_pairs_hook=_Pairs.of)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        most = sys.get_int_max_str_digits()

        def whole(digits: str) -> int:
            return int(digits) if len(digits) <= most else (-1 if digits.startswith("-") else 1) * 10**most

        return json.loads(text, object_pairs_hook=_Pairs.of, parse_int=whole)


def _invalid_json(file: DataFile, number: int, line: bytes) -> SourceError:
    try:
        json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return SourceError(
            f"Line {number} of '{file}' contains the byte 0x{line[error.start]:02x}, which is not valid UTF-8.",
            help="Save the file as UTF-8.",
        )
    except json.JSONDecodeError as problem:
        return SourceError(f"Line {number} of '{file}' is not valid JSON: {problem.msg}.")
    except ValueError:
        # A number of more digits than Python reads: the error below covers it.
        pass
    return SourceError(
        f"Line {number} of '{file}' is not valid JSON: it contains NaN, Infinity or a number out of range.",
        help="Write null for a missing value.",
    )


class _Pairs(dict[str, Any]):
    """A JSON object that remembers a repeated key."""

    repeated: str | None = None

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        plain = dict(pairs)
        if len(plain) == len(pairs):
            return plain
        names = [name for name, _ in pairs]
        marked = cls(plain)
        marked.repeated = next(name for name in names if names.count(name) > 1)
        return marked


def _refuse_repeated(value: Any, position: str) -> None:
    if isinstance(value, _Pairs) and value.repeated is not None:
        raise SourceError(f"{position} has the key '{value.repeated}' twice.", help="Rename one of them.")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_repeated(inner, position)


def _misfit(problem: str) -> SourceError:
    column = problem.split("'")[1]
    top = re.split(r"\.|\[\]", column)[0]
    return SourceError(
        problem,
        **advice(
            "Correct the value, or read '" + top.replace("{", "{{").replace("}", "}}") + "' as text with {}.",
            schema_overrides={top: pl.String()},
        ),
    )


def _compare(files: list[DataFile], keys: list[dict[str, str]], named: Mapping[str, Any]) -> None:
    for file, found in zip(files[1:], keys[1:], strict=True):
        for lacking, known, having in ((file, found, keys[0]), (files[0], keys[0], found)):
            for name, position in having.items():
                if name not in known and name not in named:
                    raise SourceError(
                        f"'{lacking}' has no key '{name}', which {position} has.",
                        **advice(
                            f"{nearest(name, known)} If some files may lack this key, name its type: {{}}.",
                            schema_overrides={name: pl.String()},
                        ),
                    )


def _common_types(
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
                    f"Column '{name}' is {type_name(types[name])} in '{first[name]}' but {type_name(dtype)} "
                    f"in '{file}'.",
                    **advice("To read it as text in every file, pass {}.", schema_overrides={name: pl.String()}),
                )
            types[name] = wider
            first.setdefault(name, file)
    return types
