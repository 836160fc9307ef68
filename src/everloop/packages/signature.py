"""What a model takes and what it answers: the signature that a package carries.

Every input has a name, a type out of a short list, and says whether its value may be null. A request must give
every input, because a field that may be left out hides a misspelled name; null says "unknown".

The signature makes its own row type (a `msgspec` struct), so a request body is decoded and checked in one pass.
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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec
    import polars as pl

    from everloop.records import Json

InputType = Literal["float", "int", "bool", "string", "date", "datetime", "time", "duration"]
Task = Literal["binary", "multiclass", "regression"]

_INT64 = 2**63
_LONGEST_DAYS = 100_000_000
"""A duration of more does not fit 64 bits of microseconds."""
_LONGEST_COMPLAINT = 1_000
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of a model.

    `categories`: what the model saw in training; `closed`: it takes no others. `low` and `high`: the range of a number
    in training, to know and to watch, never to refuse by.
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

    `ignored`: columns that training was offered and left out (constant in that stretch of data, say). A row may
    hold them, so that a client who sends its whole table does not break when a column comes or goes.
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
            raise UsageError("A signature needs at least one input.")
        fields = {item.name: item for item in self.inputs}
        object.__setattr__(self, "ignored", tuple(name for name in dict.fromkeys(self.ignored) if name not in fields))
        if len(fields) != len(self.inputs):
            raise UsageError("A signature names an input twice.")
        for name in (*fields, *self.ignored):
            # The decoder compares names as they stand in the request, where these would be escaped.
            if any(letter in '\\"' or letter < " " for letter in name):
                raise UsageError(
                    f"A model input cannot be called {name!r}.", help="Rename the column: no quotes, no backslashes."
                )
        object.__setattr__(self, "fields", fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fields)

    @cached_property
    def shape(self) -> tuple[tuple[object, ...], ...]:
        """What decides which rows are taken: two signatures of one shape take the same."""
        return (
            *((item.name, item.type, item.nullable, item.categories if item.closed else None) for item in self.inputs),
            self.ignored,
        )

    @cached_property
    def row_type(self) -> type[msgspec.Struct]:
        """The struct of one row: the inputs in order, then what is ignored. `values_of` makes its values."""
        import msgspec

        fields: list[Any] = [(f"f{place}", _wire_type(item)) for place, item in enumerate(self.inputs)]
        rename = {f"f{place}": item.name for place, item in enumerate(self.inputs)}
        for place, name in enumerate(self.ignored, start=len(fields)):
            fields.append((f"f{place}", Any, None))
            rename[f"f{place}"] = name
        return msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, frozen=True, gc=False)

    @cached_property
    def _looks(
        self,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, frozenset[str]], ...]]:
        """The places of integers, datetimes and durations, and the closed inputs with their categories: what the
        row type leaves to be looked at."""
        numbered = list(enumerate(self.inputs))
        return (
            tuple(place for place, item in numbered if item.type == "int"),
            tuple(place for place, item in numbered if item.type == "datetime"),
            tuple(place for place, item in numbered if item.type == "duration"),
            tuple((place, frozenset(item.categories)) for place, item in numbered if item.closed),
        )

    def rows_of(self, rows: Sequence[Mapping[str, object]]) -> list[tuple[Any, ...]]:
        """Check plain rows and return their values, a tuple in the order of `inputs` for each.

        Raises:
            RequestError: a row breaks the signature; the message names row and field.
        """
        import msgspec

        try:
            structs = msgspec.convert(rows, list[self.row_type])  # type: ignore[name-defined]
        except msgspec.ValidationError as error:
            raise self.explain(error, "rows") from None
        return self.values_of(structs)

    def values_of(self, structs: Sequence[msgspec.Struct]) -> list[tuple[Any, ...]]:
        """The values of decoded rows, integers and times normalised.

        Raises:
            RequestError: a value that the row type cannot refuse by itself (2.5 for an integer, …).
        """
        from msgspec.structs import astuple

        rows = [astuple(struct) for struct in structs]
        if self.ignored:
            width = len(self.inputs)
            rows = [row[:width] for row in rows]
        integers, moments, durations, closed = self._looks
        for number, row in enumerate(rows):
            # Each look is cheap and mostly finds nothing to do: this is the way of every request.
            for place in integers:
                if type(row[place]) is float:
                    rows[number] = row = self._with(row, place, number)
            for place in moments:
                value = row[place]
                if value is not None and value.tzinfo is not UTC:
                    rows[number] = row = self._with(row, place, number)
            for place in durations:
                value = row[place]
                if value is not None and abs(value.days) > _LONGEST_DAYS:
                    where = f"rows[{number}].{self.inputs[place].name}"
                    raise RequestError(f"{where}: {value.days} days are too long.")
            for place, known in closed:
                value = row[place]
                if value is not None and value not in known:
                    self._refuse_category(value, self.inputs[place], number)
        return rows

    def _with(self, row: tuple[Any, ...], place: int, number: int) -> tuple[Any, ...]:
        """The row with the integer or datetime at a place made what it should be."""
        item, value = self.inputs[place], row[place]
        where = f"rows[{number}].{item.name}"
        if item.type == "datetime":
            fixed: Any = utc(value, where)
        elif value.is_integer() and -_INT64 <= value < _INT64:
            fixed = int(value)
        else:
            raise RequestError(f"{where}: expected an integer, got {value!r}.")
        return (*row[:place], fixed, *row[place + 1 :])

    def _refuse_category(self, value: str, item: Input, number: int) -> None:
        known = ", ".join(map(repr, item.categories[:12]))
        raise RequestError(
            f"rows[{number}].{item.name}: the model takes no category {value[:200]!r}.", help=f"It takes: {known}"
        )

    def explain(self, error: Exception, where: str = "") -> RequestError:
        """Turn a decoder's complaint into an error that names the field as the client wrote it."""
        text = str(error)
        if len(text) > _LONGEST_COMPLAINT:
            # A name that a client sent stands in it, of any length; what is wrong with it stands at both ends.
            text = f"{text[: _LONGEST_COMPLAINT // 2]}…{text[-_LONGEST_COMPLAINT // 2 :]}"
        match = cast("re.Match[str]", _PLACE.match(text))
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
                help_text = "Send null where it is unknown."
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
        """Name, type and meaning of what an answer holds."""
        if self.task == "regression":
            return [{"name": "score", "type": "float", "nullable": False}]
        label = "string" if all(isinstance(value, str) for value in self.classes) else _class_type(self.classes)
        answers: list[dict[str, Json]] = [
            {"name": "score", "type": "float", "nullable": False},
            {"name": "label", "type": label, "nullable": False},
        ]
        if self.task == "multiclass":
            answers.append({"name": "scores", "type": "list[float]", "nullable": False})
        return answers

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
            raise UsageError(f"This is no signature: {error!r}.") from error


def input_type(dtype: str) -> InputType:
    """The type of an input, from the text of an Arrow or a Polars data type (`timestamp[us]`, `Int32`, …).

    Raises:
        UsageError: models take no such columns (lists, structs, bytes, …).
    """
    name = re.split(r"[(\[<]", dtype, maxsplit=1)[0].strip()
    found = _TYPES.get(name.lower())
    if found is None:
        raise UsageError(
            f"A model input cannot be of type {dtype}.", help=f"It may be: {', '.join(get_args(InputType))}"
        )
    return cast("InputType", found)


def polars_type(kind: str) -> pl.DataType:
    """The Polars type in which values of an input are kept."""
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
    """`moment` as aware UTC; without an offset it is UTC already.

    Raises:
        RequestError: it lies outside the years 1 to 9999 once moved to UTC.
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
        # A column of integers that once had nulls comes from many clients as 3.0.
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
