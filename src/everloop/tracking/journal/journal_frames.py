"""What a run's journal says: one msgpack array per frame, its first element naming the kind.

    [0, run]                              start: the whole record; first frame of every journal of the run
    [1, at, step, {metric: value}]        metrics
    [2, {name: value}]                    parameters
    [3, {name: text}]                     tags
    [4, {package: version}, code, seal]   more of what made the run; code is a digest or nil, and so is its new seal
    [5, state, at, seconds, error]        end

A journal so holds all of a run: folding it into a store gives the record and the points, also where no store could
be reached while the run went on. `at` is a msgpack timestamp. New kinds may be added, and elements behind those that
stand here; a reader skips what it does not know.

Names of nested values are joined by `/`, as in `val/loss`: dots stand in the names of layers and columns, and in
paths of searches they part a field from what is in it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, cast

import msgspec

from everloop.errors import CorruptionError, UsageError
from everloop.records import Json, Run, RunState
from everloop.stores.clock import micros
from everloop.tracking.key_collisions import check_paths, check_spellings, leaves

START, METRICS, PARAMS, TAGS, ORIGIN, END = range(6)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class StartFrame(msgspec.Struct, array_like=True, tag=START, frozen=True):
    run: Run


class PointsFrame(msgspec.Struct, array_like=True, tag=METRICS, frozen=True):
    """Metrics of one step."""

    at: Moment
    step: int
    values: dict[str, float]


class ParamsFrame(msgspec.Struct, array_like=True, tag=PARAMS, frozen=True):
    values: dict[str, Json]


class TagsFrame(msgspec.Struct, array_like=True, tag=TAGS, frozen=True):
    values: dict[str, str]


class OriginFrame(msgspec.Struct, array_like=True, tag=ORIGIN, frozen=True):
    packages: dict[str, str]
    code: str | None
    seal: str | None = None


class EndFrame(msgspec.Struct, array_like=True, tag=END, frozen=True):
    state: RunState
    at: Moment
    seconds: float
    error: str | None


Frame = Run | PointsFrame | ParamsFrame | TagsFrame | OriginFrame | EndFrame

_known = msgspec.msgpack.Decoder(StartFrame | PointsFrame | ParamsFrame | TagsFrame | OriginFrame | EndFrame)


def encode_start(run: Run) -> bytes:
    return _encoder.encode((START, run))


def encode_metrics(at: datetime, step: int, values: Mapping[str, float]) -> bytes:
    """Raises OverflowError for a step beyond 64 bits."""
    return _encoder.encode((METRICS, at, step, values))


def encode_params(values: Mapping[str, Json]) -> bytes:
    return _encoder.encode((PARAMS, values))


def encode_tags(values: Mapping[str, str]) -> bytes:
    return _encoder.encode((TAGS, values))


def encode_origin(packages: Mapping[str, str], code: str | None, seal: str | None) -> bytes:
    return _encoder.encode((ORIGIN, packages, code, seal))


def encode_end(state: RunState, at: datetime, seconds: float, error: str | None) -> bytes:
    return _encoder.encode((END, state, at, seconds, error))


def decode(payload: bytes) -> Frame | None:
    """The frame that `payload` holds, or None for a kind that this version does not know.

    Raises:
        CorruptionError: the payload is no frame of a run.
    """
    try:
        frame = _known.decode(payload)
    except msgspec.MsgspecError as error:
        if _is_of_later_kind(payload):
            return None
        raise CorruptionError(
            f"A journal holds a frame that is no part of a run: {error}.", help="See: everloop verify"
        ) from error
    return frame.run if isinstance(frame, StartFrame) else frame


def decode_all(payloads: Sequence[bytes]) -> list[Frame | None]:
    """As `decode`, of many."""
    try:
        found = [*map(_known.decode, payloads)]
    except msgspec.MsgspecError:
        return [decode(payload) for payload in payloads]
    return [frame.run if isinstance(frame, StartFrame) else frame for frame in found]


def rows_of(said: Iterable[Frame | None]) -> list[tuple[str, int, int, float]]:
    """The points that frames tell: metric, step, µs since 1970, value."""
    rows: list[tuple[str, int, int, float]] = []
    for frame in said:
        if type(frame) is PointsFrame:
            at, step = micros(frame.at), frame.step
            rows += [(key, step, at, value) for key, value in frame.values.items()]
    return rows


def others_of(said: Iterable[Frame | None]) -> list[Frame]:
    """The frames that tell no points."""
    return [frame for frame in said if frame is not None and type(frame) is not PointsFrame]


def _is_of_later_kind(payload: bytes) -> bool:
    try:
        match _decoder.decode(payload):
            case [int(kind), *_]:
                return kind > END
    except msgspec.MsgspecError:
        pass  # Not a frame of this format, which its reader reports.
    return False


def metrics_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Value by name of each metric of one call, as `flatten` makes them.

    Raises:
        UsageError: a value that is not a number, a name that is not a text, or two keys that become one name, such
            as `{"a": {"b": …}}` and `"a/b"`.
    """
    pairs = list(flatten(values))
    found = dict(pairs)
    if len(found) != len(pairs):
        check_paths("metric", _paths(values))
    return found


