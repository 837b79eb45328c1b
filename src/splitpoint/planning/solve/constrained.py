"""One sum kept small while others keep to a limit: server time within a deadline, latency within device memory.

A limit makes the minimum cut NP-hard (choosing steps by their costs under a limit is the knapsack problem), so this is
`search.py` again: a value and a proven bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from splitpoint.planning.solve.blocks import Measures, one_sum
from splitpoint.planning.solve.problem import Bools, Floats, Problem, Solution, stages
from splitpoint.planning.solve.search import MOST_NODES, MOST_WORK, Clock, SearchResult, search


@dataclass(frozen=True)
class Limit:
    """What a placement costs in total by `costs` (any unit, the same steps and tensors) is at most `most`."""

    costs: Problem
    most: float


def with_limits(goals: Measures, problem: Problem, within: Sequence[Limit]) -> tuple[Measures, Floats]:
    """`goals`, followed by a measure for each limit; and the limits. One that is inf is none."""
    within = [limit for limit in within if limit.most < math.inf]
    for limit in within:
        if (limit.costs.steps, limit.costs.link.size) != (problem.steps, problem.link.size):
            raise ValueError("a limit counts the same steps and tensors as the problem")
        goals += one_sum(limit.costs)
    return goals, np.array([limit.most for limit in within], np.float64)


def least_within(
    problem: Problem,
    within: Sequence[Limit],
    *,
    budget_s: float = 1.0,
    most_work: int = MOST_WORK,
    most_nodes: int = MOST_NODES,
    clock: Clock = perf_counter,
) -> Solution:
    """The placement with the least total cost among those that keep every limit, with a proven bound.

    Where none is known to keep them, `value` is inf: no placement does if `bound` is inf, too.
    """
    measures, most = with_limits(one_sum(problem), problem, within)
    result = search(problem, measures, most, budget_s=budget_s, most_work=most_work, most_nodes=most_nodes, clock=clock)
    return solved(result, lambda on_edge: stages(problem, on_edge).total, problem.steps)


def solved(result: SearchResult, value_of: Callable[[Bools], float], steps: int) -> Solution:
    """What a search result as a `Solution`, with the value that `value_of` says: sums differ in their last digits."""
    if result.on_edge is None:
        return Solution(np.ones(steps, bool), math.inf, result.bound)
    value = value_of(result.on_edge)
    return Solution(result.on_edge, value, value if result.exact else min(value, result.bound))
