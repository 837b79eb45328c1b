"""The best placement under measures that do not add up, with a proven bound: heavy load, and limits.

When requests come faster than one after the other, device, link and server work on different requests at the same time,
and the slowest of the three sets the pace: requests per second are 1000 ÷ max(device, link, server) in ms. This is the
heavy-load case of DADS (Hu, Bao, Wang, Liu: "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge",
INFOCOM 2019), which offers a 3-approximation. It is NP-hard (steps that need nothing of each other, between two equal
machines: a number partition), and so is one sum kept small while others keep to limits, such as server time within a
deadline (a knapsack). Real networks are much kinder than the worst case. What is returned is a value *and* what is
proven of every placement:

1. every topological prefix, all at once (`StepOrder.prefixes`);
2. the closed parts of each block of the series decomposition (`blocks.py`), where a block that cannot win is not opened
   and a part that cannot win is not continued. Exact, and all that the networks of the benchmark need;
3. in a block with too many parts, branch and bound over a linear program (`relaxation.py`), whose optimum is the best
   Lagrangian bound over minimum cuts. Steps in the order of their share on the device are a chain of placements, all
   tried at once; in a block that wide they usually come within 0.1 %.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from splitpoint.planning.solve.blocks import Block, Measures, StepOrder, one_sum, three_stages
from splitpoint.planning.solve.problem import Bools, Floats, Problem, Solution, simplex, stages
from splitpoint.planning.solve.relaxation import Relaxation

Clock = Callable[[], float]
#: Of `StageTotals`: the sum of device, link and server, or the slowest of the three.
Goal = Literal["total", "slowest"]

#: What looking at a block's closed parts one by one may take: parts × steps, unfinished parts included. Some 100 ms.
MOST_WORK = 20_000_000
#: Linear programs solved for each block that has more parts than that.
MOST_NODES = 200
#: Where a block has too many parts, a gap this small is not worth closing.
_CLOSE = 1e-3
#: Sums of the same numbers in another order may differ by this much; a limit is not missed for it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limit:
    """What a placement costs in total by `costs` (any unit, the same steps and tensors) is at most `most`."""

    costs: Problem
    most: float


def search(
    problem: Problem,
    goal: Goal,
    within: Sequence[Limit] = (),
    *,
    budget_s: float = 1.0,
    most_work: int = MOST_WORK,
    most_nodes: int = MOST_NODES,
    clock: Clock = perf_counter,
) -> Solution:
    """The placement with the least `goal` (of `stages`) among those that keep every limit, with a proven bound.

    Where none is known to keep them, `value` is inf: no placement does if `bound` is inf, too. The search ends after
    `budget_s` seconds, or, alike on every machine, by `most_work` and `most_nodes`. A limit that is inf is none.
    """
    measures = three_stages(problem) if goal == "slowest" else one_sum(problem)
    within = [limit for limit in within if limit.most < math.inf]
    for limit in within:
        if (limit.costs.steps, limit.costs.link.size) != (problem.steps, problem.link.size):
            raise ValueError("a limit counts the same steps and tensors as the problem")
        measures += one_sum(limit.costs)
    most = np.array([limit.most for limit in within], np.float64)
    blocks = _BlockSearch(problem, measures, most, clock() + budget_s, most_work, most_nodes, clock)
    proven = blocks.run()
    if blocks.on_edge is None:
        return Solution(np.ones(problem.steps, bool), math.inf, proven)
    totals = stages(problem, blocks.on_edge)
    value = totals.slowest if goal == "slowest" else totals.total  # sums differ in their last digits
    return Solution(blocks.on_edge, value, value if proven >= blocks.value else min(value, proven))


class _BlockSearch:
    """`run` leaves the best placement in `on_edge` (None if nothing within the limits is known) and its `value`."""

    def __init__(
        self,
        problem: Problem,
        measures: Measures,
        limits: Floats,
        deadline: float,
        most_work: int,
        most_nodes: int,
        clock: Clock,
    ) -> None:
        self.order, self.measures, self.clock, self.deadline = StepOrder(problem), measures, clock, deadline
        self.most_work, self.most_nodes = most_work, most_nodes
        self.goals = measures.count - len(limits)
        self.limits = limits + np.abs(limits) * _ROUNDING
        self.on_edge: Bools | None = None
        self.value = math.inf
        nothing = np.zeros((measures.count, 1))
        self._before = np.hstack([nothing, np.cumsum(measures.inside, axis=1)])
        self._behind = np.hstack([np.cumsum(measures.outside[:, ::-1], axis=1)[:, ::-1], nothing])
        self._weights = simplex(self.goals, 16)

    @property
    def caps(self) -> Floats:
        """What each measure must stay below to be worth a look."""
        return np.concatenate([np.full(self.goals, self.value), np.nextafter(self.limits, math.inf)])

    def run(self) -> float:
        """What is proven of every placement: none has a smaller value."""
        length = self._improves(self.order.prefixes(self.measures))
        if length is not None:
            self.on_edge = np.arange(self.order.steps) < length
        # Blocks with anything between their first and last prefix.
        open_blocks = [(first, end) for first, end in self.order.blocks if end - first > 1]
        unproven: list[float] = []
        wide: list[tuple[float, Block]] = []
        for floor, first, end in sorted((self._floor(first, end), first, end) for first, end in open_blocks):
            if floor >= self.value:
                continue
            if self.clock() > self.deadline:
                unproven.append(floor)
                continue
            block = Block(self.order, self.measures, first, end)
            parts = block.parts(self.caps, self.most_work)
            if parts is None:
                wide.append((floor, block))
                continue
            rows, values = parts
            best = self._improves(values.T)
            if best is not None:
                self.on_edge = block.on_edge(rows[best])
        for floor, block in wide:
            unproven.append(self._branch(block, floor) if floor < self.value * (1 - _CLOSE) else floor)
        return min([self.value, *unproven])

    def _improves(self, values: Floats) -> int | None:
        """Which of some placements, by their measures (float64[count, placements]), is the best so far; None if none.

        Its value is kept.
        """
        if not values.size:
            return None
        within = (values[self.goals :] <= self.limits[:, None]).all(axis=0)
        worst = np.where(within, values[: self.goals].max(axis=0), math.inf)
        best = int(worst.argmin())
        if worst[best] >= self.value:
            return None
        self.value = float(worst[best])
        return best

    def _floor(self, first: int, end: int) -> float:
        """A lower bound on all that ends inside a block, without looking at its edges; inf if no limit can be kept.

        A weighted mean of the measures is no larger than the largest; and each step is on one side or the other.
        """
        m, goals = self.measures, self.goals
        base = self._before[:, first] + self._behind[:, end] + m.fixed_inside + m.fixed_outside
        if (base[goals:] > self.limits).any() or np.isinf(base[:goals]).any():
            return math.inf
        if (base[:goals] >= self.value).any():
            return self.value
        top = min(self.value, 1e200)  # inf × 0 is not a number
        inside = np.minimum(m.inside[:goals, first:end], top)
        outside = np.minimum(m.outside[:goals, first:end], top)
        least = np.minimum(self._weights @ inside, self._weights @ outside).sum(axis=1)
        return float((self._weights @ base[:goals] + least).max())

    def _branch(self, block: Block, floor: float) -> float:
        """Try what the linear relaxation of a block suggests; what that proves of all the block's parts.

        Branch and bound, best bound first: a step that the relaxation splits is put on the device, then on the server.
        """
        if self.clock() > self.deadline:
            return floor
        relaxed = Relaxation(block, self.caps, self.goals)
        low, high = relaxed.low, relaxed.high
        heap: list[tuple[float, int, Floats, Floats, Floats]] = []
        proven = math.inf  # of what is closed for good
        solved = 0

        def look(low: Floats, high: Floats, known: float) -> None:
            nonlocal proven, solved
            solved += 1
            bound, shares = relaxed.solve(low, high, self.deadline - self.clock())
            bound = max(bound, known)
            if shares is None:
                proven = min(proven, bound)
                return
            ranking = relaxed.ranking(shares)
            length = self._improves(block.along(ranking))
            if length is not None:
                part = np.zeros(block.size, bool)
                part[ranking[:length]] = True
                self.on_edge = block.on_edge(part)
            heapq.heappush(heap, (bound, solved, low, high, shares))

        look(low, high, floor)
        while heap and heap[0][0] < self.value * (1 - _CLOSE) and solved < self.most_nodes:
            if self.clock() > self.deadline:
                break
            bound, _, low, high, shares = heapq.heappop(heap)
            step = relaxed.split(shares, low, high)
            if step is None:
                proven = min(proven, bound)
                continue
            for side in (0.0, 1.0):
                low_side, high_side = low.copy(), high.copy()
                low_side[step] = high_side[step] = side
                look(low_side, high_side, bound)
        return min([proven, *(entry[0] for entry in heap)])
