"""Encoding of MLflow's REST API: request fields in JSON or in the query, and errors with a fixed set of codes.

The texts of the errors are MLflow's own, because clients and their tests match them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    EverloopError,
    InsufficientStorageError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from everloop.integrations.mlflow.tracking_api.field_limits import (
    LONGEST_ID,
    most_characters,
    most_characters_each,
    most_elements,
)
from everloop.server.error_responses import shown_message
from everloop.server.request_values import MOST_DEPTH, MOST_DIGITS, check_json
from everloop.stores.clock import micros, moment_of

if TYPE_CHECKING:
    from datetime import datetime

STATUS = {
    "INVALID_PARAMETER_VALUE": 400,
    "BAD_REQUEST": 400,
    # MLflow's own server answers 500, after which its clients would retry for minutes.
    "INVALID_STATE": 400,
    "RESOURCE_ALREADY_EXISTS": 400,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "ENDPOINT_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "RESOURCE_CONFLICT": 409,
    "REQUEST_LIMIT_EXCEEDED": 429,
    "INTERNAL_ERROR": 500,
    "NOT_IMPLEMENTED": 501,
    "TEMPORARILY_UNAVAILABLE": 503,
    # MLflow's own server answers 429, after which its clients would retry for minutes.
    "RESOURCE_EXHAUSTED": 507,
}
LARGEST_FLOAT = 1.7976931348623157e308
_LAST_MS = 253_402_300_799_999
_SEE = " See the API docs for more information about request parameters."


class MlflowError(EverloopError):
    """An error with one of MLflow's codes."""

    def __init__(self, message: str, code: str = "INVALID_PARAMETER_VALUE") -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS[code]


def not_found(message: str) -> MlflowError:
    return MlflowError(message, "RESOURCE_DOES_NOT_EXIST")


def as_mlflow_error(error: EverloopError) -> MlflowError:
    """Convert any error of everloop to an MLflow error."""
    if isinstance(error, MlflowError):
        return error
    codes: Sequence[tuple[type[EverloopError], str]] = (
        (NotFoundError, "RESOURCE_DOES_NOT_EXIST"),
        (AlreadyExistsError, "RESOURCE_ALREADY_EXISTS"),
        (ConflictError, "RESOURCE_CONFLICT"),
        (UsageError, "INVALID_PARAMETER_VALUE"),
        (UnavailableError, "TEMPORARILY_UNAVAILABLE"),
        (InsufficientStorageError, "RESOURCE_EXHAUSTED"),
    )
    code = next((code for kind, code in codes if isinstance(error, kind)), None)
    if code is None:
        code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(error.http_status, "INTERNAL_ERROR")
    return MlflowError(str(error), code)


def error_body(error: MlflowError) -> bytes:
    return msgspec.json.encode({"error_code": error.code, "message": shown_message(error.message)})


_MOST_FIELDS = 10_000
_MOST_SHOWN = 1000
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Fields:
    """The fields of a request, by name. Unknown fields are ignored; `experimentId` is read as `experiment_id`."""

    def __init__(self, values: Mapping[str, Any], *, from_query: bool = False) -> None:
        self._values = values
        self._from_query = from_query

    @classmethod
    def of_query(cls, query: bytes) -> Fields:
        try:
            found = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError as error:
            raise MlflowError(f"The query has more than {_MOST_FIELDS} fields.") from error
        if b"%00" in query:
            check_json(found)
        return cls(found, from_query=True)

    @classmethod
    def of_body(cls, body: bytes, *, nul: bool = False, depth: int = MOST_DEPTH) -> Fields:
        """Parse a JSON body.

        Args:
            nul: whether strings may have NUL characters, because they are checked later.
            depth: most levels of lists and objects.
        """
        if not body.strip():
            return cls({})
        value, lenient = _decoded(body)
        if isinstance(value, str):
            # Older clients encode twice.
            check_json(value)
            value, lenient = _decoded(value.encode())
        # If msgspec parsed the body, an escaped NUL is the only character in it that no store can keep.
        check_json(value, texts=lenient or (not nul and b"\\u0000" in body), depth=depth)
        if value is None:
            return cls({})
        if not isinstance(value, dict):
            raise MlflowError(f"The request body is a {type(value).__name__}, but must be a JSON object.")
        return cls(value)

    def raw(self, name: str) -> Any:
        """Return the value as it was sent; None if the field is absent."""
        value = self._values.get(name)
        if value is None and "_" in name:
            head, *rest = name.split("_")
            value = self._values.get(head + "".join(part.capitalize() for part in rest))
        return value

    def _single(self, name: str) -> Any:
        value = self.raw(name)
        return value[0] if self._from_query and value else value

    def has(self, name: str) -> bool:
        return self.raw(name) is not None

    def text(self, name: str, *, required: bool = True) -> str:
        """Return a string; empty if the field is absent and not required."""
        value = self._single(name)
        if value is None or value == "":
            if required:
                raise missing(name)
            return ""
        if not isinstance(value, str):
            raise mistyped(name, value)
        if len(value) > LONGEST_ID:
            check_length(name, value, most_characters(name))
        return value

    def run_id(self) -> str:
        return self.text("run_id", required=False) or self.text("run_uuid", required=False) or self.text("run_id")

    def optional_text(self, name: str) -> str | None:
        """Return a string, which may be empty; None if the field is absent."""
        return self.text(name, required=False) if self.has(name) else None

    def shown_value(self, name: str) -> Any:
        """Return the value for an error message."""
        return self._single(name)

    def integer(self, name: str, default: int | None = None, *, required: bool = False) -> int:
        value = self._single(name)
        if value is None or value == "":
            if required:
                raise missing(name)
            return 0 if default is None else default
        return whole(name, value)

    def number(self, name: str) -> float:
        value = self._single(name)
        if value is None or value == "":
            raise missing(name)
        return real(name, value)

    def flag(self, name: str) -> bool:
        value = self._single(name)
        if self._from_query and isinstance(value, str):
            if value.lower() not in ("true", "false"):
                raise MlflowError(f"Invalid boolean value: {value}, must be 'true' or 'false'.")
            return value.lower() == "true"
        if value is None:
            return False
        if not isinstance(value, bool):
            raise mistyped(name, value)
        return value

    def rows(self, name: str, *, required: bool = False) -> list[Any]:
        value = self.raw(name)
        if value is None:
            if required:
                raise missing(name)
            return []
        if not isinstance(value, list):
            raise mistyped(name, value)
        if len(value) > (most := most_elements(name)):
            raise MlflowError(f"'{name}' has {len(value):,} elements, at most {most:,} are allowed.")
        return value

    def texts(self, name: str, *, required: bool = False) -> list[str]:
        values = self.rows(name, required=required)
        most = most_characters_each(name)
        for index, item in enumerate(values):
            if not isinstance(item, str):
                raise mistyped(name, values)
            if len(item) > most:
                check_length(f"{name}[{index}]", item, most)
        return values

    def objects(self, name: str, *, required: bool = False) -> list[Fields]:
        values = self.rows(name, required=required)
        if not all(isinstance(item, dict) for item in values):
            raise mistyped(name, values)
        return [Fields(item) for item in values]

    def pairs(self, name: str) -> dict[str, str]:
        """Return a list of {key, value} as a dict; the last one of equal keys wins."""
        return {item.text("key", required=False): item.text("value", required=False) for item in self.objects(name)}


