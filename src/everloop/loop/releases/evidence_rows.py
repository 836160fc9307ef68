"""The labelled rows behind the evidence of a release, kept in the store and extended by what is new.

Reading a long log for every decision takes seconds. So the labelled rows, with the scores of both versions, are kept in
the table `evidence/<endpoint>/<release>…`. A commit adds the rows that have changed, and notes up to which versions the
tables of predictions and labels have been read. The next decision, of any process, reads only the commits after those.
It finds the keys that have a new label, or a new prediction and any label, and matches all predictions and labels of
these keys again. What has been kept of them is replaced. So labels that are late, repeated or corrected give what a
reading of the whole log gives.

The whole log is read again if rows of it were removed, if the settings of matching have changed, or if the kept rows
are of other versions of the models. A process that dies loses at most what it has not committed.

**Samples.** Above `MOST_ROWS` labelled rows, the evidence is that of a sample: one in 2, 4, 8 … of the keys. A keyed
digest of the key chooses it. So it is independent of which version answered, of scores and of labels, it is the same in
every process, and each sample is part of the one before it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, NotFoundError
from everloop.loop.comparison.schema_compatibility import cannot_score

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import polars as pl

    from everloop.packages import Predictor
    from everloop.records import Release
    from everloop.stores import Store
    from everloop.stores.tables.table_store import TableSnapshot
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

MOST_ROWS = 200_000
"""With more labelled rows, half of the keys are left out. So a sample has 100,000 rows or more."""
EVIDENCE = "evidence"
_FORMAT = 1
_PROBED_KEYS = 20_000
_MOST_KNOWN = 4
_known: OrderedDict[tuple[str, str], EvidenceRows] = OrderedDict()
"""The rows that this process has read, by the store and the name of their table."""
_logger = logging.getLogger("everloop.loop")


@dataclass(frozen=True, slots=True)
class EvidenceRows:
    """The labelled rows of a release.

    Attributes:
        rows: ordered by `event_at` and `id`. The columns of `read_labelled` without the inputs, and `#shared` (whether
            both versions can score the row), `#candidate`, `#champion` (their scores, or null), `#candidate_class`,
            `#champion_class` (what they predict, or null), `#hash`.
        level: one in `2**level` keys is in the sample.
        read: how much of the log they were read from; see `_marks`.
        kept: what the table in the store says of the rows that are kept there; empty if there are none.
    """

    rows: pl.DataFrame
    level: int
    read: Mapping[str, int]
    kept: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptScores:
    """The scores of one version, from the columns of `EvidenceRows`. Answers as `ScoredRows` does."""

    name: str

    def answer(self, model: Predictor, rows: pl.DataFrame) -> ClassScores:
        import numpy as np

        from everloop.training.class_decisions import ClassScores

        kept, chosen = rows[f"#{self.name}"], rows[f"#{self.name}_class"]
        scores: Array = kept.explode().to_numpy().reshape(len(rows), -1) if kept.dtype.is_nested() else kept.to_numpy()
        return ClassScores(scores, None if chosen.null_count() else chosen.to_numpy().astype(np.intp))


def evidence_rows(store: Store, release: Release, previous: str) -> EvidenceRows:
    """Return the labelled rows of a release since it began, reading only what is new.

    The tables of predictions and labels must exist.

    Args:
        previous: key of the champion.
    """
    log = _Log(store, release, previous)
    place = (store.tables.root, log.table)
    known = _known.pop(place, None) or log.load()
    found = (None if known is None else log.extend(known)) or log.read_all()
    if not log.overtaken:
        _known[place] = found
    while len(_known) > _MOST_KNOWN:
        _known.popitem(last=False)
    return found


def forget_evidence(store: Store, endpoint: str) -> None:
    """Remove the kept rows of an endpoint's releases. They can be read from the log again."""
    from everloop.prediction_log.prediction_log import table_name

    for name in store.tables.names(f"{table_name(store, EVIDENCE, endpoint)}/"):
        _known.pop((store.tables.root, name), None)
        try:
            store.tables.drop(name)
        except (EverloopError, OSError) as error:
            # Another process is removing it as well.
            _logger.warning("Cannot remove the table '%s': %s", name, error)


