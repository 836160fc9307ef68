"""What a request becomes is counted before memory is taken for it, on every route and in every form.

Each attack runs in a process of its own whose memory beyond what it had before is measured; the figures are generous,
so that no busy machine breaks them: what is refused here once cost gigabytes or minutes."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everloop.errors import RequestError, TooLargeError
from everloop.prediction_log import fold_labels, fold_predictions
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.protocols import arrow_messages, parquet_pages
from everloop.serving.protocols.arrow_bodies import PARQUET, STREAM, read_frame
from everloop.serving.protocols.protocol import Request
from everloop.serving.protocols.unpacked_limits import check_csv, check_json
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.stores import Store

ROW = sample_rows()[0]
MOST_BYTES = 50 << 20
MOST_ROWS = EndpointSettings().max_rows


def start_peak() -> int:
    """Begin to measure the process's peak of memory, where the system can; its memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return peak_bytes()


def peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.fixture
def send(release: Any, route: Any, local: Any) -> Callable[..., Any]:
    """Sends a body to an endpoint, holds its peak of memory against the aim, and returns status and body."""
    route(release().key)
    app = local()

    def ask(path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        request = Request("POST", path, body, perf_counter(), named)
        before = start_peak()
        response = app.app.respond(request)
        assert peak_bytes() - before < MOST_BYTES
        return response.status, response.body

    return ask


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def repeated(rows: int, size: int) -> pa.Table:
    """One long text in every row, kept once."""
    return pa.table({"carrier": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, "int32")), ["x" * size])})


def views(rows: int, size: int) -> bytes:
    """Texts that all show the same bytes."""
    numbers = np.zeros((rows, 4), "<i4")
    numbers[:, 0], numbers[:, 1] = size, int.from_bytes(b"xxxx", "little")
    buffers = [None, pa.py_buffer(numbers.tobytes()), pa.py_buffer(b"x" * size)]
    return stream(pa.table({"carrier": pa.Array.from_buffers(pa.string_view(), rows, buffers)}))


def claimed(table: pa.Table, said: int, instead: int) -> bytes:
    """A stream in which each 64-bit number `said` is replaced: it claims what it does not hold."""
    return stream(table).replace(said.to_bytes(8, "little"), instead.to_bytes(8, "little"))


def delta(rows: int, size: int) -> bytes:
    """Texts that are each written as a part of the one before."""
    table = pa.table({"carrier": ["x" * size] * rows})
    return parquet(table, compression="zstd", use_dictionary=False, column_encoding={"carrier": "DELTA_BYTE_ARRAY"})


TABLES: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "parquet dictionary": lambda: (parquet(repeated(19_000, 50_000), compression="zstd"), PARQUET[0]),
    "parquet plain": lambda: (
        parquet(pa.table({"carrier": ["x" * 1_000_000] * 30}), compression="zstd", use_dictionary=False),
        PARQUET[0],
    ),
    "parquet prefixes": lambda: (delta(2_000, 20_000), PARQUET[0]),
    "parquet rows": lambda: (parquet(pa.table({"carrier": pa.nulls(1_000_000)}), compression="zstd"), PARQUET[0]),
    "parquet lists": lambda: (parquet(pa.table({"carrier": [[1] * 100_000] * 20}), compression="zstd"), PARQUET[0]),
    "parquet columns": lambda: (parquet(pa.table({f"c{n}": [1] for n in range(60)})), PARQUET[0]),
    "arrow dictionary": lambda: (stream(repeated(19_000, 400_000), "zstd"), STREAM),
    "arrow zstd": lambda: (stream(pa.table({"carrier": ["x" * 100_000] * 300}), "zstd"), STREAM),
    "arrow lz4": lambda: (stream(pa.table({"carrier": ["x" * 100_000] * 300}), "lz4"), STREAM),
    "arrow rows of no width": lambda: (claimed(pa.table({"carrier": pa.nulls(77_777)}), 77_777, 2**40), STREAM),
    "arrow negative": lambda: (claimed(pa.table({"carrier": pa.nulls(77_777)}), 77_777, 2**64 - 1), STREAM),
    "arrow views": lambda: (views(19_000, 1_000_000), STREAM),
    "arrow runs": lambda: (
        stream(pa.table({"carrier": pa.RunEndEncodedArray.from_arrays(pa.array([2**30], pa.int32()), ["x"])})),
        STREAM,
    ),
    "arrow lists": lambda: (stream(pa.table({"carrier": [[1] * 10_000] * 10})), STREAM),
    "arrow columns": lambda: (stream(pa.table({f"c{n}": [1] for n in range(90)})), STREAM),
    "arrow cells": lambda: (stream(pa.table({f"c{n}": pa.nulls(19_000) for n in range(60)})), STREAM),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_would_become_much(send: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arrow_messages, parquet_pages):
        monkeypatch.setattr(module, "MOST_COLUMNS", 70 if module is arrow_messages else 50)
    body, kind = TABLES[name]()
    assert len(body) < 9 << 20
    routes = ["/invocations"] if kind in PARQUET else ["/invocations", "/predict"]
    for path in routes:
        status, told = send(path, body, content_type=kind.decode())
        assert status in (400, 413, 422), told
    if name in ("arrow dictionary", "arrow zstd", "arrow lz4"):
        # The same as a file.
        sink = pa.BufferOutputStream()
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        status, told = send("/predict", sink.getvalue().to_pybytes())
        assert status == 413, told


