"""Every prefix with every codec: what is taken from them is the best of them, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from planning_cases import EFFICIENT, pair
from plans import FOUR_G

from splitpoint.planning.candidates import supported
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import value

LIMITS = {"codecs": ("int8",), "max_edge_memory": 15e6, "deadline_ms": 125.0}


@pytest.mark.parametrize("objective", ["latency", "energy", "bytes", "throughput"])
def test_the_best_prefix_is_the_best_of_all_rows(objective: str) -> None:
    planner = Planner(None, pair(EFFICIENT), objective=objective, constraints=Constraints(**LIMITS))  # type: ignore[arg-type]
    cuts, codecs = planner.graph.prefixes(), planner.costs.codecs
    rows = [planner.price(cut, [codec] * len(cut.crossing), FOUR_G) for cut in cuts for codec in codecs]
    scores, allowed = planner._candidates.scores(FOUR_G)
    assert allowed.ravel().tolist() == [not row.refused for row in rows]
    assert scores.ravel() == pytest.approx(np.array([value(row, objective) for row in rows]), rel=1e-6, abs=1e-5)
    assert 0 < allowed.sum() < allowed.size
    [best] = planner._candidates.best(FOUR_G)
    assert value(best, objective) == min(value(row, objective) for row in rows if not row.refused)
    smallest = planner._candidates.smallest(FOUR_G)
    assert smallest is not None
    assert smallest.edge_memory == min(row.edge_memory for row in rows if not row.refused)


def test_where_nothing_is_allowed_there_is_no_best_and_the_table_has_one_row_that_says_why() -> None:
    planner = Planner(None, pair(EFFICIENT), constraints=Constraints(deadline_ms=1.0))
    assert planner._candidates.best(FOUR_G) == []
    assert planner._candidates.smallest(FOUR_G) is None
    [row] = planner._candidates.table(FOUR_G, 4)
    assert row.kind == "split"
    assert row.refused.startswith("one request in ten takes longer")
    assert planner.best(FOUR_G) is None
    assert list(planner.frontier(FOUR_G)) == []


def test_the_frontier_has_nothing_that_another_is_better_than_in_everything() -> None:
    planner = Planner(None, pair(EFFICIENT), constraints=Constraints(codecs=("int8",)))
    busy = [
        (o.stages["edge"].ms + o.stages["encode"].ms, FOUR_G.up_ms(o.up_nbytes), o.stages["server"].ms)
        for o in planner._candidates.frontier(FOUR_G, 8)
    ]
    assert 1 < len(busy) <= 8
    assert not any(all(a < b for a, b in zip(one, other, strict=True)) for one in busy for other in busy)


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
