import numpy as np
import pytest

from everloop.monitoring.measures.block_spread import spread_beyond_chance


def test_spread_beyond_chance_recovers_a_known_spread() -> None:
    generator = np.random.default_rng(0)
    truths = generator.normal(0.7, 0.05, 400)
    pieces = [(float(value), 0.03) for value in truths + generator.normal(0, 0.03, 400)]
    assert spread_beyond_chance(pieces) == pytest.approx(0.05, rel=0.15)
    assert spread_beyond_chance([(0.7, 0.03)] * 20) == 0
    assert spread_beyond_chance(pieces[:5]) == 0
