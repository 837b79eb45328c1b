"""One sum kept small while others keep to a limit."""

from __future__ import annotations

import dataclasses

import numpy as np
from placements import (
    NEVER,
    SAME,
    all_stages,
    any_cost,
    any_problem,
    best_of,
    check,
    closed_sets,
    googlenet,
    problem_of,
    resnet,
    with_costs_of,
    woven,
)

from splitpoint.planning.solve.constrained import Limit, least_within
from splitpoint.planning.solve.min_cut import least
from splitpoint.planning.solve.problem import stages
from splitpoint.planning.solve.throughput import bottleneck


def test_two_limits_at_once() -> None:
    rng = np.random.default_rng(5)
    both = 0
    for _ in range(100):
        problem = any_problem(rng, 8, any_cost)
        sets = closed_sets(problem)
        costs = [with_costs_of(problem, any_problem(rng, 8, any_cost), rng) for _ in range(2)]
        spent = [all_stages(c, sets).sum(axis=1) for c in costs]
        most = [float(np.median(s[np.isfinite(s)])) for s in spent]
        keep = [s <= m * (1 + SAME) for s, m in zip(spent, most, strict=True)]
        total = all_stages(problem, sets).sum(axis=1)
        best = best_of(total, keep[0] & keep[1])
        found = least_within(problem, [Limit(c, m) for c, m in zip(costs, most, strict=True)], budget_s=NEVER)
        check(found, problem, best, stages(problem, found.on_edge).total, exact=True)
        both += best > max(best_of(total, keep[0]), best_of(total, keep[1]))
    assert both > 5


def test_sum_without_limits_is_the_minimum_cut() -> None:
    """Two ways that share no code: the relaxation has no gap where a minimum cut is the answer."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        problem = problem_of(woven(80, rng), rng, slower=3, link=4)
        found = least_within(problem, [], budget_s=NEVER)
        best = least(problem)
        assert found.value <= best.value * (1 + 1.1e-3)
        assert found.bound <= best.value * (1 + SAME)
        assert best.bound <= found.value * (1 + SAME)


def test_limit_that_nothing_keeps() -> None:
    problem = problem_of(resnet(), np.random.default_rng(0))
    memory = dataclasses.replace(
        problem, edge=np.ones(problem.steps), cloud=problem.cloud * 0, link=problem.link * 0, down=problem.down * 0
    )
    for found in (least_within(problem, [Limit(memory, -1.0)]), bottleneck(problem, within=[Limit(memory, -1.0)])):
        assert (found.value, found.bound, found.feasible) == (NEVER, NEVER, False)
    nothing = least_within(problem, [Limit(memory, 0.0)])
    assert not nothing.on_edge.any()
    assert nothing.gap == 0
    ten = bottleneck(dataclasses.replace(problem, edge=problem.edge * 0), within=[Limit(memory, 10.0)])
    assert ten.on_edge.sum() <= 10
    assert ten.gap == 0


def test_infinite_limit_is_none() -> None:
    problem = problem_of(googlenet(), np.random.default_rng(0))
    forbidden = dataclasses.replace(problem, edge=np.full(problem.steps, NEVER))
    free = bottleneck(problem)
    limited = bottleneck(problem, within=[Limit(forbidden, NEVER)])
    assert limited.value == free.value
