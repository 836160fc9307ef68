"""Tables, figures, images and histograms, rendered as bytes that a browser or another tool can open.

Objects of plotting and imaging libraries are recognised by their methods, so no library is imported that the caller has
not imported already. Only tables need polars, which everloop depends on.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.stores.tables.foreign_frames import read_frame

if TYPE_CHECKING:
    import polars as pl

    from everloop.records import Json

BINS = 64
PARQUET = "application/vnd.apache.parquet"
PLOTLY = "application/vnd.plotly.v1+json"
VEGA_LITE = "application/vnd.vegalite.v5+json"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Bytes with their media type, a file suffix, and metadata such as rows or size."""

    data: bytes
    media: str
    suffix: str
    meta: dict[str, Json] = field(default_factory=dict)


def frame_of(value: Any) -> pl.DataFrame:
    """A table of any library as a polars frame: anything with Arrow's C stream, a dict of columns, a list of rows.

    Raises:
        UsageError: the value is not a table.
    """
    import polars as pl

    try:
        table = read_frame(value)
    except DataError as error:
        raise UsageError(error.message, help=error.help) from error
    if table is not None:
        return table
    try:
        if isinstance(value, dict | list) or hasattr(value, "__arrow_c_stream__") or hasattr(value, "__array__"):
            return pl.DataFrame(value)
    except Exception as error:
        # Any error of polars or of the other library means that the value is not a table.
        raise UsageError(
            f"A value of type {type(value).__name__} cannot be read as a table: {error}.",
            help="Pass a polars, pandas or Arrow table, or a dict of columns.",
        ) from error
    raise UsageError(
        f"A value of type {type(value).__name__} is not a table.",
        help="Pass a polars, pandas or Arrow table, or a dict of columns.",
    )


def render_table(value: Any) -> Rendered:
    frame = frame_of(value)
    buffer = io.BytesIO()
    try:
        frame.write_parquet(buffer)
    except Exception as error:
        # Parquet cannot hold Python objects in a column; polars raises various errors for that.
        raise UsageError(f"The table cannot be stored as Parquet: {error}.") from error
    meta = {"rows": frame.height, "columns": {name: str(kind) for name, kind in frame.schema.items()}}
    return Rendered(buffer.getvalue(), PARQUET, ".parquet", meta)


def render_figure(figure: Any) -> Rendered:
    """A matplotlib figure (or its axes) as PNG; a plotly or altair figure as JSON that can be drawn again.

    Raises:
        UsageError: the value is not a figure of these libraries.
    """
    library = type(figure).__module__.partition(".")[0]
    if library == "plotly" and callable(getattr(figure, "to_json", None)):
        return Rendered(str(figure.to_json()).encode(), PLOTLY, ".plotly.json")
    if library == "altair" and callable(getattr(figure, "to_json", None)):
        return Rendered(str(figure.to_json()).encode(), VEGA_LITE, ".vl.json")
    if not callable(getattr(figure, "savefig", None)):
        figure = getattr(figure, "figure", figure)  # axes and seaborn's grids have this attribute
    if not callable(getattr(figure, "savefig", None)):
        raise UsageError(
            f"A value of type {type(figure).__name__} is not a figure.",
            help="Pass a figure of matplotlib, plotly or altair.",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return Rendered(buffer.getvalue(), "image/png", ".png")


def render_image(image: Any) -> Rendered:
    """A PIL image, or an array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), as PNG.

    Arrays hold integers from 0 to 255, booleans, or floats from 0.0 (black) to 1.0 (white).

    Raises:
        UsageError: the value is not an image.
    """
    if callable(getattr(image, "save", None)) and hasattr(image, "getbbox"):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        width, height = image.size
        return Rendered(buffer.getvalue(), "image/png", ".png", {"width": width, "height": height})
    import numpy as np

    if callable(getattr(image, "detach", None)):
        image = image.detach().cpu()  # a tensor of torch
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise UsageError(
            f"An array of shape {np.asarray(image).shape} is not an image.",
            help="Pass the shape (height, width), or (height, width, channels) with 1, 3 or 4 channels.",
        )
    if pixels.dtype.kind in "fb":
        pixels = np.nan_to_num(np.clip(pixels.astype(np.float64), 0, 1)) * 255
    elif pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise UsageError(
            f"The image's values, of type {pixels.dtype}, are not valid colours.",
            help="Pass integers from 0 to 255, or floats from 0.0 to 1.0.",
        )
    pixels = np.rint(pixels).astype(np.uint8)
    height, width, channels = pixels.shape
    return Rendered(
        _png(pixels.tobytes(), width, height, channels), "image/png", ".png", {"width": width, "height": height}
    )


def count_values(values: Any, bins: int = BINS) -> dict[str, Json]:
    """Counts in `bins` bins of equal width between the smallest and the largest finite value.

    Returns:
        `edges` (bins + 1), `counts` (bins), and the numbers of `nan` and `infinite` values.

    Raises:
        UsageError: the values are not numbers.
    """
    import numpy as np

    if callable(getattr(values, "detach", None)):
        values = values.detach().cpu()
    try:
        numbers = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise UsageError(f"A histogram needs numbers: {error}.") from error
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if not math.isfinite(high - low):
        low, high = low / 2, high / 2  # otherwise the range would be infinite
        finite = np.clip(finite, low, high)
    counts, edges = np.histogram(finite, bins=bins, range=(low, high) if low < high else (low - 0.5, low + 0.5))
    missing = int(np.isnan(numbers).sum())
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "nan": missing,
        "infinite": int(numbers.size - finite.size) - missing,
    }


def _png(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """PNG, 8 bits a channel. Source: PNG specification, third edition, sections 5 and 11.2."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = width * channels
    # Each row starts with the number of its filter; 0 means no filter.
    lines = b"".join(b"\0" + pixels[start : start + row] for start in range(0, row * height, row))
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