def has_all_inputs(rows: pl.DataFrame, models: dict[str, Predictor]) -> pl.Expr:
    """Whether a logged row has the inputs of every model."""
    import polars as pl

    from everloop.prediction_log.prediction_log import input_column

    if "unasked" in rows.columns:
        # The endpoint checked these rows against every version, and logged the inputs of all versions that fit.
        checked = pl.col("unasked").is_not_null()
        fits_all = ~pl.any_horizontal([cannot_score(version) for version in models])
        return pl.when(checked).then(fits_all).otherwise(has_all_inputs(rows.drop("unasked"), models))
    complete = pl.lit(value=True)
    for answering in rows["version"].unique().to_list():
        # Rows have the inputs of the version that answered; those of other versions only if they were logged as well.
        present = set(models[answering].signature.names) if answering in models else set()
        others = {name for model in models.values() for name in model.signature.names if name not in present}
        columns = [input_column(name) for name in sorted(others)]
        logged = [pl.col(name).is_not_null() if name in rows.columns else pl.lit(value=False) for name in columns]
        complete &= (pl.col("version") != answering) | pl.all_horizontal(pl.lit(value=True), *logged)
    return complete


class _Log:
    """The log of an endpoint, as a release reads it."""

    def __init__(self, store: Store, release: Release, previous: str) -> None:
        from everloop.prediction_log.label_matching import label_horizon
        from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name
        from everloop.registry import get_version

        self.store, self.release, self.previous = store, release, previous
        self.overtaken = False
        self.names = {what: table_name(store, what, release.endpoint) for what in (PREDICTIONS, LABELS)}
        self.labels = self.names[LABELS]
        ids = [None if (found := store.tables.snapshot(name)) is None else found.id for name in self.names.values()]
        versions = (release.candidate, previous)
        basis = (
            _FORMAT,
            MOST_ROWS,
            label_horizon(store, release.endpoint),
            release.created_at,
            [(version, get_version(store, version).package) for version in versions],
            ids,
        )
        digest = blake2b(repr(basis).encode(), digest_size=8).hexdigest()
        self.table = f"{table_name(store, EVIDENCE, release.endpoint)}/{release.id}-{digest}"

    def load(self) -> EvidenceRows | None:
        """Return the rows that are kept in the store; None if there are none, or they cannot be read."""
        import polars as pl

        try:
            found = self.store.tables.snapshot(self.table)
            if found is None:
                return None
            kept = {mark: found.last_batch(mark) for mark in ("commit", "level", *_marks(self.names))}
            rows = found.rows().collect()
        except (EverloopError, OSError, pl.exceptions.PolarsError) as error:
            _logger.warning("The log is read again, because '%s' cannot be read: %s", self.table, error)
            return None
        if min(kept.values()) < 0:
            return None
        newest = _in_sample(rows, kept["level"]).sort("#commit").unique("id", keep="last")
        present = newest.filter(~pl.col("#removed")).drop("#commit", "#removed").sort("event_at", "id")
        return EvidenceRows(present, kept["level"], {mark: kept[mark] for mark in _marks(self.names)}, kept)

    def extend(self, known: EvidenceRows) -> EvidenceRows | None:
        """Return the rows with what has been added to the log; None if they have to be read again."""
        import polars as pl

        read: dict[str, int] = {}
        added = []
        for what in self.names:
            new = self._added(what, known.read, read)
            if new is None:
                return None
            added.append(new.unique())
        predictions, labels = added
        # A new prediction takes a label only if its key has one.
        stored = self._scan(self.labels, "entity")
        labelled = stored.join(predictions.lazy(), on="entity", how="semi").unique().collect(engine="streaming")
        keys = _in_sample(_hashed(pl.concat([labels, labelled]).unique()), known.level)
        if keys.is_empty():
            return replace(known, read=read)
        fresh = self._scored(self._matched(keys["entity"])).select(known.rows.columns)
        others = known.rows.join(keys, on="entity", how="anti")
        gone = known.rows.join(keys, on="entity", how="semi").join(fresh, on="id", how="anti")
        rows = pl.concat([others, fresh]).sort("event_at", "id")
        return self._keep(_settled(replace(known, rows=rows, read=read)), fresh, gone)

    def read_all(self) -> EvidenceRows:
        """Read the whole log."""
        forget_evidence(self.store, self.release.endpoint)
        read: dict[str, int] = {}
        for what in self.names:
            self._measure(what, read)
        every = _hashed(self._scan(self.labels, "entity").unique().collect(engine="streaming"))
        level = self._first_level(every)
        matched = self._matched(_in_sample(every, level)["entity"])
        while level and matched.height <= MOST_ROWS:
            level -= 1
            matched = self._matched(_in_sample(every, level)["entity"])
        found = _settled(EvidenceRows(_hashed(matched), level, read))
        scored = self._scored(found.rows)
        return self._keep(replace(found, rows=scored), scored, scored.head(0))

    def _first_level(self, keys: pl.DataFrame) -> int:
        """Return a level whose sample probably has a little more than `MOST_ROWS` rows; 0 if all rows are fewer."""
        import polars as pl

        from everloop.prediction_log.log_reading import label_rows

        stored = label_rows(self.store, self.release.endpoint, self.release.created_at, None)
        # A label counts for at most one prediction.
        if stored.select(pl.len()).collect().item() <= MOST_ROWS:
            return 0
        probe = max(0, (keys.height // _PROBED_KEYS).bit_length())
        rows = self._matched(_in_sample(keys, probe)["entity"]).height << probe
        return max(0, (rows // MOST_ROWS).bit_length() - 1)

    def _matched(self, keys: pl.Series) -> pl.DataFrame:
        """Match all predictions and labels of these keys."""
        from everloop.prediction_log import read_labelled

        return read_labelled(self.store, self.release.endpoint, since=self.release.created_at, keys=keys).collect()

    def _scored(self, matched: pl.DataFrame) -> pl.DataFrame:
        """Score the rows with both versions, and keep only the columns of `EvidenceRows`."""
        import numpy as np
        import polars as pl

        from everloop.prediction_log import read_inputs
        from everloop.registry import load_model

        models = {key: load_model(self.store, key) for key in (self.release.candidate, self.previous)}
        matched = matched.with_columns(has_all_inputs(matched, models).alias("#shared"))
        kept = matched.select(name for name in matched.columns if not name.startswith("input_") and name not in _UNUSED)
        for name, (key, model) in zip(("candidate", "champion"), models.items(), strict=True):
            rows = matched.filter(pl.col("#shared") | (pl.col("version") == key))
            kind = pl.List(pl.Float64) if model.task == "multiclass" else pl.Float64
            scores, classes = pl.Series(dtype=kind), None
            if rows.height:
                answers, classes = model.answer_frame(read_inputs(rows, model.signature))
                scores = pl.Series(np.asarray(answers, dtype=np.float64)).cast(kind)
            chosen = pl.Series([None] * rows.height if classes is None else classes, dtype=pl.Int64)
            answered = pl.DataFrame({"id": rows["id"], f"#{name}": scores, f"#{name}_class": chosen})
            kept = kept.join(answered, on="id", how="left", maintain_order="left")
        return kept if "#hash" in kept.columns else _hashed(kept)

    def _keep(self, found: EvidenceRows, changed: pl.DataFrame, gone: pl.DataFrame) -> EvidenceRows:
        """Add changed rows to the table in the store, unless another process has been faster."""
        import polars as pl

        after = {**found.read, "level": found.level, "commit": found.kept.get("commit", 0) + 1}
        parts = ((_in_sample(changed, found.level), False), (gone, True))
        rows = pl.concat([part.with_columns(pl.lit(removed).alias("#removed")) for part, removed in parts])
        rows = rows.with_columns(pl.lit(after["commit"], dtype=pl.Int64).alias("#commit"))
        progress = [(mark, found.kept.get(mark, -1), value) for mark, value in after.items()]
        try:
            if not self.store.tables.append(self.table, rows, progress=progress):
                # The next decision begins with what that process has kept.
                self.overtaken = True
                return found
            self.store.tables.tidy(self.table)
        except (EverloopError, OSError) as error:
            _logger.warning("Cannot keep the evidence of the release to '%s': %s", self.release.endpoint, error)
            return found
        return replace(found, kept=after)

    def _scan(self, name: str, *columns: str) -> pl.LazyFrame:
        return self.store.tables.scan(name, since=self.release.created_at).select(*columns)

    def _measure(self, what: str, read: dict[str, int]) -> None:
        """Note the version of a table and its rows: all of them, and those since the release began."""
        snapshot = self._snapshot(what)
        version, total, since = _marks((what,))
        read[version], read[total], read[since] = snapshot.version, _count(snapshot), self._count_own(snapshot)

    def _added(self, what: str, before: Mapping[str, int], read: dict[str, int]) -> pl.DataFrame | None:
        """The keys of the rows that have been added to a table. Notes them as read.

        None if that is not known any more, or if rows have been removed that this release needs.
        """
        import polars as pl

        snapshot = self._snapshot(what)
        version, total, since = _marks((what,))
        count = _count(snapshot)
        commits = None
        if snapshot.version >= before[version]:
            commits = self.store.tables.added_since(snapshot, before[version])
        if commits is None:
            return None
        columns = pl.DataFrame(schema={"entity": pl.String, "event_at": pl.Datetime("us", "UTC")})
        parts = [snapshot.scan(path).select(columns.columns).collect() for _, paths in commits for path in paths]
        rows = pl.concat([columns, *parts])
        own = rows.filter(pl.col("event_at") >= self.release.created_at)
        read[version], read[total], read[since] = snapshot.version, count, before[since] + own.height
        # The log's retention removes rows. Those from before the release do not matter.
        if count != before[total] + rows.height and self._count_own(snapshot) != read[since]:
            return None
        return own.select("entity").drop_nulls()

    def _snapshot(self, what: str) -> TableSnapshot:
        found = self.store.tables.snapshot(self.names[what])
        if found is None:
            raise NotFoundError(f"The table '{self.names[what]}' was removed while it was read.", help="Try again.")
        return found

    def _count_own(self, snapshot: TableSnapshot) -> int:
        import polars as pl

        own = snapshot.rows().filter(pl.col("event_at") >= self.release.created_at)
        return int(own.select(pl.len()).collect(engine="streaming").item())


_UNUSED = ("request", "role", "label", "seconds", "package", "instance", "unasked", "scores")


def _marks(tables: Iterable[str]) -> tuple[str, ...]:
    """What is noted of each table: its version, its rows, and its rows since the release began."""
    return tuple(f"{what} {mark}" for what in tables for mark in ("version", "rows", "rows since"))


def _count(snapshot: TableSnapshot) -> int:
    import polars as pl

    return int(snapshot.rows().select(pl.len()).collect().item())


def _hashed(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `#hash`: 32 bits of a keyed digest of the key, which choose the sample."""
    import numpy as np
    import polars as pl

    digests = b"".join(
        blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4, key=b"everloop evidence").digest()
        for key in rows["entity"].to_list()
    )
    return rows.with_columns(pl.Series("#hash", np.frombuffer(digests, dtype=">u4").astype(np.int64)))


def _in_sample(rows: pl.DataFrame, level: int) -> pl.DataFrame:
    import polars as pl

    return rows.filter(pl.col("#hash") < 2**32 >> level) if level else rows


def _settled(found: EvidenceRows) -> EvidenceRows:
    """Leave out keys until there are at most `MOST_ROWS` rows."""
    rows, level = found.rows, found.level
    while rows.height > MOST_ROWS and level < 32:
        level += 1
        rows = _in_sample(rows, level)
    return replace(found, rows=rows, level=level)


__all__ = ["EVIDENCE", "MOST_ROWS", "EvidenceRows", "KeptScores", "evidence_rows", "forget_evidence", "has_all_inputs"]
