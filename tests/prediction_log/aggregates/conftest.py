from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prediction_log.aggregates.traffic import Traffic

if TYPE_CHECKING:
    from everloop.stores import Store


@pytest.fixture
def traffic(store: Store) -> Traffic:
    return Traffic(store)
