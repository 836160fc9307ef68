"""The signature of a model: its inputs, task, classes and outputs.

Every input has a name and one of a few types, and may be nullable. A request must contain every input, because an
optional field would hide a misspelled name; null means "unknown".

The signature builds its own row type (a `msgspec` struct), so a request body is decoded and checked in one pass.
Types on the wire: `float` and `int` are JSON numbers, `bool` is true or false, `string` a string, `date`,
`datetime` and `time` are RFC 3339 strings (a datetime without an offset is read as UTC), `duration` is ISO 8601.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from everloop.errors import RequestError, UsageError
from everloop.training.trained_model import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec
    import polars as pl

    from everloop.records import Json

InputType = Literal["float", "int", "bool", "string", "date", "datetime", "time", "duration"]

_INT64 = 2**63
_LONGEST_DAYS = 100_000_000
"""A longer duration does not fit into 64 bits of microseconds."""
_LONGEST_MESSAGE = 1_000
_LOCATION = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of a model.

    `categories`: the values seen in training; `closed`: others are refused. `low` and `high`: the range of a number in
    training, for information and monitoring; values outside of it are accepted.
    """

    name: str
    type: InputType
    nullable: bool = True
    categories: tuple[str, ...] = ()
    closed: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs in the model's order, the task, and for classifiers the classes in the order of the scores.

    `ignored`: columns of the training data that the model does not use (because they were constant, say). A row may
    contain them, so that a client that sends its whole table keeps working when such a column comes or goes.
    """

    inputs: tuple[Input, ...]
    task: Task
    classes: tuple[Json, ...] = ()
    ignored: tuple[str, ...] = ()
    fields: Mapping[str, Input] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise UsageError(f"A signature's task cannot be '{self.task}'.", help=f"Tasks: {', '.join(get_args(Task))}")
        if not self.inputs:
            raise UsageError("A signature needs at least one input.", help="Pass inputs=(Input(…), …).")
        fields = {item.name: item for item in self.inputs}
        object.__setattr__(self, "ignored", tuple(name for name in dict.fromkeys(self.ignored) if name not in fields))
        if len(fields) != len(self.inputs):
            raise UsageError("A signature names an input twice.", help="Give each input its own name.")
        for name in (*fields, *self.ignored):
            # The decoder compares names as they are written in the request, where JSON would escape these characters.
            if any(letter in '\\"' or letter < " " for letter in name):
                raise UsageError(
                    f"A model input cannot be called {name!r}.",
                    help="Rename the column: quotes, backslashes and control characters are not allowed.",
                )
        object.__setattr__(self, "fields", fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fields)

    @cached_property
    def shape(self) -> tuple[tuple[object, ...], ...]:
        """The part of the signature that decides which rows are accepted: signatures of equal shape accept the same."""
        return (
            *((item.name, item.type, item.nullable, item.categories if item.closed else None) for item in self.inputs),
            self.ignored,
        )

    @cached_property
    def row_type(self) -> type[msgspec.Struct]:
        """The struct of one row: the inputs in order, then ignored columns. `values_of` converts its instances."""
        import msgspec

        fields: list[Any] = [(f"f{index}", _wire_type(item)) for index, item in enumerate(self.inputs)]
        rename = {f"f{index}": item.name for index, item in enumerate(self.inputs)}
        for index, name in enumerate(self.ignored, start=len(fields)):
            fields.append((f"f{index}", Any, None))
            rename[f"f{index}"] = name
        return msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, frozen=True, gc=False)

    @cached_property
    def _unchecked(
        self,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, frozenset[str]], ...]]:
        """Inputs that the row type cannot check completely.

        Indices of integers, datetimes and durations, and indices of closed inputs with their categories.
        """
        numbered = list(enumerate(self.inputs))
        return (
            tuple(index for index, item in numbered if item.type == "int"),
            tuple(index for index, item in numbered if item.type == "datetime"),
            tuple(index for index, item in numbered if item.type == "duration"),
            tuple((index, frozenset(item.categories)) for index, item in numbered if item.closed),
        )

    def rows_of(self, rows: Sequence[Mapping[str, object]]) -> list[tuple[Any, ...]]:
        """Check plain rows and return their values, one tuple in the order of `inputs` for each row.

        Raises:
            RequestError: a row does not match the signature; the message names row and field.
        """
        import msgspec

        try:
            structs = msgspec.convert(rows, list[self.row_type])  # type: ignore[name-defined]
        except msgspec.ValidationError as error:
            raise self.explain(error, "rows") from None
        return self.values_of(structs)

    def values_of(self, structs: Sequence[msgspec.Struct]) -> list[tuple[Any, ...]]:
        """Return the values of decoded rows, with integers and times normalized.

        Raises:
            RequestError: a value is invalid in a way that the row type cannot check (2.5 for an integer, say).
        """
        from msgspec.structs import astuple

        rows = [astuple(struct) for struct in structs]
        if self.ignored:
            width = len(self.inputs)
            rows = [row[:width] for row in rows]
        integers, moments, durations, closed = self._unchecked
        for number, row in enumerate(rows):
            # Every request runs this loop, so each check is cheap; most find nothing to change.
            for index in integers:
                if type(row[index]) is float:
                    rows[number] = row = self._normalized(row, index, number)
            for index in moments:
                value = row[index]
                if value is not None and value.tzinfo is not UTC:
                    rows[number] = row = self._normalized(row, index, number)
            for index in durations:
                value = row[index]
                if value is not None and abs(value.days) > _LONGEST_DAYS:
                    where = f"rows[{number}].{self.inputs[index].name}"
                    raise RequestError(
                        f"{where}: a duration of {value.days} days is too long.",
                        help=f"Send at most {_LONGEST_DAYS:,} days.",
                    )
            for index, known in closed:
                value = row[index]
                if value is not None and value not in known:
                    self._refuse_category(value, self.inputs[index], number)
        return rows

    def _normalized(self, row: tuple[Any, ...], index: int, number: int) -> tuple[Any, ...]:
        """Return the row with the integer or datetime at an index normalized."""
        item, value = self.inputs[index], row[index]
        where = f"rows[{number}].{item.name}"
        if item.type == "datetime":
            fixed: Any = utc(value, where)
        elif value.is_integer() and -_INT64 <= value < _INT64:
            fixed = int(value)
        else:
            raise RequestError(f"{where}: expected an integer, got {value!r}.")
        return (*row[:index], fixed, *row[index + 1 :])

    def _refuse_category(self, value: str, item: Input, number: int) -> None:
        known = ", ".join(map(repr, item.categories[:12]))
        raise RequestError(
            f"rows[{number}].{item.name}: the model does not know the category {value[:200]!r}.",
            help=f"Known categories: {known}",
        )

    def explain(self, error: Exception, where: str = "") -> RequestError:
        """Convert a decoder's error into one that names the field as the client wrote it."""
        text = str(error)
        if len(text) > _LONGEST_MESSAGE:
            # It can contain a name of any length that a client sent; the start and the end say what is wrong.
            text = f"{text[: _LONGEST_MESSAGE // 2]}…{text[-_LONGEST_MESSAGE // 2 :]}"
        match = cast("re.Match[str]", _LOCATION.match(text))
        path = (match["path"] or "").lstrip(".")
        path = f"{where}{path}" if path.startswith("[") else path
        what = match["what"].replace("`", "'")
        help_text: str | None = None
        if unknown := re.match(r"Object contains unknown field '(.*)'$", what, re.DOTALL):
            near = get_close_matches(unknown[1], self.names, n=1)
            help_text = f"Did you mean '{near[0]}'?" if near else f"Inputs: {', '.join(self.names[:20])}"
            what = f"there is no input '{unknown[1]}'"
        elif missing := re.match(r"Object missing required field '(.*)'$", what, re.DOTALL):
            what = f"the input '{missing[1]}' is missing"
            wanted = self.fields.get(missing[1])
            if wanted is not None and wanted.nullable:
                help_text = "Send null if it is unknown."
        return RequestError(f"{path}: {what[:1].lower()}{what[1:]}." if path else f"{what}.", help=help_text)

    def to_json(self) -> dict[str, Json]:
        return {
            "task": self.task,
            "classes": list(self.classes),
            "inputs": [_input_json(item) for item in self.inputs],
            "ignored": list(self.ignored),
            "outputs": self.outputs(),
        }

    def outputs(self) -> list[dict[str, Json]]:
        """Return name, type and nullability of each field of a prediction."""
        if self.task == "regression":
            return [{"name": "score", "type": "float", "nullable": False}]
        label = "string" if all(isinstance(value, str) for value in self.classes) else _class_type(self.classes)
        outputs: list[dict[str, Json]] = [
            {"name": "score", "type": "float", "nullable": False},
            {"name": "label", "type": label, "nullable": False},
        ]
        if self.task == "multiclass":
            outputs.append({"name": "scores", "type": "list[float]", "nullable": False})
        return outputs

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Signature:
        """Read what `to_json` wrote.

        Raises:
            UsageError: it is not a signature.
        """
        try:
            return cls(
                inputs=tuple(
                    Input(
                        name=item["name"],
                        type=item["type"],
                        nullable=item.get("nullable", True),
                        categories=tuple(item.get("categories", ())),
                        closed=item.get("closed", False),
                        low=item.get("low"),
                        high=item.get("high"),
                    )
                    for item in data["inputs"]
                ),
                task=data["task"],
                classes=tuple(data.get("classes", ())),
                ignored=tuple(data.get("ignored", ())),
            )
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"This is not a signature: {error!r}.", help="Pass what `Signature.to_json` returned."
            ) from error


