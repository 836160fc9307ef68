"""What a loop learns from: which step gives the rows, and what its columns mean."""

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
    """A declaration; nothing is read when it is made.

    Args:
        source: the step that returns the rows, all columns included.
        target: the column to predict.
        time: the column that says when a row happened; splits and replays go by it.
        key: the column that names a row's entity; its values are unique in a snapshot.
        features: the columns that a model may see; without them all but target, time, key and `exclude`.
        exclude: columns that a model must not see.
        holdout: the part kept for the test, and as much again before it for validation: a share of the rows below a
            half, or with `time` a duration such as `14d`.
        name: of its snapshots; without it the loop's name.
        contract: what the rows must look like: a contract, or the TOML file of one. Without it, it is inferred from
            the first snapshot.
        labels_after: how long after `time` the target is known, such as `1d`.

    Raises:
        UsageError: the parts do not fit together.
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

    def __post_init__(self) -> None:
        for role in ("features", "exclude"):
            given = getattr(self, role)
            if isinstance(given, str):
                raise UsageError(f"{role}='{given}' is one text.", help=f"Write {role}=['{given}'].")
            if given is not None:
                # Lists would make the declaration changeable, and unhashable.
                object.__setattr__(self, role, tuple(given))
        roles = [(role, name) for role in ("target", "time", "key") if (name := getattr(self, role)) is not None]
        for role, name in roles:
            if not isinstance(name, str) or not name:
                raise UsageError(f"{role}={name!r} is no name of a column.")
        names = [name for _, name in roles]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise UsageError(f"The column '{doubled}' cannot be two of target, time and key.")
        for name in self.features or ():
            if name in self.exclude or name == self.target:
                what = "the target" if name == self.target else "excluded"
                raise UsageError(f"The column '{name}' cannot be a feature: it is {what}.")
        if self.features is not None and not self.features:
            raise UsageError("features=[] leaves nothing to learn from.", help="Leave it out to use every column.")
        checked_holdout(self.holdout, self.time)
        if self.labels_after is not None:
            parse_duration(self.labels_after)

    def feature_names(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The features among the columns of a table, in its order; those declared, in the declared order."""
        if self.features is not None:
            return tuple(self.features)
        others = {self.target, self.time, self.key, *self.exclude}
        return tuple(name for name in columns if name not in others)


def checked_holdout(holdout: object, time: str | None) -> None:
    """Raise UsageError unless `holdout` is a share below a half, or a duration beside a time column."""
    if isinstance(holdout, str):
        if parse_duration(holdout).total_seconds() <= 0:
            raise UsageError(f"holdout='{holdout}' holds nothing out.")
        if time is None:
            raise UsageError(
                f"holdout='{holdout}' needs a time column.", help="Name it with time=, or give a share such as 0.2."
            )
    elif isinstance(holdout, bool) or not isinstance(holdout, int | float) or not 0 < holdout < 0.5:
        raise UsageError(
            f"holdout={holdout!r} is no share between 0 and 0.5.",
            help="As much is used for validation as for the test; the rest is for training. Try 0.2, or '14d'.",
        )
