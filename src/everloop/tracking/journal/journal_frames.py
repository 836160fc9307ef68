"""Frames of a run's journal: one msgpack array per frame, whose first element is the kind.

    [0, run]                              start: the whole record; first frame of every journal of the run
    [1, at, step, {metric: value}]        metrics
    [2, {name: value}]                    parameters
    [3, {name: text}]                     tags
    [4, {package: version}, code, seal]   additional provenance; code is a digest or nil, seal a new seal or nil
    [5, state, at, seconds, error]        end

So a journal contains all of a run: folding it into a store gives the record and the points, even if no store was
available while the run was active. `at` is a msgpack timestamp. Later versions may add kinds, and elements at the end
of a frame; readers skip those that they do not know.

Names of nested values are joined by `/`, as in `val/loss`. Dots are not used for this, because names of layers and
columns contain dots, and because in a search, a dot separates a field from a name.
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

START, METRICS, PARAMS, TAGS, PROVENANCE, END = range(6)

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


class ProvenanceFrame(msgspec.Struct, array_like=True, tag=PROVENANCE, frozen=True):
    packages: dict[str, str]
    code: str | None
    seal: str | None = None


class EndFrame(msgspec.Struct, array_like=True, tag=END, frozen=True):
    state: RunState
    at: Moment
    seconds: float
    error: str | None


Frame = Run | PointsFrame | ParamsFrame | TagsFrame | ProvenanceFrame | EndFrame

_frame_decoder = msgspec.msgpack.Decoder(
    StartFrame | PointsFrame | ParamsFrame | TagsFrame | ProvenanceFrame | EndFrame
)


def encode_start(run: Run) -> bytes:
    return _encoder.encode((START, run))


def encode_metrics(at: datetime, step: int, values: Mapping[str, float]) -> bytes:
    """Raises OverflowError for a step that does not fit into 64 bits."""
    return _encoder.encode((METRICS, at, step, values))


def encode_params(values: Mapping[str, Json]) -> bytes:
    return _encoder.encode((PARAMS, values))


def encode_tags(values: Mapping[str, str]) -> bytes:
    return _encoder.encode((TAGS, values))


def encode_provenance(packages: Mapping[str, str], code: str | None, seal: str | None) -> bytes:
    return _encoder.encode((PROVENANCE, packages, code, seal))


def encode_end(state: RunState, at: datetime, seconds: float, error: str | None) -> bytes:
    return _encoder.encode((END, state, at, seconds, error))


def decode(payload: bytes) -> Frame | None:
    """Decode one frame. None for a kind that this version does not know.

    Raises:
        CorruptionError: the payload is not a frame of a run.
    """
    try:
        frame = _frame_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        if _is_of_later_kind(payload):
            return None
        raise CorruptionError(f"A journal has an invalid frame: {error}.", help="See: everloop verify") from error
    return frame.run if isinstance(frame, StartFrame) else frame


def decode_all(payloads: Sequence[bytes]) -> list[Frame | None]:
    """Decode many frames, faster than one by one."""
    try:
        frames = [*map(_frame_decoder.decode, payloads)]
    except msgspec.MsgspecError:
        return [decode(payload) for payload in payloads]
    return [frame.run if isinstance(frame, StartFrame) else frame for frame in frames]


def rows_of(frames: Iterable[Frame | None]) -> list[tuple[str, int, int, float]]:
    """The points of frames: metric, step, µs since 1970, value."""
    rows: list[tuple[str, int, int, float]] = []
    for frame in frames:
        if type(frame) is PointsFrame:
            at, step = micros(frame.at), frame.step
            rows += [(key, step, at, value) for key, value in frame.values.items()]
    return rows


def others_of(frames: Iterable[Frame | None]) -> list[Frame]:
    """The frames without points."""
    return [frame for frame in frames if frame is not None and type(frame) is not PointsFrame]


def _is_of_later_kind(payload: bytes) -> bool:
    try:
        match _decoder.decode(payload):
            case [int(kind), *_]:
                return kind > END
    except msgspec.MsgspecError:
        pass  # not msgpack: the caller reports it
    return False


def metrics_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one call, name to value, flattened by `flatten`.

    Raises:
        UsageError: a value is not a number, a name is not a string, or two keys give the same name, such as
            `{"a": {"b": …}}` and `"a/b"`.
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
    """Name and value of each metric. Nested names are joined by `/`; items of a list are numbered from 0.

    Accepts numbers of any library: everything that `float` accepts, except strings.

    Raises:
        UsageError: a value is not a number, or a name is not a string.
    """
    for name, value in metrics.items():
        if type(name) is not str or "\0" in name:
            raise UsageError(
                f"{prefix}{name!r} is not a valid name of a metric.", help="Use a string without NUL characters."
            )
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
        UsageError: it is not an integer of 64 bits.
    """
    try:
        number = operator.index(cast("Any", step))
    except TypeError:
        raise UsageError(f"step={step!r} is not an integer.", help="Count steps or epochs: 0, 1, 2, …") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise UsageError(f"step={number} does not fit into 64 bits.", help="Count steps or epochs: 0, 1, 2, …")
    return number


def text(value: object) -> str:
    """`value` as a string that every database can hold: without NUL, and valid UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\N{SYMBOL FOR NULL}")


MOST_BYTES = 1 << 20
"""The largest size of one parameter. Larger values should be artifacts."""


def checked_params(values: Mapping[str, object]) -> dict[str, Json]:
    """Parameters as JSON values.

    Raises:
        UsageError: a parameter takes more than `MOST_BYTES`, or two keys give the same name, such as 1 and "1", or
            `{"a": {"b": …}}` and `"a.b"`, which a search could not tell apart.
    """
    params: dict[str, Json] = plain(values)
    if any(isinstance(value, dict) for value in params.values()):
        check_paths("parameter", leaves(params), "/.")
    if len(_encoder.encode(params)) > MOST_BYTES:
        sizes = {name: len(_encoder.encode(value)) for name, value in params.items()}
        name = max(sizes, key=lambda name: sizes[name])
        if sizes[name] > MOST_BYTES:
            raise UsageError(
                f"The parameter '{name}' takes {sizes[name] / 1e6:.1f} MB; the limit is 1 MB.",
                help=f"Log it as an artifact: run.log_json({name!r}, value)",
            )
    return params


def plain(value: object) -> Json:
    """A parameter's value as JSON. A value that JSON cannot hold becomes its string.

    Raises:
        UsageError: two keys of a dict have the same string, such as 1 and "1".
    """
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Mapping):
        converted = {text(name): plain(item) for name, item in value.items()}
        if len(converted) != len(value):
            check_spellings("parameter", value, text)
        return converted
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return plain(item())
    return value.isoformat() if isinstance(value, datetime) else text(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str | bytes | bytearray):
        raise _not_a_number(name, value)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _not_a_number(name, value) from error


def _not_a_number(name: str, value: Any) -> UsageError:
    return UsageError(
        f"The metric '{name}' is not a number: {value!r}, of type {type(value).__name__}.",
        help="Record strings with run.set_tag or run.params, and everything else with run.log_artifact.",
    )