def input_type(dtype: str) -> InputType:
    """Return the type of an input for the name of an Arrow or Polars data type (`timestamp[us]`, `Int32`, …).

    Raises:
        UsageError: a model input cannot have this type (lists, structs, bytes, …).
    """
    name = re.split(r"[(\[<]", dtype, maxsplit=1)[0].strip()
    found = _TYPES.get(name.lower())
    if found is None:
        raise UsageError(
            f"A model input cannot be of type {dtype}.",
            help=f"Convert the column to one of: {', '.join(get_args(InputType))}",
        )
    return cast("InputType", found)


def polars_type(kind: str) -> pl.DataType:
    """Return the Polars type for values of an input."""
    import polars as pl

    types: dict[str, pl.DataType] = {
        "float": pl.Float64(),
        "int": pl.Int64(),
        "bool": pl.Boolean(),
        "string": pl.String(),
        "date": pl.Date(),
        "datetime": pl.Datetime("us", "UTC"),
        "time": pl.Time(),
        "duration": pl.Duration("us"),
    }
    return types[kind]


def utc(moment: datetime, where: str) -> datetime:
    """Return `moment` as an aware datetime in UTC; without an offset it counts as UTC.

    Raises:
        RequestError: in UTC it is outside the years 1 to 9999.
    """
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise RequestError(f"{where}: {moment.isoformat()} is outside the years 1 to 9999 in UTC.") from None


