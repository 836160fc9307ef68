"""Answer a history's requests with the versions that an endpoint routes to, in bulk, and log answers and labels.

Rows get the version that serving would have picked for their key, and the log gets the rows that the endpoint would
have written, so watches and rollouts read them like those of a real endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.records import EndpointRecord
from everloop.replay.replay_history import ENTITY, EVENT
from everloop.stores.clock import moment_of, new_id

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.predictor import Predictor
    from everloop.replay.replay_history import ReplayHistory
    from everloop.stores import Store


class Traffic:
    """The requests of a history at one endpoint of one store.

    Attributes:
        scores: the answer to each row of the history, shape (rows,) or (rows, classes); NaN where no version answered.
        places: the index of the answered class for each row; None for a regression.
        versions: for each row, the position in `keys` of the version that answered; -1 where none did.
        keys: the keys of the versions that answered, in the order of their first answer.
        answered: number of rows that were answered.
        watched: whether aggregates are needed, because the loop watches its logs.
    """

    def __init__(
        self,
        store: Store,
        endpoint: str,
        history: ReplayHistory,
        classes: tuple[object, ...] = (),
        *,
        watched: bool = False,
    ) -> None:
        import numpy as np

        self.store = store
        self.endpoint = endpoint
        self.history = history
        self.scores: NDArray[np.float64] | None = None
        self.places: NDArray[np.intp] | None = None
        self.versions = np.full(history.table.height, -1, dtype=np.int32)
        self.keys: list[str] = []
        self.answered = 0
        self.classes = classes
        self.watched = watched
        self._loaded: dict[str, Predictor] = {}

    def answer(self, since: datetime, until: datetime, *, log: bool = True) -> int:
        """Answer the requests with `since <= event < until`; returns their number.

        Args:
            since: the first moment.
            until: the end.
            log: also write the prediction log. Without it, watches and rollouts do not see these answers.
        """
        import polars as pl

        from everloop.prediction_log.prediction_log import PREDICTIONS, table_name

        first, last = self.history.between(since, until)
        if first == last:
            return 0
        record = self.store.records.find(EndpointRecord, ("key", "=", self.endpoint), limit=1)
        if not record or not record[0].routes:
            return 0
        rows = self.history.table.slice(first, last - first)
        logged = []
        for key, role, mask in self._parts(record[0], rows):
            part = rows if mask is None else rows.filter(pl.Series(mask))
            if part.height:
                answer = self._score(key, part, first, mask)
                if log:
                    logged.append(_log_rows(self.store, self.predictor(key), key, role, part, *answer))
        if logged:
            frame = logged[0] if len(logged) == 1 else pl.concat(logged, how="diagonal_relaxed")
            self.store.tables.append(table_name(self.store, PREDICTIONS, self.endpoint), frame)
        self.answered += last - first
        return last - first

    def deliver(self, since: datetime, until: datetime) -> int:
        """Log the labels that became known in `(since, until]`; returns their number."""
        delivered = self._add_labels(since, until)
        if self.watched:
            from everloop.prediction_log.aggregates import fold_aggregates

            fold_aggregates(self.store, self.endpoint)
        return delivered

    def _add_labels(self, since: datetime, until: datetime) -> int:
        import polars as pl

        from everloop.prediction_log import add_labels
        from everloop.replay.replay_history import KNOWN

        moment = pl.Datetime("us", "UTC")
        found = self.history.labels_between(since, until)
        if not found.height:
            return 0
        labels = found.select(
            pl.col(ENTITY).alias("entity"),
            pl.col(self.history.target).alias("value"),
            pl.col(EVENT).cast(moment).alias("event_at"),
            pl.col(KNOWN).cast(moment).alias("arrived_at"),
        )
        return add_labels(self.store, self.endpoint, labels)

    def predictor(self, version: str) -> Predictor:
        """The version's model, loaded once."""
        from everloop.registry import load_model

        if version not in self._loaded:
            # Only the versions of the present routes answer; keep two more for comparisons.
            while len(self._loaded) > 3:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[version] = load_model(self.store, version)
        return self._loaded[version]

    def _parts(self, record: EndpointRecord, rows: pl.DataFrame) -> list[tuple[str, str, NDArray[np.bool_] | None]]:
        """The answering versions with their roles and rows; None: all rows."""
        import numpy as np

        from everloop.serving.routing import RoutingTable

        table = RoutingTable(self.endpoint, record.routes)
        if table.single:
            return [(table.answering[table.champion].version, "champion", None)]
        key = self.history.key or ENTITY
        picked = np.array([table.pick(str(value)) for value in rows[key].to_list()], dtype=np.intp)
        return [(route.version, route.role, picked == index) for index, route in enumerate(table.answering)]

    def _score(
        self, key: str, rows: pl.DataFrame, first: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
        import numpy as np

        predictor = self.predictor(key)
        answer = predictor.answer_frame(rows)
        places = np.arange(first, first + rows.height) if mask is None else first + np.flatnonzero(mask)
        if key not in self.keys:
            self.keys.append(key)
        self.versions[places] = self.keys.index(key)
        self._keep(places, answer.scores, answer.places, predictor)
        return answer.scores, answer.places

    def _keep(
        self,
        places: NDArray[np.intp],
        scores: NDArray[np.float64],
        classes: NDArray[np.intp] | None,
        predictor: Predictor,
    ) -> None:
        """Remember the answers, with the classes in the order of the history's."""
        import numpy as np

        if scores.ndim == 2:
            order = [self.classes.index(name) for name in predictor.classes]
            spread = np.zeros((len(scores), len(self.classes)))
            spread[:, order] = scores
            scores = spread
            if classes is not None:
                classes = np.asarray(order, dtype=np.intp)[classes]
        if self.scores is None:
            self.scores = np.full((self.history.table.height, *scores.shape[1:]), np.nan)
        self.scores[places] = scores
        if classes is not None:
            if self.places is None:
                self.places = np.zeros(self.history.table.height, dtype=np.intp)
            self.places[places] = classes


def _log_rows(
    store: Store,
    predictor: Predictor,
    version: str,
    role: str,
    rows: pl.DataFrame,
    scores: NDArray[np.float64],
    places: NDArray[np.intp] | None,
) -> pl.DataFrame:
    """The rows of the prediction log, as an endpoint writes them; see `prediction_log`."""
    import polars as pl

    from everloop.packages.signature import polars_type
    from everloop.prediction_log.prediction_log import input_column, label_text

    moment = pl.Datetime("us", "UTC")
    request = new_id(moment_of(int(rows[EVENT][0])))
    best = scores if scores.ndim == 1 else scores.max(axis=1)
    labels: pl.Expr = pl.lit(None, dtype=pl.String)
    if places is not None:
        texts = pl.Series([label_text(name) for name in predictor.classes], dtype=pl.String)
        labels = pl.lit(texts.gather(pl.Series(places)))
    columns = [
        (pl.lit(f"{request}-") + pl.int_range(pl.len()).cast(pl.String)).alias("id"),
        pl.lit(request).alias("request"),
        pl.col(EVENT).cast(moment).alias("event_at"),
        pl.col(EVENT).cast(moment).alias("arrived_at"),
        pl.lit(version).alias("version"),
        pl.lit(role).alias("role"),
        pl.col(ENTITY).alias("entity"),
        pl.lit(pl.Series(best, dtype=pl.Float64)).alias("score"),
        labels.alias("label"),
        pl.lit(None, dtype=pl.Float64).alias("seconds"),
        pl.lit(predictor.digest, dtype=pl.String).alias("package"),
        pl.lit("replay").alias("instance"),
    ]
    if scores.ndim == 2:
        columns.append(pl.lit(pl.Series(scores.tolist(), dtype=pl.List(pl.Float64))).alias("scores"))
    for item in predictor.signature.inputs:
        value = pl.col(item.name).cast(polars_type(item.type), strict=False)
        if item.type == "time":
            value = value.cast(pl.Int64) // 1000
        elif item.type == "duration":
            value = value.cast(pl.Int64)
        columns.append(value.alias(input_column(item.name)))
    return rows.select(columns)
