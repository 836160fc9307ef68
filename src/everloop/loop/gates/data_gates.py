"""Gates on the data behind a candidate: leakage of the target, and the contract of its rows and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import ContractError, UsageError
from everloop.loop.declaration_checks import check_number
from everloop.loop.gates.gate_protocol import GateOutcome

if TYPE_CHECKING:
    import polars as pl

    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import Contract, GateSeverity, Json

_LATER_SHARE = 0.5
_DISTINCT_SHARE = 0.5
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class NoLeakage:
    """Gate: the model must not know at training what it cannot know at prediction time.

    The gate fails if one of these is found:

    - A single feature predicts the target nearly perfectly. Its score is |2 AUC - 1| for two classes, the absolute rank
      correlation for amounts, and the reduction of the error for more classes; see `column_scores`.
    - Held-out rows are in the training rows: with the same key, or with the same features although features hardly ever
      repeat among the training rows.
    - A feature is a time that is later than the row's own time in most rows.

    Args:
        too_good: features with at least this score are suspect, from 0 to 1.
        repeated: the share of the held-out rows that may repeat a training row.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate. A very good feature may
            be a legitimate one.

    Example:
        `NoLeakage(too_good=0.98, severity="warning")`
    """

    too_good: float = 0.95
    repeated: float = 0.01
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        for argument, value in (("too_good", self.too_good), ("repeated", self.repeated)):
            check_number(f"NoLeakage({argument}=)", value, least=0)
            if value > 1:
                raise UsageError(
                    f"NoLeakage({argument}=) is {value!r}, but must be at most 1.", help="Write a share, such as 0.95."
                )

    @property
    def name(self) -> str:
        return "no leakage"

    def check(self, context: GateContext) -> GateOutcome:
        import polars as pl

        from everloop.data.profiling.leakage import column_scores

        features = [name for name in context.features if name in context.rows.columns]
        training = context.training_rows
        pieces = [context.rows.select(*features, context.target)]
        if training is not None and set(features) | {context.target} <= set(training.columns):
            pieces.append(training.select(*features, context.target))
        rows = pl.concat(pieces, how="vertical_relaxed")
        scores = column_scores(rows, context.target)
        suspects = sorted(
            ((name, score) for name, score in scores.items() if score >= self.too_good), key=lambda pair: -pair[1]
        )
        best = max(scores.items(), key=lambda pair: pair[1], default=None)
        evidence: dict[str, Json] = {
            "scores": dict(sorted(scores.items(), key=lambda pair: -pair[1])[:20]),
            "allowed_score": self.too_good,
            "allowed_repeated": self.repeated,
            "rows": rows.height,
        }
        problems = [f"'{name}' alone predicts {score:.0%} of '{context.target}'" for name, score in suspects[:_SHOWN]]
        if len(suspects) > _SHOWN:
            problems.append(f"so do {len(suspects) - _SHOWN} more features")
        problems += self._repeated(context, features, evidence)
        problems += _later(context, features, evidence)
        if problems:
            return GateOutcome("fail", f"{'; '.join(problems)}; allowed {self.too_good:.0%}", evidence)
        if not scores and training is None:
            text = f"{rows.height:,} rows are too few to look for leakage, and the training rows have been removed"
            return GateOutcome("undecided", text, evidence)
        strongest = (
            f"the strongest single feature, '{best[0]}', predicts {best[1]:.0%}" if best else "no single feature"
        )
        return GateOutcome("pass", f"{strongest} of '{context.target}', allowed {self.too_good:.0%}", evidence)

    def _repeated(self, context: GateContext, features: list[str], evidence: dict[str, Json]) -> list[str]:
        """Return the problems of held-out rows that repeat training rows."""
        training, rows = context.training_rows, context.rows
        if training is None or not rows.height or not training.height:
            return []
        problems = []
        key = context.key
        if key is not None and key in rows.columns and key in training.columns:
            known = rows[key].drop_nulls()
            same = int(known.is_in(training[key].drop_nulls().unique().implode()).sum())
            evidence["same_key"] = same
            if same > self.repeated * rows.height:
                problems.append(f"{same:,} held-out rows have the '{key}' of a training row")
        if not features or any(name not in training.columns for name in features):
            return problems
        hashes, seen = _row_hashes(rows, features), _row_hashes(training, features)
        if seen.n_unique() < _DISTINCT_SHARE * training.height:
            return problems  # with few different values, features repeat by nature
        repeated = int(hashes.is_in(seen.unique().implode()).sum())
        evidence["same_features"] = repeated
        if repeated > self.repeated * rows.height:
            share = repeated / rows.height
            problems.append(f"{repeated:,} held-out rows ({share:.0%}) have the features of a training row")
        return problems


@dataclass(frozen=True, slots=True)
class MeetsContract:
    """Gate: rows and predictions must meet the contract of the version's dataset.

    In a run, rows that break the contract were set aside before training, so this gate proves that none came through.
    It matters most for `everloop models check`, which judges a version on other rows. Predictions must be finite
    numbers, and probabilities must lie between 0 and 1 and add up to 1.

    Args:
        worst_share: the share of the rows that may break the contract.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Example:
        `MeetsContract(worst_share=0.001)`
    """

    worst_share: float = 0.0
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        check_number("MeetsContract(worst_share=)", self.worst_share, least=0)

    @property
    def name(self) -> str:
        return "meets contract"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.data import check_contract

        evidence: dict[str, Json] = {"rows": context.rows.height, "allowed_share": self.worst_share}
        problems = _bad_predictions(context)
        contract = _contract_of(context)
        if contract is None:
            evidence["contract"] = None
            known = "; ".join(problems) or "the version's dataset has no contract to check the rows against"
            return GateOutcome("fail" if problems else "undecided", known, evidence)
        evidence["contract"] = contract.key
        try:
            report = check_contract(context.rows, contract)
        except ContractError as error:
            return GateOutcome("fail", error.message, evidence)
        share = report.bad_rows / max(report.rows, 1)
        errors = [found.message for found in report.errors]
        evidence |= {"bad_rows": report.bad_rows, "violations": list(errors[:20])}
        if share > self.worst_share or (errors and not report.bad_rows):
            shown = "; ".join(errors[:_SHOWN])
            problems.append(f"{report.bad_rows:,} of {report.rows:,} rows break {contract.key}: {shown}")
        if problems:
            return GateOutcome("fail", f"{'; '.join(problems)}; allowed {self.worst_share:.2%}", evidence)
        message = f"{report.bad_rows:,} of {report.rows:,} rows break {contract.key}, allowed {self.worst_share:.2%}"
        return GateOutcome("pass", message, evidence)


def _contract_of(context: GateContext) -> Contract | None:
    """Return the contract that the version's snapshot was checked against; None if there is none."""
    from everloop.records import Contract, Snapshot
    from everloop.registry import get_version

    if context.store is None or not context.version:
        return None
    snapshot = get_version(context.store, context.version).snapshot
    found = context.store.records.find(Snapshot, ("key", "=", snapshot), limit=1) if snapshot else []
    key = found[0].contract if found else None
    contracts = context.store.records.find(Contract, ("key", "=", key), limit=1) if key else []
    return contracts[0] if contracts else None


