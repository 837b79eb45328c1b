"""The best placement under measures that do not add up, with a proven bound: the search behind heavy load and limits.

Minimises the largest of some measures of a placement while others keep to limits. Both are NP-hard in general (steps
that need nothing of each other, between two equal machines: a number partition; one sum against a limit: a knapsack),
so what is returned is a value *and* what is proven of every placement:

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from time import perf_counter

import numpy as np

from splitpoint.planning.solve.blocks import Block, Measures, StepOrder
from splitpoint.planning.solve.problem import Bools, Floats, Ints, Problem
from splitpoint.planning.solve.relaxation import Relaxation

Clock = Callable[[], float]

#: What looking at a block's closed parts one by one may take: parts × steps, unfinished parts included. Some 100 ms.
MOST_WORK = 20_000_000
#: Linear programs solved for each block that has more parts than that.
MOST_NODES = 200
#: Where a block has too many parts, a gap this small is not worth closing.
_CLOSE = 1e-3
#: Sums of the same numbers in another order may differ by this much; a limit is not missed for it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SearchResult:
    """`on_edge` is None if nothing within the limits was found; then `value` is inf. No placement is below `bound`."""

    on_edge: Bools | None
    value: float
    bound: float

    @property
    def exact(self) -> bool:
        return self.bound >= self.value


def search(
    problem: Problem,
    measures: Measures,
    limits: Floats,
    *,
    budget_s: float,
    most_work: int = MOST_WORK,
    most_nodes: int = MOST_NODES,
    clock: Clock = perf_counter,
) -> SearchResult:
    """The placement with the least maximum of the first measures, where the last ``len(limits)`` keep to `limits`.

    `problem` gives the wiring only. `budget_s` ends the search; `most_nodes` alone (and an infinite budget) makes it
    repeatable on any machine.
    """
    return _BlockSearch(problem, measures, limits, clock() + budget_s, most_work, most_nodes, clock).run()


class _BlockSearch:
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
        self._weights = _weights(self.goals)

    @property
    def caps(self) -> Floats:
        """What each measure must stay below to be worth a look."""
        return np.concatenate([np.full(self.goals, self.value), np.nextafter(self.limits, math.inf)])

    def run(self) -> SearchResult:
        self._try_prefixes()
        blocks = sorted((self._floor(first, end), first, end) for first, end in self._open())
        unproven: list[float] = []
        wide: list[tuple[float, Block]] = []
        for floor, first, end in blocks:
            if floor >= self.value:
                continue
            if self.clock() > self.deadline:
                unproven.append(floor)
                continue
            block = Block(self.order, self.measures, first, end)
            parts = block.parts(self.caps, self.most_work)
            if parts is None:
                wide.append((floor, block))
            else:
                self._try_parts(block, *parts)
        for floor, block in wide:
            unproven.append(self._branch(block, floor) if floor < self.value * (1 - _CLOSE) else floor)
        return SearchResult(self.on_edge, self.value, min([self.value, *unproven]))

    # --- candidates ---------------------------------------------------------------------------------------------

    def _try_prefixes(self) -> None:
        values = self.order.prefixes(self.measures)
        within = (values[self.goals :] <= self.limits[:, None]).all(axis=0)
        worst = np.where(within, values[: self.goals].max(axis=0), math.inf)
        length = int(worst.argmin())
        if worst[length] < math.inf:
            self.on_edge, self.value = np.arange(self.order.steps) < length, float(worst[length])

    def _try_parts(self, block: Block, rows: Bools, values: Floats) -> None:
        """`values` are below the caps already."""
        if not len(rows):
            return
        worst = values[:, : self.goals].max(axis=1)
        best = int(worst.argmin())
        if worst[best] < self.value:
            self.on_edge, self.value = block.on_edge(rows[best]), float(worst[best])

    # --- blocks -------------------------------------------------------------------------------------------------

    def _open(self) -> list[tuple[int, int]]:
        """Blocks with anything between their first and last prefix."""
        return [(first, end) for first, end in self.order.blocks if end - first > 1]

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
            self._try_along(block, relaxed.ranking(shares))
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

    def _try_along(self, block: Block, ranking: Ints) -> None:
        """Try every part of a block that the first steps of this order of it make."""
        values = block.along(ranking)
        within = (values[self.goals :] <= self.limits[:, None]).all(axis=0)
        worst = np.where(within, values[: self.goals].max(axis=0), math.inf)
        length = int(worst.argmin())
        if worst[length] < self.value:
            part = np.zeros(block.size, bool)
            part[ranking[:length]] = True
            self.on_edge, self.value = block.on_edge(part), float(worst[length])


@cache
def _weights(count: int, parts: int = 16) -> Floats:
    """Weights of `count` measures that sum to one, in steps of 1/parts: float64[k, count]."""
    grid = [w for w in product(range(parts + 1), repeat=count - 1) if sum(w) <= parts]
    return np.array([(*w, parts - sum(w)) for w in grid]) / parts