_TYPES: dict[str, str] = {
    **dict.fromkeys(("float", "float16", "float32", "float64", "halffloat", "double"), "float"),
    **dict.fromkeys(("decimal", "decimal32", "decimal64", "decimal128", "decimal256"), "float"),
    **{f"{sign}int{bits}": "int" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("int", "integer"), "int"),
    **dict.fromkeys(("bool", "boolean"), "bool"),
    **dict.fromkeys(("string", "str", "utf8", "large_string", "string_view", "categorical", "enum"), "string"),
    **dict.fromkeys(("dictionary", "null"), "string"),
    **dict.fromkeys(("date", "date32", "date64"), "date"),
    **dict.fromkeys(("datetime", "timestamp"), "datetime"),
    **dict.fromkeys(("time", "time32", "time64"), "time"),
    "duration": "duration",
}


def _wire_type(item: Input) -> Any:
    import msgspec

    types: dict[str, Any] = {
        "float": float,
        # Many clients send 3.0 for integers if the column once had nulls.
        "int": Annotated[int, msgspec.Meta(ge=-_INT64, le=_INT64 - 1)] | float,
        "bool": bool,
        "string": str,
        "date": date,
        "datetime": datetime,
        "time": Annotated[time, msgspec.Meta(tz=False)],
        "duration": timedelta,
    }
    wire = types[item.type]
    return wire | None if item.nullable else wire


def _input_json(item: Input) -> dict[str, Json]:
    data: dict[str, Json] = {"name": item.name, "type": item.type, "nullable": item.nullable}
    if item.categories:
        data["categories"] = list(item.categories)
    if item.closed:
        data["closed"] = True
    if item.low is not None and item.high is not None:
        data["low"], data["high"] = item.low, item.high
    return data


def _class_type(classes: Sequence[Json]) -> str:
    if all(isinstance(value, bool) for value in classes):
        return "bool"
    return "int" if all(isinstance(value, int) for value in classes) else "float"