def whole(name: str, value: Any) -> int:
    """Return `value` as a 64-bit integer. The JSON form of protobuf also writes these as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise mistyped(name, value)
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise mistyped(name, value) from None
    if isinstance(value, float) and number != value:
        raise mistyped(name, value)
    if not -(1 << 63) <= number < 1 << 63:
        raise mistyped(name, value)
    return number


_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def real(name: str, value: Any) -> float:
    """Return `value` as a float. NaN and the infinities are sent as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise mistyped(name, value)
    if isinstance(value, str):
        if value in _SPELLED:
            return _SPELLED[value]
        if not re.fullmatch(r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?", value.strip()):
            raise mistyped(name, value)
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise mistyped(name, value) from None


def check_length(name: str, value: str, most: int) -> None:
    """Check the length of a string."""
    if len(value) > most:
        raise MlflowError(f"'{name}' has {len(value):,} characters, at most {most:,} are allowed.")


def missing(name: str) -> MlflowError:
    return MlflowError(f"Missing value for required parameter '{name}'.{_SEE}")


def mistyped(name: str, value: Any) -> MlflowError:
    return MlflowError(
        f"Invalid value {_shown(value)} for parameter '{name}' supplied:"
        f"  Hint: Value was of type '{type(value).__name__}'.{_SEE}"
    )


def invalid(name: str, value: Any, why: str = "") -> MlflowError:
    return MlflowError(f"Invalid value {_shown(value)} for parameter '{name}' supplied" + (f": {why}" if why else "."))


def _shown(value: Any) -> str:
    # Piece by piece, so that only the shown beginning of a long list is encoded.
    shown = ""
    for piece in _ENCODER.iterencode(value):
        shown += piece
        if len(shown) > _MOST_SHOWN:
            break
    return shown[:_MOST_SHOWN]


def number_out(value: float) -> float | str:
    """Encode a metric's value as MLflow does: NaN as a string, the infinities as the largest floats."""
    if value != value:
        return "NaN"
    if math.isinf(value):
        return math.copysign(LARGEST_FLOAT, value)
    return value


def ms_of(moment: datetime) -> int:
    return micros(moment) // 1000


def moment_at(name: str, ms: int) -> datetime:
    if not 0 <= ms <= _LAST_MS:
        raise invalid(name, ms, "It must be milliseconds since 1970, before the year 10000.")
    return moment_of(ms * 1000)


def pairs_out(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _decoded(body: bytes) -> tuple[Any, bool]:
    """Parse JSON. Also returns whether only Python's more lenient decoder could read it."""
    try:
        return msgspec.json.decode(body), False
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    except RecursionError:
        raise MlflowError("The request body is nested too deeply.", "BAD_REQUEST") from None
    try:
        # Python clients may write NaN and Infinity without quotes.
        return json.loads(body, parse_int=_whole), True
    except RecursionError:
        raise MlflowError("The request body is nested too deeply.", "BAD_REQUEST") from None
    except ValueError:
        raise MlflowError("The request body is not valid JSON.", "BAD_REQUEST") from None


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise MlflowError(f"The request body has a number of more than {MOST_DIGITS} digits.", "BAD_REQUEST")
    return int(digits)
