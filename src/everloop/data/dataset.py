"""Declare a loop's dataset: the step that returns the rows, and the roles of its columns."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from everloop.records import Contract


@dataclass(frozen=True)
class Dataset:
    """A declaration of a dataset. Creating one does not read any data.

    Args:
        source: the step that returns the rows with all columns.
        target: the column to predict.
        time: the column with the time of each row's event. Splits and replays use it.
        key: the column that identifies a row's entity; its values are unique in a snapshot.
        features: the columns that a model may use; by default all except target, time, key and `exclude`.
        exclude: columns that a model must not use.
        holdout: the size of the test part, and of the validation part before it: a share of the rows below 0.5, or
            with `time` a duration such as `14d`.
        name: the name of the snapshots; by default the loop's name.
        contract: the contract that the rows must fulfil, or the path of its TOML file. By default it is inferred from
            the first snapshot.
        labels_after: how long after `time` the target becomes known, such as `1d`.
        window: with `time`, train only on the rows of this duration before the held-out rows, such as `90d`: a sliding
            window. The held-out rows are the newest ones, as without it.
        half_life: with `time`, give older rows less weight in training: a row that is this much older than the newest
            one counts half as much, such as `60d`. The evaluation is unweighted. A training step receives the weights
            if it has a parameter `weight` or `sample_weight`.
        positive: of a target with two classes, the one that scores are probabilities of, and that precision, recall,
            `f1` and `average_precision` are about. Default: `True`, the larger number, or the later text in the
            alphabet.

    Raises:
        UsageError: the arguments do not fit together.
    """

    source: object
    _: KW_ONLY
    target: str
    time: str | None = None
    key: str | None = None
    features: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    holdout: float | str = 0.2
    name: str | None = None
    contract: Contract | Path | str | None = None
    labels_after: str | None = None
    window: str | None = None
    half_life: str | None = None
    positive: bool | int | float | str | None = None

    def __post_init__(self) -> None:
        for role in ("features", "exclude"):
            given = getattr(self, role)
            if isinstance(given, str):
                raise UsageError(
                    f"{role}='{given}' is a string, but a list of columns is expected.",
                    help=f"Write {role}=['{given}'].",
                )
            if given is not None:
                # A list would make the declaration mutable and unhashable.
                object.__setattr__(self, role, tuple(given))
        roles = [(role, name) for role in ("target", "time", "key") if (name := getattr(self, role)) is not None]
        for role, name in roles:
            if not isinstance(name, str) or not name:
                raise UsageError(f"{role}={name!r} is not a column name.", help=f"Write for example {role}='column'.")
        names = [name for _, name in roles]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(
                f"The column '{repeated}' cannot be two of target, time and key.", help="Choose a column for each."
            )
        for name in self.features or ():
            if name in self.exclude or name == self.target:
                reason = "the target" if name == self.target else "excluded"
                raise UsageError(
                    f"The column '{name}' cannot be a feature, because it is {reason}.",
                    help="Remove it from features=.",
                )
        if self.features is not None and not self.features:
            raise UsageError("features=[] leaves no features to train on.", help="Leave it out to use every column.")
        checked_holdout(self.holdout, self.time)
        for role in ("window", "half_life"):
            checked_span(role, getattr(self, role), self.time)
        if self.labels_after is not None:
            parse_duration(self.labels_after)
        if self.positive is not None and not isinstance(self.positive, bool | int | float | str):
            raise UsageError(
                f"positive={self.positive!r} is not a class.",
                help="Write the value of the target as it stands in the table, such as positive='yes'.",
            )

    def feature_names(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The declared features in their order, or else those of the table's columns that have no other role."""
        if self.features is not None:
            return tuple(self.features)
        others = {self.target, self.time, self.key, *self.exclude}
        return tuple(name for name in columns if name not in others)


def checked_span(role: str, span: object, time: str | None) -> None:
    """Raise UsageError unless `span` is None, or a positive duration together with a time column."""
    if span is None:
        return
    if not isinstance(span, str):
        raise UsageError(f"{role}={span!r} is not a duration.", help="Write for example '90d'.")
    if parse_duration(span).total_seconds() <= 0:
        raise UsageError(f"{role}='{span}' is too short.", help="Write for example '90d'.")
    if time is None:
        raise UsageError(f"{role}='{span}' needs a time column.", help="Name it with time=, or leave it out.")


def checked_holdout(holdout: object, time: str | None) -> None:
    """Raise UsageError unless `holdout` is a share below 0.5, or a duration together with a time column."""
    if isinstance(holdout, str):
        if parse_duration(holdout).total_seconds() <= 0:
            raise UsageError(
                f"holdout='{holdout}' is too short: no rows would be held out.", help="Write for example '14d'."
            )
        if time is None:
            raise UsageError(
                f"holdout='{holdout}' needs a time column.", help="Name it with time=, or use a share such as 0.2."
            )
    elif isinstance(holdout, bool) or not isinstance(holdout, int | float) or not 0 < holdout < 0.5:
        raise UsageError(
            f"holdout={holdout!r} is not a share between 0 and 0.5.",
            help="The test and validation parts have this size each, and the rest is for training. Try 0.2, or '14d'.",
        )
