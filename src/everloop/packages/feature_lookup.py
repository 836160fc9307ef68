"""Feature look-ups in front of a model: a request names an entity, and its features come from the online store.

A request to a model that was trained on point-in-time features of a view contains the entity's columns and the model's
other inputs. The features are looked up at prediction time, in the version of the view with which the model was
packaged, so that serving sees what training saw.
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
"""Variable with the online store: a file, `postgresql://…` or `redis://…`; default: `online.db` in the store."""


class FeatureLookupModel:
    """A `Model` whose rows are completed from the online store."""

    def __init__(self, inner: Model, signature: Signature, lookup: Any) -> None:
        self.inner = inner
        self.format = inner.format
        self.task: Task = inner.task
        self.inputs = inner.inputs
        self.signature = signature
        """The signature of the inner model, including the features that are looked up."""
        self._lookup = lookup

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.predict_rows(frame.to_dicts())

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.inner.predict_rows(self._complete(rows))

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores: by the rule of the inner model."""
        return rule_of(self.inner)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        return self.answer_rows(frame.to_dicts())

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return answer_rows(self.inner, self._complete(rows))

    def _complete(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        names = self.signature.names
        complete = [{**row, **self._lookup.get(row)} for row in rows]
        values = self.signature.rows_of([{name: row[name] for name in names} for row in complete])
        return [dict(zip(names, row, strict=True)) for row in values]

    def to_files(self) -> dict[str, bytes]:
        return self.inner.to_files()


def plan_lookups(
    store: Store, views: Sequence[str], signature: Signature, sample: pl.DataFrame
) -> tuple[Signature, dict[str, Json]]:
    """Return the signature of a request, and the manifest's description of the look-ups.

    Args:
        views: names of materialized feature views, `weather` or `weather@2`.
        signature: signature of the model.
        sample: rows that include the views' entity columns.

    Raises:
        NotFoundError: a view does not exist.
        UsageError: the model does not use a view's features, or the sample lacks the view's entity.
    """
    from everloop.data.features.materializing import find_version, view_features

    looked_up: dict[str, str] = {}
    entity: list[str] = []
    described: list[Json] = []
    for name in views:
        record = find_version(store, name)
        features = [feature for feature in view_features(record) if feature in signature.fields]
        if not features:
            raise UsageError(
                f"The model uses none of the features of '{record.key}'.",
                help=f"Leave the view out, or train on one of: {', '.join(view_features(record))}",
            )
        absent = [column for column in record.entity if column not in sample.columns]
        if absent:
            raise UsageError(
                f"The example lacks '{absent[0]}', the entity by which features of '{record.key}' are looked up.",
                help="Pass the training table with the entity's columns.",
            )
        for feature in features:
            if feature in looked_up:
                raise UsageError(
                    f"'{looked_up[feature]}' and '{record.key}' both have a feature '{feature}'.",
                    help="Rename one of them in its view.",
                )
        looked_up |= dict.fromkeys(features, record.key)
        entity += [column for column in record.entity if column not in entity]
        described.append({"view": record.key, "entity": list(record.entity), "features": features})
    entity_inputs = [
        Input(name=column, type=input_type(str(sample.schema[column])), nullable=False)
        for column in entity
        if column not in signature.fields
    ]
    rest = [item for item in signature.inputs if item.name not in looked_up]
    request = Signature(
        inputs=(*entity_inputs, *rest), task=signature.task, classes=signature.classes, ignored=signature.ignored
    )
    return request, {"views": described, "signature": signature.to_json()}


def look_up_for(inner: Model, lookups: Mapping[str, Json], store: Store | None) -> FeatureLookupModel:
    """Return the model with its look-ups in a store's online features.

    Raises:
        UsageError: there is no store.
        NotFoundError: the store has no such view.
    """
    from everloop.data.features import OnlineLookup, open_online

    names = [view["view"] for view in lookups["views"]]
    if store is None:
        raise UsageError(
            f"The model looks up features of {', '.join(names)}, but it was loaded without a store.",
            help="Load it from the store that has the views: load_model(store, 'MODEL@champion').",
        )
    online = open_online(os.environ.get(ADDRESS) or store.home / "online.db")
    lookup = OnlineLookup(store, online, names)
    return FeatureLookupModel(inner, Signature.from_json(lookups["signature"]), lookup)
