"""Of many ways those that are the cheapest for some prices."""

from __future__ import annotations

import numpy as np

from splitpoint.planning.solve.frontier import supported


def test_all_that_is_the_cheapest_for_some_prices_is_there_and_nothing_that_another_beats() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        costs = rng.lognormal(0, 1, (40, 3))
        chosen = supported(costs, 8)
        assert 0 < len(chosen) <= 8
        assert len(set(chosen)) == len(chosen)
        for price in np.eye(3) * 0.98 + 0.01:
            assert int((costs @ price).argmin()) in supported(costs, 40)
        for k in chosen:
            assert not ((costs <= costs[k]).all(1) & (costs < costs[k]).any(1)).any()


def test_no_ways_and_one_way() -> None:
    assert list(supported(np.zeros((0, 3)), 8)) == []
    assert list(supported(np.array([[1.0, 2.0, 3.0]]), 8)) == [0]
