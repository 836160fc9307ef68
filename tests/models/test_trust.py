"""What a package says of itself is no reason to run code out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import EverloopError
from everloop.models import load_model, save_model
from everloop.models.manifest import FILE, Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

TABLE = pl.DataFrame({"a": [1.0, 2.0, 3.0]})


def rewrite(folder: Path, **changes: Any) -> None:
    """Change what the manifest of a package in a folder says."""
    place = folder / FILE
    place.chmod(0o644)
    place.write_bytes(replace(Manifest.from_bytes(place.read_bytes()), **changes).to_bytes())


@pytest.mark.parametrize("claimed", ["sklearn", "xgboost", "catboost", "skops", "linear", "lightgbm", "onnx"])
def test_a_pickle_that_calls_itself_safe_is_not_read(tmp_path: Path, store: Store, claimed: str) -> None:
    ran = tmp_path / "ran"

    def function(table: Any, mark: str = str(ran)) -> Any:
        from pathlib import Path

        Path(mark).touch()
        return table["a"]

    version = save_model(function, "plain", TABLE, store=store)
    folder = store.objects.restore_tree(version.package, tmp_path / "package")
    ran.unlink()
    rewrite(folder, format=claimed)
    with pytest.raises(EverloopError):
        load_model(folder).predict([{"a": 1.0}])
    assert not ran.exists()


def test_an_adopted_pickle_that_calls_itself_safe_is_not_read(tmp_path: Path, store: Store) -> None:
    from everloop.models import build_package
    from everloop.training import adopt

    class Own:
        def __init__(self) -> None:
            self.classes_ = [False, True]

        def predict_proba(self, table: Any) -> Any:
            import numpy as np

            return np.full((len(table), 2), 0.5)

    rows = TABLE.with_columns(y=pl.Series([True, False, True]))
    package = build_package(adopt(Own(), rows, "y"), store=store, sample=rows)
    assert package.format == "pickle"
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    rewrite(folder, format="skops")
    with pytest.raises(EverloopError, match=r"model\.skops"):
        load_model(folder)
