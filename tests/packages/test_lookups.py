"""A request names the entity, and the features come from the online store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression

import everloop as el
from everloop.data.features import materialize, open_online
from everloop.errors import NotFoundError, RequestError, UsageError
from everloop.registry import export_package, load_model, save_model, verify_package

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.slow
def test_features_are_looked_up_by_entity(store: Store, tmp_path: Path) -> None:
    reports = pl.DataFrame(
        {"origin": ["JFK", "LGA"], "observed_at": [START] * 2, "temp": [10.0, 30.0], "wind": [1.0, 2.0]}
    )
    view = el.FeatureView("weather", reports, entity="origin", time="observed_at", ttl="6h")
    store.simulate(START + timedelta(hours=1))
    online = open_online(store.home / "online.db")
    materialize(store, view, online=online)
    table = pl.DataFrame({"origin": ["JFK", "LGA"] * 20, "distance": np.arange(40.0), "temp": [10.0, 30.0] * 20})
    inputs = table.select("distance", "temp")
    model = LinearRegression().fit(inputs.to_pandas(), table["distance"] + 2 * table["temp"])
    save_model(model, "delay", table.to_pandas(), lookups=["weather"], store=store)
    predictor = load_model(store, "delay")
    assert predictor.input_names == ("origin", "distance")
    assert predictor.compiled
    rows = [{"origin": "JFK", "distance": 5.0}, {"origin": "LGA", "distance": 5.0}]
    np.testing.assert_allclose(predictor.predict(rows), [25.0, 65.0])
    np.testing.assert_allclose(predictor.predict(pl.DataFrame(rows)), [25.0, 65.0])
    assert predictor.row_function()(("LGA", 1.0))[0] == pytest.approx(61.0)
    predictor.warm()
    assert verify_package(store, "delay").answered_rows > 5
    # What is published later is answered with from then on.
    later = pl.DataFrame(
        {"origin": ["JFK"], "observed_at": [START + timedelta(minutes=30)], "temp": [0.0], "wind": [1.0]}
    )
    materialize(store, view, rows=pl.concat([reports, later]), online=online)
    np.testing.assert_allclose(predictor.predict(rows), [5.0, 65.0])
    # Of an unknown origin nothing is known, and this model takes no nulls.
    with pytest.raises(RequestError):
        predictor.predict([{"origin": "XXX", "distance": 5.0}])
    with pytest.raises(UsageError, match="loaded without a store"):
        load_model(export_package(store, "delay@1", tmp_path / "delay"))
    with pytest.raises(NotFoundError, match="'tides'"):
        save_model(model, "delay", table.to_pandas(), lookups=["tides"], store=store)
    with pytest.raises(UsageError, match="lacks 'origin'"):
        save_model(model, "delay", inputs.to_pandas(), lookups=["weather"], store=store)
    alone = LinearRegression().fit(table.select("distance").to_pandas(), table["temp"])
    with pytest.raises(UsageError, match="uses none of the features"):
        save_model(alone, "delay", table.to_pandas(), lookups=["weather"], store=store)
    online.close()
