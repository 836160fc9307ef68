"""Turn free texts and vectors into numbers that are sketched like any other: `comment.length`, `embedding.norm`, ….

`choose_columns` looks at the reference and decides by content: texts that are long and mostly distinct are free text,
not categories; lists of numbers of one length are vectors. It returns a spec for each, with what must be remembered of
the reference. `derive` adds the numbers to any later frame, and `sketch_frame` then sketches them.

| column | part | value |
|---|---|---|
| text | `length` | characters |
| | `words` | words |
| | `unknown_words` | share of the words that are not among the 4,096 most frequent of the reference |
| | `digits`, `non_ascii` | share of the characters |
| vector | `norm` | Euclidean length |
| | `cosine` | cosine of the angle to the mean vector of the reference, −1 to 1 |
| | `reconstruction` | distance from the principal components of the reference |

Texts that are null and vectors that are null, of another length or not finite have missing values in all parts.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.data.sketches.bins import BINS, CATEGORIES, Bins, choose_bins
from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.records import Json

    Array = npt.NDArray[np.float64]

TEXT_PARTS = ("length", "words", "unknown_words", "digits", "non_ascii")
VECTOR_PARTS = ("norm", "cosine", "reconstruction")

VOCABULARY = 4_096
_SAMPLE = 5_000
_SLICE = 20_000
_LEAST_LENGTH = 20
_LEAST_WORDS = 3
_DISTINCT = 0.5
_COMPONENTS = 8
_EXPLAINED = 0.65
_SAME_LENGTH = 0.9


@dataclass(frozen=True, slots=True)
class TextSpec:
    """A column of free texts. `vocabulary`: checksums (CRC-32) of frequent lower-case words, rising."""

    vocabulary: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return TEXT_PARTS


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """A column of vectors with `dimension` numbers each.

    Attributes:
        centroid: mean vector of the reference, as little-endian 32-bit floats.
        components: principal components of the reference, row by row, likewise.
    """

    dimension: int
    centroid: bytes
    components: bytes

    @property
    def parts(self) -> tuple[str, ...]:
        return VECTOR_PARTS

    def arrays(self) -> tuple[Array, Array]:
        """Return centroid and components, shapes (dimension,) and (components, dimension)."""
        import numpy as np

        centroid, components = (
            np.frombuffer(content, dtype="<f4").astype(np.float64) for content in (self.centroid, self.components)
        )
        return centroid, components.reshape(-1, self.dimension)


DerivedSpec = TextSpec | VectorSpec


@dataclass(frozen=True, slots=True)
class ChosenColumns:
    """What is sketched of a frame.

    Attributes:
        bins: the cells by feature, including those of derived numbers.
        skipped: features that cannot be monitored, with the reason.
        specs: by text or vector feature, how its numbers are derived. Pass them to `derive` before sketching.
    """

    bins: dict[str, Bins]
    skipped: dict[str, str]
    specs: dict[str, DerivedSpec]


def choose_columns(
    frame: pl.DataFrame, features: Sequence[str], *, bins: int = BINS, categories: int = CATEGORIES
) -> ChosenColumns:
    """Choose specs for texts and vectors and cells for everything else.

    The arguments are those of `choose_bins`.

    Raises:
        EmptySampleError: the reference has no rows.
        UsageError: as `choose_bins`; or a feature has the name of a derived number.
    """
    if frame.height == 0:
        raise EmptySampleError("A baseline needs rows, but the reference has none.")
    specs = choose_specs(frame, features)
    others = [name for name in features if name not in specs]
    chosen, skipped = choose_bins(frame, others, bins=bins, categories=categories)
    if not specs:
        return ChosenColumns(chosen, skipped, specs)
    derived = derive(frame.select(list(specs)), specs)
    parts = [column for column in derived.columns if column not in specs]
    more, empty = choose_bins(derived, parts, bins=bins, categories=categories)
    return ChosenColumns(chosen | more, skipped | empty, specs)


def choose_specs(frame: pl.DataFrame, features: Sequence[str]) -> dict[str, DerivedSpec]:
    """Return how numbers are derived from the features that are free texts or vectors.

    Raises:
        UsageError: a feature has the name of a derived number.
    """
    specs = {name: spec for name in features if name in frame.columns and (spec := _spec_of(frame[name]))}
    taken = [part for name, spec in specs.items() for part in _names(name, spec) if part in features]
    if taken:
        raise UsageError(
            f"The feature '{taken[0]}' has the name of a number that is derived from '{taken[0].rpartition('.')[0]}'.",
            help="Rename one of the two columns.",
        )
    return specs


def derive(
    frame: pl.DataFrame, specs: Mapping[str, DerivedSpec], *, columns: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """Return the frame with the derived numbers as more columns, named `column.part`.

    Args:
        frame: one row per case. A column that is absent or of another type has missing values in all parts.
        specs: by feature, as `choose_columns` returns them.
        columns: names of columns by feature, if they differ.
    """
    import polars as pl

    found: list[pl.Series] = []
    for name, spec in specs.items():
        column = (columns or {}).get(name, name)
        values = frame[column] if column in frame.columns else pl.Series(column, [None] * frame.height, dtype=pl.Null)
        # Slices bound the memory: words of texts and vectors are larger than the numbers derived from them.
        slices = [_parts_of(values.slice(start, _SLICE), spec) for start in range(0, max(1, len(values)), _SLICE)]
        together = pl.concat(slices)
        found += [together[part].alias(name) for part, name in zip(spec.parts, _names(column, spec), strict=True)]
    return frame.with_columns(found) if found else frame


def is_free_text(values: pl.Series) -> bool:
    """Return whether most texts of a column are distinct and have several words. Keys of one word are not free text."""
    import polars as pl

    if values.dtype != pl.String:
        return False
    known = values.drop_nulls()
    sample = known.gather_every(max(1, len(known) // _SAMPLE))
    if sample.is_empty():
        return False
    words, characters = int(sample.str.count_matches(r"\w+").sum()), int(sample.str.len_chars().sum())
    several = words >= _LEAST_WORDS * len(sample) and characters >= _LEAST_LENGTH * len(sample)
    return several and sample.n_unique() >= _DISTINCT * len(sample)


def _names(column: str, spec: DerivedSpec) -> list[str]:
    return [f"{column}.{part}" for part in spec.parts]


def spec_to_json(spec: DerivedSpec) -> dict[str, Json]:
    if isinstance(spec, TextSpec):
        return {"vocabulary": list(spec.vocabulary)}
    centroid, components = (base64.b64encode(content).decode() for content in (spec.centroid, spec.components))
    return {"dimension": spec.dimension, "centroid": centroid, "components": components}


def spec_from_json(data: Mapping[str, Json]) -> DerivedSpec:
    if "vocabulary" in data:
        return TextSpec(tuple(map(int, data["vocabulary"])))
    return VectorSpec(int(data["dimension"]), base64.b64decode(data["centroid"]), base64.b64decode(data["components"]))


def _spec_of(values: pl.Series) -> DerivedSpec | None:
    if is_free_text(values):
        words = _words(values.drop_nulls()).explode().drop_nulls().alias("x")
        counted = words.value_counts().sort(["count", "x"], descending=[True, False])
        return TextSpec(tuple(sorted({_checksum(word) for word in counted["x"].head(VOCABULARY)})))
    if _holds_vectors(values):
        return _vector_spec(values)
    return None


def _parts_of(values: pl.Series, spec: DerivedSpec) -> pl.DataFrame:
    import polars as pl

    if isinstance(spec, TextSpec) and values.dtype in (pl.String, pl.Categorical, pl.Enum):
        return _text_parts(values.cast(pl.String), spec)
    if isinstance(spec, VectorSpec) and _holds_vectors(values):
        return _vector_parts(values, spec)
    return pl.DataFrame(
        {part: [None] * len(values) for part in spec.parts}, schema=dict.fromkeys(spec.parts, pl.Float64)
    )


def _words(texts: pl.Series) -> pl.Series:
    return texts.str.to_lowercase().str.extract_all(r"\w+")


def _checksum(word: str) -> int:
    # Polars' own hash may change with its version.
    return zlib.crc32(word.encode())


def _text_parts(texts: pl.Series, spec: TextSpec) -> pl.DataFrame:
    import polars as pl

    frame = pl.DataFrame({"x": texts, "w": _words(texts)})
    vocabulary = set(spec.vocabulary)
    distinct = frame["w"].explode().drop_nulls().unique()
    known = pl.Series([word for word in distinct if _checksum(word) in vocabulary], dtype=pl.String)
    length = pl.col("x").str.len_chars().cast(pl.Float64)
    found = pl.col("w").list.eval(pl.element().is_in(known.implode())).list.sum().cast(pl.Float64)
    words = pl.col("w").list.len().cast(pl.Float64)
    empty = pl.col("x").is_null()

    def share(count: pl.Expr, of: pl.Expr) -> pl.Expr:
        # Of an empty text, the share is 0.
        return pl.when(of > 0).then(count / of).otherwise(pl.when(empty).then(None).otherwise(0.0))

    return frame.select(
        length.alias("length"),
        words.alias("words"),
        share(words - found, words).alias("unknown_words"),
        share(pl.col("x").str.count_matches(r"\d"), length).alias("digits"),
        share(pl.col("x").str.count_matches(r"[^\x00-\x7F]"), length).alias("non_ascii"),
    )


def _holds_vectors(values: pl.Series) -> bool:
    import polars as pl

    dtype = values.dtype
    return isinstance(dtype, pl.List | pl.Array) and dtype.inner is not None and dtype.inner.is_numeric()


def _vector_spec(values: pl.Series) -> VectorSpec | None:
    import numpy as np
    import polars as pl

    known = values.drop_nulls()
    sample = known.gather_every(max(1, len(known) // _SAMPLE))
    lengths = sample.cast(pl.List(pl.Float64)).list.len()
    if lengths.is_empty():
        return None
    dimension = int(lengths.mode().min())  # type: ignore[arg-type]
    if dimension < 2 or (lengths == dimension).sum() < _SAME_LENGTH * len(lengths):
        return None
    _, matrix = _matrix(sample, dimension)
    if len(matrix) == 0:
        return None
    centroid = matrix.mean(axis=0)
    _, singular, directions = np.linalg.svd(matrix - centroid, full_matrices=False)
    variances = np.cumsum(singular**2)
    used = int(np.searchsorted(variances, _EXPLAINED * variances[-1])) + 1 if variances[-1] > 0 else 0
    components = directions[: min(used, _COMPONENTS, dimension - 1)]
    return VectorSpec(dimension, centroid.astype("<f4").tobytes(), components.astype("<f4").tobytes())


def _matrix(values: pl.Series, dimension: int) -> tuple[npt.NDArray[np.bool_], Array]:
    """Return which rows hold finite vectors of this length, shape (n,), and these vectors, shape (k, dimension)."""
    import numpy as np
    import polars as pl

    lists = values.cast(pl.List(pl.Float64))
    fits = (lists.list.len() == dimension).fill_null(value=False)
    numbers = lists.filter(fits).explode().to_numpy().reshape(-1, dimension)
    # Larger numbers could not be squared.
    finite = (np.abs(numbers) < 1e150).all(axis=1)
    usable = fits.to_numpy().copy()
    usable[usable] = finite
    return usable, numbers[finite]


def _vector_parts(values: pl.Series, spec: VectorSpec) -> pl.DataFrame:
    import numpy as np
    import polars as pl

    centroid, components = spec.arrays()
    usable, vectors = _matrix(values, spec.dimension)
    norms = np.linalg.norm(vectors, axis=1)
    scale = norms * np.linalg.norm(centroid)
    gaps = vectors - centroid
    rests = np.linalg.norm(gaps - gaps @ components.T @ components, axis=1)
    cosines = np.divide(vectors @ centroid, scale, out=np.full(len(norms), np.nan), where=scale > 0)
    filled = {}
    for part, numbers in zip(VECTOR_PARTS, (norms, cosines, rests), strict=True):
        column = np.full(len(values), np.nan)
        column[usable] = numbers
        filled[part] = pl.Series(part, column).fill_nan(None)
    return pl.DataFrame(filled)
