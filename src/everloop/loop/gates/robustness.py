"""A gate on robustness: what a candidate predicts for rows with nulls, noise, unseen categories or reordered columns.

Only what the endpoint would accept is tried: nulls in columns that accept nulls, and unseen categories in columns that
are open to them. Other rows are refused by the package's signature, and never reach the model.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_number
from everloop.loop.gates.gate_protocol import GateOutcome
from everloop.training.metric_tasks import check_metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import polars as pl

    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.packages.signature import Input
    from everloop.records import GateSeverity, Json, Outcome
    from everloop.training.class_decisions import ClassScores

UNSEEN_CATEGORY = "everloop-unseen-category"
MATERIAL_CHANGE = 0.1
"""A prediction changes materially if another class is predicted, a probability moves by this much, or a value moves by
this share of the standard deviation of all predictions."""
_SEED = 20_240_101


@dataclass(frozen=True, slots=True)
class Robust:
    """Gate: damaged inputs must not make the candidate much worse.

    Each kind of damage is applied by itself to all features at random places, and the metric of the damaged rows is
    compared with that of the undamaged rows by paired bootstrap. The gate passes if the whole 95 % interval of the loss
    is at most `worst_loss` for every kind, fails if all of it is above for one kind, and is undecided otherwise. The
    columns in another order must give exactly the same predictions.

    Args:
        nulls: share of the values that become null, such as 0.1. None: not tried.
        noise: standard deviation of the normal noise that is added to numbers, as a share of each column's own. None:
            not tried.
        unseen: share of the texts that become a category that training has never seen. None: not tried.
        permuted: whether the columns are tried in another order.
        worst_loss: the loss that you tolerate, in the unit of the metric.
        metric: name of a metric. Default: as for `NotWorseThan`.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the metric does not exist, or nothing is tried.

    Example:
        `Robust(nulls=0.1, unseen=0.1, worst_loss=0.05)`
    """

    nulls: float | None = 0.1
    noise: float | None = 0.1
    unseen: float | None = 0.1
    permuted: bool = True
    worst_loss: float = 0.05
    metric: str | None = None
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        for argument, value in (("nulls", self.nulls), ("noise", self.noise), ("unseen", self.unseen)):
            if value is None:
                continue
            check_number(f"Robust({argument}=)", value, above=0)
            if argument != "noise" and value > 1:
                raise UsageError(
                    f"Robust({argument}=) is {value!r}, but must be a share of at most 1.",
                    help=f"For a tenth of the values: Robust({argument}=0.1)",
                )
        check_number("Robust(worst_loss=)", self.worst_loss, least=0)
        if self.metric is not None:
            check_metric(self.metric)
        if self.nulls is None and self.noise is None and self.unseen is None and not self.permuted:
            raise UsageError(
                "Robust(…) tries no damage.", help="Set at least one of nulls=, noise=, unseen=, permuted=."
            )

    @property
    def name(self) -> str:
        kinds = [
            *([f"nulls {self.nulls:g}"] if self.nulls is not None else []),
            *([f"noise {self.noise:g}"] if self.noise is not None else []),
            *([f"unseen {self.unseen:g}"] if self.unseen is not None else []),
            *(["permuted columns"] if self.permuted else []),
        ]
        return f"robust to {', '.join(kinds)}"

    def check(self, context: GateContext) -> GateOutcome:
        predictor = context.predictor
        if predictor is None:
            return GateOutcome("undecided", "no loaded package was passed to try", {})
        frame = context.rows.select(context.features)
        if not frame.height:
            return GateOutcome("undecided", "there are no held-out rows to damage", {"rows": 0})
        outcomes: list[Outcome] = []
        messages: list[str] = []
        evidence: dict[str, Json] = {"allowed_loss": self.worst_loss, "rows": frame.height}
        if self.permuted:
            changed = _changed_by_order(context, frame)
            outcomes.append("fail" if changed else "pass")
            evidence["changed_by_order"] = changed
            if changed:
                messages.append(f"{changed:,} of {frame.height:,} predictions change with the order of the columns")
        for kind, damaged, columns in _damages(self, frame, predictor.signature.inputs):
            outcome, message, found = self._judge_damage(context, kind, damaged, columns)
            outcomes.append(outcome)
            messages.append(message)
            evidence[kind] = found
        if not messages:
            tried = "the order of the columns does not matter" if self.permuted else "no feature can have such damage"
            messages.append(tried)
        worst: Outcome = "fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "pass"
        return GateOutcome(worst, "; ".join(messages), evidence)

    def _judge_damage(
        self, context: GateContext, kind: str, damaged: pl.DataFrame, columns: list[str]
    ) -> tuple[Outcome, str, dict[str, Json]]:
        from everloop.loop.gates.gate_comparison import compare
        from everloop.training.metrics import scores_for

        metric = self.metric or context.metric
        predictions = context.predictor.answer_frame(damaged) if context.predictor is not None else None
        assert predictions is not None  # noqa: S101 - for the type checker
        found = compare(
            context.labels,
            scores_for(metric, *predictions),
            context.judged(metric),
            metric,
            self.worst_loss,
            "undamaged rows",
        )
        gain, low, high = (found.evidence.get(name) for name in ("gain", "low", "high"))
        changed = float(_materially_changed(context, predictions).mean())
        interval = f" [{-high:+.3f}, {-low:+.3f}]" if isinstance(low, float) and isinstance(high, float) else ""
        loss = f"{-gain:+.3f}" if isinstance(gain, float) else "undefined"
        message = (
            f"{kind}: {metric} loses {loss}{interval}, allowed {self.worst_loss:g}, and {changed:.0%} of the "
            f"predictions change materially"
        )
        evidence: dict[str, Json] = {
            "loss": -gain if isinstance(gain, float) else None,
            "low": -high if isinstance(high, float) else None,
            "high": -low if isinstance(low, float) else None,
            "changed_share": changed,
            "columns": list(columns),
        }
        return found.outcome, message, evidence


def _damages(
    gate: Robust, frame: pl.DataFrame, inputs: tuple[Input, ...]
) -> Iterator[tuple[str, pl.DataFrame, list[str]]]:
    """Yield each kind of damage that applies to some feature: its name, the damaged rows, and the features."""
    known = [item for item in inputs if item.name in frame.columns]
    if gate.nulls is not None:
        names = [item.name for item in known if item.nullable]
        if names:
            yield "nulls", _with_nulls(frame, names, gate.nulls), names
    if gate.noise is not None:
        names = [item.name for item in known if frame.schema[item.name].is_numeric()]
        if names:
            yield "noise", _with_noise(frame, names, gate.noise), names
    if gate.unseen is not None:
        names = [item.name for item in known if item.type == "string" and not item.closed]
        if names:
            yield "unseen", _with_unseen(frame, names, gate.unseen), names


def _with_nulls(frame: pl.DataFrame, names: list[str], share: float) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(
        pl.when(_chosen(name, "nulls", frame.height, share)).then(None).otherwise(pl.col(name)).alias(name)
        for name in names
    )


def _with_noise(frame: pl.DataFrame, names: list[str], scale: float) -> pl.DataFrame:
    """Add normal noise to numbers. Integers are rounded, and no value leaves the range of its column."""
    import numpy as np
    import polars as pl

    damaged = []
    for name in names:
        values = frame[name].cast(pl.Float64).fill_nan(None)
        spread, low, high = values.filter(values.is_finite()).std(), values.min(), values.max()
        if not isinstance(spread, float) or not np.isfinite(spread) or spread == 0:
            continue
        noisy = values + pl.Series(_generator(name, "noise").normal(0, scale * spread, frame.height))
        noisy = noisy.clip(low, high)  # type: ignore[arg-type]
        if frame.schema[name].is_integer():
            noisy = noisy.round()
        damaged.append(noisy.cast(frame.schema[name]).alias(name))
    return frame.with_columns(damaged)


def _with_unseen(frame: pl.DataFrame, names: list[str], share: float) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(
        pl.when(_chosen(name, "unseen", frame.height, share))
        .then(pl.lit(UNSEEN_CATEGORY))
        .otherwise(pl.col(name).cast(pl.String))
        .alias(name)
        for name in names
    )


def _chosen(name: str, kind: str, rows: int, share: float) -> pl.Series:
    import polars as pl

    return pl.Series(_generator(name, kind).uniform(size=rows) < share)


def _generator(name: str, kind: str) -> np.random.Generator:
    """Return a generator for one column: the same damage in every process, and independent between columns."""
    import numpy as np

    return np.random.default_rng([_SEED, zlib.crc32(f"{kind}:{name}".encode())])


def _changed_by_order(context: GateContext, frame: pl.DataFrame) -> int:
    """Return how many predictions differ if the columns are reversed or rotated."""
    import numpy as np

    predictor = context.predictor
    if predictor is None or frame.width < 2:
        return 0
    expected = predictor.answer_frame(frame)
    different = np.zeros(frame.height, dtype=bool)
    names = frame.columns
    for order in (names[::-1], names[1:] + names[:1]):
        found = predictor.answer_frame(frame.select(order))
        same = (found.scores == expected.scores) | (np.isnan(found.scores) & np.isnan(expected.scores))
        different |= ~same.reshape(frame.height, -1).all(axis=1)
        if expected.places is not None and found.places is not None:
            different |= found.places != expected.places
    return int(different.sum())


def _materially_changed(context: GateContext, damaged: ClassScores) -> Any:
    """Return for each row whether its prediction changed materially, shape (n,)."""
    import numpy as np

    before, after = context.scores, damaged.scores
    moved = np.abs(after - before).reshape(len(before), -1).max(axis=1)
    if context.task == "regression":
        return moved > MATERIAL_CHANGE * float(before.std())
    changed = moved > MATERIAL_CHANGE
    if context.places is not None and damaged.places is not None:
        changed |= context.places != damaged.places
    return changed
