"""Feature look-ups in front of a model: a request names an entity, and the features come from the online store.

A model that was trained on point-in-time features of a view is asked with the entity's columns and whatever else it
reads; the view's features are looked up when it is asked, in the version of the view that it was packaged with, so that
serving sees what training would have seen.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.packages.signature import Input, Signature, input_type
from everloop.training.class_decisions import answer_rows, rule_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Model, Task

    Array = NDArray[np.float64]

ADDRESS = "EVERLOOP_ONLINE"
"""Names the online store: a file, `postgresql://…` or `redis://…`; default: `online.db` in the store's folder."""


class FeatureLookupModel:
    """A model whose rows are completed out of the online store. See `Model` for what it answers."""

    def __init__(self, inner: Model, signature: Signature, lookup: Any) -> None:
        self.inner = inner
        self.format = inner.format
        self.task: Task = inner.task
        self.inputs = inner.inputs
        self.signature = signature
        """What the model itself takes."""
        self._lookup = lookup

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.predict_rows(frame.to_dicts())

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.inner.predict_rows(self._whole(rows))

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores: as those of the model behind the look-ups."""
        return rule_of(self.inner)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and classes."""
        return self.answer_rows(frame.to_dicts())

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        """Scores and classes."""
        return answer_rows(self.inner, self._whole(rows))

    def _whole(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        names = self.signature.names
        whole = [{**row, **self._lookup.get(row)} for row in rows]
        values = self.signature.rows_of([{name: row[name] for name in names} for row in whole])
        return [dict(zip(names, row, strict=True)) for row in values]

    def to_files(self) -> dict[str, bytes]:
        return self.inner.to_files()


def plan_lookups(
    store: Store, views: Sequence[str], signature: Signature, sample: pl.DataFrame
) -> tuple[Signature, dict[str, Json]]:
    """What a request gives, and what the manifest says of the look-ups.

    Args:
        views: names of feature views, `weather` or `weather@2`, that have been materialized.
        signature: what the model takes.
        sample: rows with the views' entity columns as well.

    Raises:
        NotFoundError: a view is not there.
        UsageError: the model reads none of a view's features, or the sample lacks its entity.
    """
    from everloop.data.features.materializing import find_version, view_features

    looked_up: dict[str, str] = {}
    entity: list[str] = []
    told: list[Json] = []
    for name in views:
        record = find_version(store, name)
        features = [feature for feature in view_features(record) if feature in signature.fields]
        if not features:
            raise UsageError(
                f"The model reads none of the features of '{record.key}'.",
                help=f"They are: {', '.join(view_features(record))}",
            )
        absent = [column for column in record.entity if column not in sample.columns]
        if absent:
            raise UsageError(
                f"The example lacks '{absent[0]}', by which '{record.key}' is asked.",
                help="Pass the training table with the entity's columns in it.",
            )
        for feature in features:
            if feature in looked_up:
                raise UsageError(
                    f"'{looked_up[feature]}' and '{record.key}' both have a feature '{feature}'.",
                    help="Rename one, or choose with features=.",
                )
        looked_up |= dict.fromkeys(features, record.key)
        entity += [column for column in record.entity if column not in entity]
        told.append({"view": record.key, "entity": list(record.entity), "features": features})
    asked = [
        Input(name=column, type=input_type(str(sample.schema[column])), nullable=False)
        for column in entity
        if column not in signature.fields
    ]
    rest = [item for item in signature.inputs if item.name not in looked_up]
    request = Signature(
        inputs=(*asked, *rest), task=signature.task, classes=signature.classes, ignored=signature.ignored
    )
    return request, {"views": told, "signature": signature.to_json()}


def look_up_for(inner: Model, lookups: Mapping[str, Json], store: Store | None) -> FeatureLookupModel:
    """The model with its look-ups, out of a store's online features.

    Raises:
        UsageError: there is no store.
        NotFoundError: the store has no such view.
    """
    from everloop.data.features import OnlineLookup, open_online

    names = [view["view"] for view in lookups["views"]]
    if store is None:
        raise UsageError(
            f"The model looks up features of {', '.join(names)}, and there is no store.",
            help="Load it from the store that has the views: load_model(store, 'model@champion').",
        )
    online = open_online(os.environ.get(ADDRESS) or store.home / "online.db")
    lookup = OnlineLookup(store, online, names)
    return FeatureLookupModel(inner, Signature.from_json(lookups["signature"]), lookup)
