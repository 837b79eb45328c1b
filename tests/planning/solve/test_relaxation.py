"""The linear program of a block and its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from placements import (
    NEVER,
    SAME,
    all_stages,
    any_cost,
    any_problem,
    best_of,
    check,
    closed_sets,
    with_costs_of,
)

from splitpoint.planning.solve.problem import stages
from splitpoint.planning.solve.search import Limit, search


@pytest.mark.parametrize("seed", range(3))
def test_bound_of_the_linear_program_holds(seed: int) -> None:
    """With no part of a block looked at, every bound comes from branch and bound: within 0.1 %, never too high."""
    rng = np.random.default_rng(100 + seed)
    branched = 0
    for _ in range(15):
        problem = any_problem(rng, int(rng.integers(4, 10)), any_cost)
        sets = closed_sets(problem)
        three = all_stages(problem, sets)
        limited = with_costs_of(problem, any_problem(rng, problem.steps, any_cost), rng)
        spent = all_stages(limited, sets).sum(axis=1)
        most = float(np.nanmedian(np.where(np.isfinite(spent), spent, np.nan))) if np.isfinite(spent).any() else 1.0
        keeps = spent <= most * (1 + SAME)
        limit = Limit(limited, most)
        for found, best, value in (
            (search(problem, "slowest", budget_s=NEVER, most_work=0), three.max(axis=1).min(), "slowest"),
            (search(problem, "slowest", [limit], budget_s=NEVER, most_work=0), best_of(three.max(1), keeps), "slowest"),
            (search(problem, "total", [limit], budget_s=NEVER, most_work=0), best_of(three.sum(1), keeps), "total"),
        ):
            check(found, problem, best, getattr(stages(problem, found.on_edge), value), exact=False)
            assert math.isfinite(found.value) == math.isfinite(best)
            assert found.gap <= 1.1e-3
            branched += math.isfinite(found.value) and found.gap > 0
    assert branched > 3