def test_tables_within_the_limits_are_read_whoever_wrote_them() -> None:
    table = pa.table(
        {
            "number": [1.5, None, 3.0] * 70,
            "text": ["a", None, "ccc"] * 70,
            "same": pa.array(["x", "y", "x"] * 70).dictionary_encode(),
            "flag": [True, False, None] * 70,
            "when": pa.array([0, 10**15, None] * 70, pa.timestamp("us", "UTC")),
        }
    )
    rows = table.to_pylist()
    for compression in (None, "zstd", "lz4"):
        assert read_frame(stream(table, compression), EndpointSettings()).to_dicts() == rows
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            for batch in table.to_batches(max_chunksize=50):
                writer.write_batch(batch)
        assert read_frame(sink.getvalue().to_pybytes(), EndpointSettings()).to_dicts() == rows
    frame = pl.DataFrame(table)
    for write in (frame.write_ipc, frame.write_ipc_stream):
        for packed in ("uncompressed", "zstd", "lz4"):
            sink = io.BytesIO()
            write(sink, compression=packed)  # type: ignore[operator]
            assert read_frame(sink.getvalue(), EndpointSettings()).to_dicts() == rows
    for options in (
        {}, {"compression": "gzip"}, {"compression": "brotli"}, {"compression": "none"}, {"row_group_size": 7},
        {"data_page_version": "2.0"}, {"use_dictionary": False}, {"version": "1.0"}, {"data_page_size": 64},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "when": "DELTA_BINARY_PACKED"}},
    ):  # fmt: skip
        assert read_frame(parquet(table, **options), EndpointSettings(), PARQUET[0]).to_dicts() == rows, options
    sink = io.BytesIO()
    frame.write_parquet(sink)
    assert read_frame(sink.getvalue(), EndpointSettings(), PARQUET[0]).to_dicts() == rows