def _bad_predictions(context: GateContext) -> list[str]:
    import numpy as np

    scores = context.scores
    strange = int((~np.isfinite(scores)).sum())
    if strange:
        return [f"{strange:,} of {scores.size:,} predictions are not finite numbers"]
    if context.task == "regression":
        return []
    outside = int(((scores < 0) | (scores > 1)).sum())
    if outside:
        return [f"{outside:,} of {scores.size:,} probabilities are not between 0 and 1"]
    if scores.ndim == 2 and len(scores) and float(np.abs(scores.sum(axis=1) - 1).max()) > 1e-6:
        return ["the probabilities of the classes do not add up to 1"]
    return []


def _row_hashes(rows: pl.DataFrame, features: list[str]) -> pl.Series:
    import polars as pl

    return rows.select(pl.struct(*features).hash(seed=0)).to_series()


def _later(context: GateContext, features: list[str], evidence: dict[str, Json]) -> list[str]:
    """Return the features that are times after the row's own time in most rows."""
    from everloop.data.table_inputs import as_utc, is_moment

    time, rows = context.time, context.rows
    if time is None or time not in rows.columns or not is_moment(rows.schema[time]):
        return []
    problems = []
    own = rows.select(as_utc(time, rows.schema[time])).to_series()
    for name in features:
        if name == time or not is_moment(rows.schema[name]):
            continue
        share = (rows.select(as_utc(name, rows.schema[name])).to_series() > own).mean()
        if isinstance(share, float) and share > _LATER_SHARE:
            problems.append(f"'{name}' is later than '{time}' in {share:.0%} of the rows")
    if problems:
        evidence["later"] = list(problems)
    return problems
