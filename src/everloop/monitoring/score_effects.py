"""Which inputs move the score: an additive model of the score over the cells of the features.

The model is fitted once, to held-out rows that the real model has scored. If a window has other shares of a feature's
cells than the reference, the feature's part of the score's movement is Σ (share now − share before) · effect of the
cell. Parts of correlated features do not count the same movement twice, because the effects are fitted together.
Source: T. Hastie, R. Tibshirani, Generalized additive models, Statistical Science 1 (1986): backfitting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.data.sketches.block_counts import cell_codes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.data.sketches.bins import Bins
    from everloop.data.sketches.column_sketches import Sketch
    from everloop.records import Json

_MOST_ROWS = 20_000
_PASSES = 8
_SHRINKAGE = 10.0
"""Rows without effect that each cell is given, so that rare cells have small effects."""


@dataclass(frozen=True, slots=True)
class ScoreEffects:
    """Effects of cells on the score.

    Attributes:
        effects: by feature, the effect of each cell in the unit of the score.
        deviation: standard deviation of the score over the rows of the fit.
        explained: share of the score's variance that the additive model explains, 0 to 1.
    """

    effects: dict[str, tuple[float, ...]]
    deviation: float
    explained: float

    def importance(self, reference: Mapping[str, Sketch]) -> dict[str, float]:
        """Return the share of each feature in the spread of the score: standard deviations of its effects, sum 1."""
        import numpy as np

        sizes: dict[str, float] = {}
        for name, effect in self.effects.items():
            if name in reference:
                counts = reference[name].array()
                shares, values = counts / max(counts.sum(), 1.0), np.asarray(effect)
                sizes[name] = float(np.sqrt(max(0.0, (shares * values**2).sum() - (shares * values).sum() ** 2)))
        total = sum(sizes.values())
        return {name: size / total if total > 0 else 0.0 for name, size in sizes.items()}

    def movement(self, reference: Mapping[str, Sketch], live: Mapping[str, Sketch]) -> dict[str, float]:
        """Return by how much each feature moves the mean score of a window, in the unit of the score."""
        import numpy as np

        parts: dict[str, float] = {}
        for name, effect in self.effects.items():
            if name not in reference or name not in live or not live[name].rows:
                continue
            before, now = reference[name].array(), live[name].array()
            parts[name] = float((now / now.sum() - before / before.sum()) @ np.asarray(effect))
        return parts

    def to_json(self) -> dict[str, Json]:
        return {
            "effects": {name: list(effect) for name, effect in self.effects.items()},
            "deviation": self.deviation,
            "explained": self.explained,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ScoreEffects:
        effects = {str(name): tuple(map(float, effect)) for name, effect in data["effects"].items()}
        return cls(effects, float(data["deviation"]), float(data["explained"]))


def fit_score_effects(inputs: pl.DataFrame, bins: Mapping[str, Bins], score: pl.Series) -> ScoreEffects | None:
    """Fit the additive model; None if the score is not a number or does not vary.

    Args:
        inputs: the features of the scored rows, one row per score.
        bins: the cells by feature.
    """
    import numpy as np
    import polars as pl

    values = score.cast(pl.Float64, strict=False).to_numpy()
    known = np.isfinite(values)
    step = max(1, int(known.sum()) // _MOST_ROWS)
    chosen = np.flatnonzero(known)[::step]
    target = values[chosen]
    if len(target) < 2 or target.min() == target.max():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(target.std())
    if not (deviation > 0 and np.isfinite(deviation)):
        # The scores are so large or so small that their squares are not numbers.
        return None
    codes = {name: cell_codes(inputs[name], cells)[chosen] for name, cells in bins.items() if name in inputs.columns}
    effects = {name: np.zeros(bins[name].cells) for name in codes}
    centre = target.mean()
    residual = target - centre
    for _ in range(_PASSES):
        for name, code in codes.items():
            residual += effects[name][code]
            effects[name] = _cell_means(residual, code, bins[name].cells)
            residual -= effects[name][code]
    explained = max(0.0, 1 - float(residual.var() / target.var()))
    return ScoreEffects({name: tuple(map(float, effect)) for name, effect in effects.items()}, deviation, explained)


def _cell_means(values: npt.NDArray[np.float64], code: npt.NDArray[np.int64], cells: int) -> npt.NDArray[np.float64]:
    import numpy as np

    counts = np.bincount(code, minlength=cells)
    means = np.bincount(code, weights=values, minlength=cells) / (counts + _SHRINKAGE)
    # The effects of a feature have mean 0 over its rows, so that they do not trade constants with each other.
    return np.asarray(means - (counts * means).sum() / max(1, counts.sum()) * (counts > 0))
