"""Arrow tables as Polars can hold them: every value as it was, in the nearest type that Polars has.

| Arrow | kept as |
|---|---|
| bool, (u)int8–64, float16–64, null, date32, timestamp ms–ns, duration ms–ns, fixed-size list, struct, map | itself |
| string, large string, string view | string |
| binary, large binary, binary view, fixed-size binary, UUID | binary |
| date64, timestamp s | timestamp in ms |
| duration s | duration in ms |
| time32, time64 | time in ns |
| decimal32–256 of up to 38 digits | decimal |
| list, large list, and views of lists | list |
| dictionary of text | categorical |
| dictionary of anything else, run-end encoded | its values |
| JSON and other extension types | their storage |

Unions, intervals of months and decimals of more digits have no type there: they are refused by name.
"""

from __future__ import annotations

from typing import Any

from everloop.errors import DataError

MAX_DIGITS = 38


def readable(table: Any) -> Any:
    """A pyarrow table, batch or reader whose every column Polars can read.

    Raises:
        DataError: a column holds a type that has no counterpart, or a decimal with too many digits.
    """
    import pyarrow as pa

    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    wanted = [_wanted(field.name, field.type) for field in table.schema]
    if all(kind == field.type for kind, field in zip(wanted, table.schema, strict=True)):
        return table
    whole = table.read_all() if isinstance(table, pa.RecordBatchReader) else table
    columns = [_cast(whole.column(place), kind) for place, kind in enumerate(wanted)]
    return pa.Table.from_arrays(columns, names=whole.schema.names)


def _wanted(name: str, kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as is_

    if isinstance(kind, pa.BaseExtensionType):
        return _wanted(name, kind.storage_type)
    if is_.is_run_end_encoded(kind):
        return _wanted(name, kind.value_type)
    if is_.is_dictionary(kind):
        return kind
    if is_.is_union(kind) or is_.is_interval(kind):
        raise DataError(
            f"The column '{name}' holds {kind}, which no table here can hold.",
            help="Cast it before, a union to one type, an interval to a duration.",
        )
    if is_.is_decimal(kind):
        digits, scale = kind.precision - min(kind.scale, 0), max(kind.scale, 0)
        if digits > MAX_DIGITS and kind.scale < 0:
            raise _too_long(name, kind)
        return pa.decimal128(min(digits, MAX_DIGITS), scale) if (kind.scale < 0 or digits > MAX_DIGITS) else kind
    if is_.is_list_view(kind) or is_.is_list(kind):
        return pa.list_(_inner(name, kind)) if _changes(name, kind) else kind
    if is_.is_large_list_view(kind) or is_.is_large_list(kind):
        return pa.large_list(_inner(name, kind)) if _changes(name, kind) else kind
    if is_.is_fixed_size_list(kind):
        return pa.list_(_inner(name, kind), kind.list_size) if _changes(name, kind) else kind
    if is_.is_struct(kind):
        fields = [pa.field(field.name, _wanted(f"{name}.{field.name}", field.type), field.nullable) for field in kind]
        return pa.struct(fields)
    return kind


def _inner(name: str, kind: Any) -> Any:
    return _wanted(name, kind.value_type)


def _changes(name: str, kind: Any) -> bool:
    import pyarrow.types as is_

    if is_.is_list_view(kind) or is_.is_large_list_view(kind):
        return True
    return bool(_inner(name, kind) != kind.value_type)


def _cast(column: Any, kind: Any) -> Any:
    import pyarrow as pa

    if column.type == kind:
        return column
    try:
        return pa.chunked_array([_rebuilt(chunk, kind) for chunk in column.chunks], type=kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"A column holds {column.type}, and not all its values fit into {kind}: {error}.") from error


def _rebuilt(array: Any, kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as is_

    if isinstance(array.type, pa.BaseExtensionType):
        return _rebuilt(array.storage, kind)
    if is_.is_run_end_encoded(array.type):
        return _rebuilt(pc.run_end_decode(array), kind)
    if array.type == kind:
        return array
    if is_.is_list(kind) or is_.is_large_list(kind):
        # Arrow's own cast of a view that holds nulls only gives an array that is not sound.
        lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
        make, width = (pa.ListArray, pa.int32()) if is_.is_list(kind) else (pa.LargeListArray, pa.int64())
        return make.from_arrays(offsets.cast(width), _rebuilt(array.flatten(), kind.value_type), mask=array.is_null())
    if is_.is_struct(kind):
        fields = list(kind)
        inner = [_rebuilt(part, field.type) for part, field in zip(array.flatten(), fields, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=array.is_null())
    return array.cast(kind)


def _too_long(name: str, kind: Any) -> DataError:
    return DataError(f"The column '{name}' holds {kind}; at most {MAX_DIGITS} digits can be kept.", help="Cast it.")
