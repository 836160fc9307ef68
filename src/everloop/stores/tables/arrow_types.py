"""Converting Arrow tables to types that Polars supports, without changing any value.

| Arrow | becomes |
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
| dictionary of any other type, run-end encoded | its values |
| JSON and other extension types | their storage type |

Unions, intervals of months and decimals with more digits have no counterpart and raise an error with the column's name.
"""

from __future__ import annotations

from typing import Any

from everloop.errors import DataError

MAX_DIGITS = 38


def readable(table: Any) -> Any:
    """Convert a pyarrow table, batch or reader so that Polars can read all of its columns.

    Raises:
        DataError: a column has a type without a counterpart, or a decimal with too many digits.
    """
    import pyarrow as pa

    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    wanted = [_wanted(field.name, field.type) for field in table.schema]
    if all(kind == field.type for kind, field in zip(wanted, table.schema, strict=True)):
        return table
    if isinstance(table, pa.RecordBatchReader):
        table = table.read_all()
    columns = [_cast(table.column(position), kind) for position, kind in enumerate(wanted)]
    return pa.Table.from_arrays(columns, names=table.schema.names)


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
            f"The column '{name}' has the type {kind}, which tables do not support.",
            help="Cast it first: a union to one of its types, an interval to a duration.",
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
        raise DataError(f"A column of type {column.type} has values that do not fit into {kind}: {error}.") from error


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
        # Arrow's own cast of a list view with only nulls produces an invalid array.
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
    return DataError(
        f"The column '{name}' has the type {kind}, but at most {MAX_DIGITS} digits are supported.",
        help="Cast it to a float or to text.",
    )