def _paths(values: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*before, name))
        elif isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
            yield from _paths({str(index): item for index, item in enumerate(value)}, (*before, name))
        else:
            yield (*before, name), value


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each metric; nested names are joined by `/`, items of a list count from 0.

    Numbers of any library are taken: whatever turns into a float.

    Raises:
        UsageError: a value that is no number, or a name that is no text.
    """
    for name, value in metrics.items():
        if type(name) is not str or "\0" in name:
            raise UsageError(f"{prefix}{name!r} is no name for a metric.", help="Use a text without NUL.")
        if type(value) is float:
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
            yield from flatten({str(index): item for index, item in enumerate(value)}, f"{prefix}{name}/")
        else:
            yield prefix + name, _number(prefix + name, value)


def step_number(step: object) -> int:
    """`step` as an int.

    Raises:
        UsageError: it is no whole number.
    """
    try:
        number = operator.index(cast("Any", step))
    except TypeError:
        raise UsageError(f"step={step!r} is no whole number.", help="Count steps or epochs: 0, 1, 2, …") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise UsageError(f"step={number} does not fit into 64 bits.")
    return number


def text(value: object) -> str:
    """`value` as a text that every store can keep: no NUL, nothing that UTF-8 lacks."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\N{SYMBOL FOR NULL}")


MOST_BYTES = 1 << 20
"""How long the text of one parameter may be; more belongs into an artifact."""


def checked_params(values: Mapping[str, object]) -> dict[str, Json]:
    """Parameters as JSON can hold them.

    Raises:
        UsageError: one takes more than `MOST_BYTES`, or two keys become one name, such as 1 and "1", or
            `{"a": {"b": …}}` and `"a.b"`, which searches could not tell apart.
    """
    params: dict[str, Json] = plain(values)
    if any(isinstance(value, dict) for value in params.values()):
        check_paths("parameter", leaves(params), "/.")
    if len(_encoder.encode(params)) > MOST_BYTES:
        sizes = {name: len(_encoder.encode(value)) for name, value in params.items()}
        name = max(sizes, key=lambda name: sizes[name])
        if sizes[name] > MOST_BYTES:
            raise UsageError(
                f"The parameter '{name}' takes {sizes[name] / 1e6:.1f} MB; a run keeps at most 1 MB in one.",
                help=f"Keep it beside the run: run.log_json({name!r}, value)",
            )
    return params


def plain(value: object) -> Json:
    """A parameter's value as JSON can hold it: what has no JSON form is kept as its text.

    Raises:
        UsageError: two keys of a dict have the same text, such as 1 and "1".
    """
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Mapping):
        named = {text(name): plain(item) for name, item in value.items()}
        if len(named) != len(value):
            check_spellings("parameter", value, text)
        return named
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return plain(item())
    return value.isoformat() if isinstance(value, datetime) else text(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str | bytes | bytearray):
        raise _no_number(name, value)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _no_number(name, value) from error


def _no_number(name: str, value: Any) -> UsageError:
    return UsageError(
        f"The metric '{name}' is {value!r}, a {type(value).__name__}, where a number belongs.",
        help="Keep texts with run.set_tag or run.params, everything else with run.log_artifact.",
    )