@pytest.mark.slow
def test_damaged_tables_are_refused_and_take_nothing(send: Any) -> None:
    """Whatever byte of a header, a footer or a page says something else."""
    table = pa.table({name: [value] * 3 for name, value in ROW.items()})
    chance = np.random.default_rng(0)
    for body, kind in (
        (stream(table), STREAM), (stream(table, "zstd"), STREAM), (parquet(table), PARQUET[0]),
        (parquet(table, compression="zstd", use_dictionary=False), PARQUET[0]),
    ):  # fmt: skip
        for _ in range(60):
            broken = bytearray(body)
            for place in chance.integers(8, len(body), chance.integers(1, 4)):
                broken[place] = chance.integers(256)
            try:
                read_frame(bytes(broken), EndpointSettings(), kind)
            except RequestError:
                continue
        for cut in (8, 12, 40, len(body) // 2, len(body) - 9, len(body) - 1):
            with pytest.raises(RequestError):
                read_frame(body[:cut] if kind in PARQUET or cut < len(body) // 2 + 1 else b"", EndpointSettings(), kind)
    for size in (2**31 - 1, 2**31, 2**32 - 1):
        body = parquet(table)
        lying = body[:-8] + (size & 0xFFFFFFFF).to_bytes(4, "little") + b"PAR1"
        assert send("/invocations", lying, content_type=PARQUET[0].decode())[0] == 400


TIMES = {
    "date32": pa.array([2**31 - 1], pa.date32()),
    "date64": pa.array([2**62 // 86_400_000 * 86_400_000], pa.date64()),
    "seconds": pa.array([2**62], pa.timestamp("s")),
    "microseconds": pa.array([-(2**62)], pa.timestamp("us", "UTC")),
    "zone": pa.array([0], pa.timestamp("us", "Mars/Olympus")),
    "duration": pa.array([2**62], pa.duration("s")),
    "decimal": pa.array([10**60], pa.decimal256(70, 3)),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([2**31 - 1], pa.date32())),
    "unsigned": pa.array([2**64 - 1], pa.uint64()),
}


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("column", ["departs_at", "booked_on", "seats"])
def test_values_that_no_calendar_has(send: Any, name: str, column: str) -> None:
    table = pa.table({**{key: [value] for key, value in ROW.items() if key != column}, column: TIMES[name]})
    for path, body, kind in (("/predict", stream(table), STREAM), ("/invocations", stream(table), STREAM)):
        assert send(path, body, content_type=kind.decode())[0] in (400, 422)


def tensor(**changes: Any) -> bytes:
    one = {"name": "distance", "shape": [1], "datatype": "FP64", "data": [1.0], **changes}
    return json.dumps({"inputs": [one]}).encode()


def binary(datatype: str, shape: list[int], data: bytes) -> tuple[bytes, dict[str, str]]:
    inputs = [{"name": "distance", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}]
    head = json.dumps({"inputs": inputs}).encode()
    return head + data, {"inference_header_content_length": str(len(head))}


@pytest.mark.slow
def test_shapes_are_held_against_the_data(send: Any) -> None:
    infer = "/v2/models/delays/infer"
    for shape in (
        [2**62] * 100_000, [1] * 100_000, [-1], [-1, -1], [0], [], [2**63], [2**40, 0], [10**18, 10**18], [3],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
    ):  # fmt: skip
        status, told = send(infer, tensor(shape=shape))
        assert status in (400, 413), shape
        assert len(told) < 20_000
    assert (
        send(infer, b'{"inputs":[{"name":"distance","shape":[%b],"datatype":"FP64","data":[1]}]}' % (b"9" * 4000))[0]
        == 413
    )
    for datatype, shape, data in (
        ("BOOL", [8_000_000], b"\1" * 8_000_000), ("BYTES", [2_000_000], bytes(8_000_000)),
        ("BYTES", [1], bytes(8_000_000)), ("BYTES", [1], b"\xff\xff\xff\xff"), ("BYTES", [1], b"\xff\xff\xff\x7fab"),
        ("INT8", [1], bytes(5_000_000)), ("FP64", [2], bytes(8)), ("FP64", [1], bytes(7)),
        ("BYTES", [1], struct.pack("<I", 2) + b"\xed\xa0"),
    ):  # fmt: skip
        body, headers = binary(datatype, shape, data)
        assert send(infer, body, **headers)[0] in (400, 413), datatype
    for size in (-1, 2**63, True, "8", 1e300, None):
        body = tensor(parameters={"binary_data_size": size}, data=None)
        assert send(infer, body, inference_header_content_length=str(len(body)))[0] == 400
    good = {
        "inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in ROW.items()]
    }
    for outputs in ([{"name": "predictions"}] * 2, [{"name": "predictions"}] * 50_000, [{"name": "x"}]):
        assert send(infer, json.dumps({**good, "outputs": outputs}).encode())[0] == 400


JSON = {
    "objects": (b"{}", 1_200_000),
    "lists": (b"[]", 1_200_000),
    "small objects": (b'{"a":1}', 500_000),
    "texts": (b'"a"', 1_600_000),
    "numbers": (b"1.5", 1_600_000),
    "escaped texts": (rb'"\"\\"', 1_180_000),
    "nested": (b"[[[[[[]]]]]]", 100_000),
}
BODIES = (
    ("/score", b'{"instances":[[%b]]}'),
    ("/predict", b'{"rows":[%b]}'),
    ("/invocations", b'{"dataframe_records":[%b]}'),
    ("/invocations", b'{"dataframe_split":{"columns":["a"],"data":[%b]}}'),
    ("/invocations", b'{"inputs":{"distance":[%b]}}'),
    ("/v1/models/delays:predict", b'{"instances":[%b]}'),
    ("/v2/models/delays/infer", b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP64","data":[%b]}]}'),
    ("/labels", b'{"labels":[%b]}'),
    ("/predict", b'{"inputs":' + json.dumps(ROW).encode() + b',"keys":[%b]}'),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON)
def test_json_of_many_values(send: Any, store: Store, name: str) -> None:
    item, count = JSON[name]
    many = b",".join([item] * count)
    for path, body in BODIES if name == "texts" else BODIES[:2]:
        status, told = send(path, body.replace(b"%b", many))
        assert status in (400, 413, 422), (path, told[:200])
        assert len(told) < 20_000
    assert (fold_predictions(store, "delays"), fold_labels(store, "delays")) == (0, 0)


def test_separators_within_texts_are_not_counted() -> None:
    limits = EndpointSettings(max_rows=100, max_cells=1_000)
    text = json.dumps({"rows": [{"text": '{"a": [1, 2], "b": {}}, \\' * 5_000}]}).encode()
    assert len(text) > 100_000
    check_json(text, limits)
    with pytest.raises(TooLargeError):
        check_json(text + b"[]," * 2_000, limits)
    with pytest.raises(TooLargeError):
        check_json(b'{"rows":[' + b"[]," * 600 + b'"' + b"x" * 70_000 + b'"]}', limits)
    # A digit string is a text, a number of so many digits is not taken.
    check_json(b'{"rows":["' + b"1" * 70_000 + b'"]}', limits)
    with pytest.raises(TooLargeError):
        check_json(b'{"rows":["' + b"x" * 70_000 + b'",' + b"1" * 1_000 + b"]}", limits)
    quoted = b'a,b\n"' + b'x,""y""\n' * 20_000 + b'",2\n'
    check_csv(quoted, limits)
    with pytest.raises(RequestError):
        check_csv(quoted + b"1,2\n" * 101, limits)
    with pytest.raises(TooLargeError):
        check_csv(quoted + b"," * 1_001, limits)


@pytest.mark.parametrize(
    "body",
    [
        b"distance\n" + b"\n" * 2_000_000,
        b"distance\n" + b"1\n" * 1_500_000,
        b"distance\r" + b"1\r" * 1_500_000,
        b"distance\r\n" + b"1\r\n" * 1_500_000,
        b"," * 3_000_000,
        b'distance\na"' + b",\n" * 3_000_000 + b'"',
        b'distance\na"' + b"\n" * 1_000_000 + b'"',
        b'distance\na"' + b"," * 6_000_000 + b'"',
        b'"' + b"x" * 2_000_000,
        b'distance\n"' + b"1\n" * 3_000_000,
        b'"",' * 2_600_000,
        "\U0001f600".encode() + b"a" * 5_000_000,
        b"distance\n" + b"1" * 5_000,
        b"seats\n" + b"1" * 5_000,
        b"seats\n-" + b"1" * 4_000,
        b"distance\n1e99999",
        b"distance\nnan",
        b"distance\ninfinity",
        b"distance\n\xed\xa0\x80",
        b"distance\n\xff",
        b"distance\n\x00",
    ],
    ids=range(21),
)
def test_csv_of_many_lines_cells_and_strange_letters(send: Any, store: Store, body: bytes) -> None:
    status, told = send("/invocations", body, content_type="text/csv")
    assert status in (400, 413), told[:200]
    assert len(told) < 20_000
    assert fold_predictions(store, "delays") == 0


@pytest.mark.slow
def test_packed_bodies(send: Any) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        assert send("/predict", pack(body), content_encoding=encoding)[0] == 200
        assert send("/predict", pack(b" " * (30 << 20)), content_encoding=encoding)[0] == 413
        assert send("/predict", pack(body)[:-5], content_encoding=encoding)[0] == 400
    for encoding in ("br", "zstd", "gzip, gzip", "compress", "gzip,deflate"):
        assert send("/predict", body, content_encoding=encoding)[0] == 415


def test_long_rows_keys_and_labels_are_not_logged(send: Any, store: Store) -> None:
    long = "x" * 2_000_000
    for path, body in (
        ("/predict", {"rows": [{**ROW, "carrier": long}]}),
        ("/predict", {"rows": [ROW, {**ROW, "carrier": "é" * 600_000}]}),
        ("/predict", {"inputs": ROW, "key": long}),
        ("/invocations", {"instances": [{**ROW, "carrier": long}]}),
        ("/labels", {"labels": [{"key": long, "value": 1}]}),
        ("/labels", {"labels": [{"key": "a", "value": long}]}),
    ):
        status, told = send(path, json.dumps(body).encode())
        assert (status, len(told) < 20_000) == (413, True), path
    labels = [{"key": number, "value": True} for number in range(MOST_ROWS + 1)]
    assert send("/labels", json.dumps({"labels": labels}).encode())[0] in (413, 422)
    assert (fold_predictions(store, "delays"), fold_labels(store, "delays")) == (0, 0)
    assert send("/predict", json.dumps({"inputs": ROW, "key": "k" * 10_000}).encode())[0] == 200


NONSENSE = [
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b"1" * 5000, b"-" + b"1" * 5000, b"0." + b"1" * 5000,
    b"1e5000", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"1" * 4000, b"null", b"true", b'""', b"[]", b"{}",
]  # fmt: skip


@pytest.mark.slow
def test_nonsense_on_every_route_is_the_clients_fault(send: Any) -> None:
    row = json.dumps(ROW).encode()
    for value in NONSENSE:
        for path, body in (
            ("/predict", b'{"rows":[%b]}'), ("/predict", b'{"rows":%b}'), ("/predict", b"%b"),
            ("/predict", b'{"inputs":{"distance":%b}}'), ("/predict", b'{"inputs":' + row + b',"key":%b}'),
            ("/predict", b'{"inputs":' + row + b',"event_at":%b}'),
            ("/predict", b'{"inputs":' + row + b',"explain":%b}'),
            ("/labels", b'{"labels":[{"key":%b,"value":1}]}'), ("/labels", b'{"labels":[{"key":1,"value":%b}]}'),
            ("/labels", b'{"labels":%b}'), ("/labels", b'{"labels":[{"key":1,"value":1,"event_at":%b}]}'),
            ("/invocations", b'{"instances":[[%b]]}'), ("/invocations", b'{"inputs":{"distance":%b}}'),
            ("/invocations", b'{"dataframe_split":{"columns":%b,"data":[]}}'),
            ("/invocations", b'{"dataframe_split":%b}'),
            ("/v1/models/delays:predict", b'{"instances":%b}'), ("/v1/models/delays:explain", b'{"instances":[%b]}'),
            ("/score", b'{"instances":[{"distance":%b}]}'), ("/v2/models/delays/infer", b'{"inputs":[%b]}'),
            ("/v2/models/delays/infer", b'{"inputs":[{"name":"distance","shape":[%b],"datatype":"FP64","data":[1]}]}'),
            ("/v2/models/delays/infer", b'{"inputs":[{"name":"distance","shape":[1],"datatype":"FP64","data":[%b]}]}'),
            ("/v2/models/delays/infer", b'{"inputs":[{"name":%b,"shape":[1],"datatype":"FP64","data":[1]}]}'),
            ("/v2/models/delays/infer", b'{"id":%b,"inputs":[]}'), ("/v2/repository/index", b"%b"),
        ):  # fmt: skip
            status, told = send(path, body.replace(b"%b", value))
            assert status < 500, (path, value[:20], told[:200])
            told.decode()


def test_the_limits_are_settings(release: Any, route: Any, local: Any) -> None:
    from everloop.serving.endpoint_state import set_options

    route(release().key)
    app = local()
    store = app.app.service._store
    set_options(store, "delays", {"max_rows": "2", "max_row_bytes": "500", "max_unpacked_bytes": "4000"})
    app.reloader.reload()
    assert app.post("/predict", {"rows": [ROW] * 2})[0] == 200
    assert app.post("/predict", {"rows": [ROW] * 3})[0] == 422
    assert app.post("/predict", {"rows": [{**ROW, "carrier": "x" * 600}]})[0] == 413
    assert app.post("/labels", {"labels": [{"key": n, "value": True} for n in range(3)]})[0] == 422
    table = pa.table({name: [value] * 2 for name, value in {**ROW, "carrier": "x" * 3_000}.items()})
    assert app.post("/predict", stream(table))[0] == 413


@pytest.mark.slow
def test_nothing_stands_behind_the_last_message_that_is_counted() -> None:
    schema = pa.schema([("carrier", pa.string())])
    empty, large = (pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=schema) for texts in ([], ["x"]))
    for number in (
        arrow_messages.MOST_MESSAGES - 2,
        *range(arrow_messages.MOST_MESSAGES, 2 + arrow_messages.MOST_MESSAGES),
    ):
        for new in (pa.ipc.new_stream, pa.ipc.new_file):
            sink = io.BytesIO()
            with new(sink, schema) as writer:
                for _ in range(number):
                    writer.write_batch(empty)
                writer.write_batch(large)
            if number < arrow_messages.MOST_MESSAGES:
                assert read_frame(sink.getvalue(), EndpointSettings()).height == 1
            else:
                with pytest.raises(RequestError, match="parts"):
                    arrow_messages.check_messages(sink.getvalue(), EndpointSettings())
