"""Heavy load: the placement whose slowest stage is fastest, with a proven gap.

When requests come faster than one after the other, device, link and server work on different requests at the same time,
and the slowest of the three sets the pace: requests per second are 1000 ÷ max(device, link, server) in ms. This is the
heavy-load case of DADS (Hu, Bao, Wang, Liu: "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge",
INFOCOM 2019), which shows it NP-hard and offers DSH, a 3-approximation. (The placement of the least *sum* is one, too:
three times the largest stage is no less than the sum.) Real networks are much kinder than the worst case: `search.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from splitpoint.planning.solve.blocks import three_stages
from splitpoint.planning.solve.constrained import Limit, solved, with_limits
from splitpoint.planning.solve.problem import Problem, Solution, stages
from splitpoint.planning.solve.search import MOST_NODES, MOST_WORK, Clock, search


def bottleneck(
    problem: Problem,
    *,
    within: Sequence[Limit] = (),
    budget_s: float = 1.0,
    most_work: int = MOST_WORK,
    most_nodes: int = MOST_NODES,
    clock: Clock = perf_counter,
) -> Solution:
    """The placement with the least max(device, link, server); its `bound` is proven, and its `gap` the claim.

    `within` are limits that it must keep. Where none is known to keep them, `value` is inf: no placement does if
    `bound` is inf, too. The search ends after `budget_s` seconds, or after a number of steps that is the same on every
    machine.
    """
    measures, most = with_limits(three_stages(problem), problem, within)
    result = search(problem, measures, most, budget_s=budget_s, most_work=most_work, most_nodes=most_nodes, clock=clock)
    return solved(result, lambda on_edge: stages(problem, on_edge).slowest, problem.steps)
