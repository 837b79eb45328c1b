"""A block's placements as a linear program: where a step may be shared between both sides, the optimum is a bound.

One variable for each step (1: on the device), one for each tensor that may cross (1: it does), and the largest goal.
Closed sets and crossings alone make a totally unimodular program (a minimum cut); the maximum and the limits do not, so
the optimum may share steps between both sides. By duality it is the best bound that any weighted sum of the measures
gives (the Lagrangian dual over minimum cuts).

`scipy.optimize.linprog` (HiGHS) solves it. SciPy's mixed-integer solver is not used: it cannot be told of a placement
that is known already, left 19 % on a random graph of 2,000 steps where this search leaves 0.01 % in the same five
seconds, and now and then prints on standard output.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from splitpoint.planning.solve.blocks import Block
from splitpoint.planning.solve.problem import Floats, Ints

#: HiGHS keeps to constraints, and optima, within 1e-7 of numbers near one; bounds give that away, and more.
_TOLERANCE = 1e-6


class Relaxation:
    """The linear program of a block, scaled so that what must be beaten (`caps`) is one."""

    def __init__(self, block: Block, caps: Floats, goals: int) -> None:
        self.block, self.goals, self.steps = block, goals, block.size
        self._most = caps
        self._caps: Floats = np.minimum(caps, np.finfo(np.float64).max)  # inf stays too much
        across = block.measures.across
        self._tensors = [t for t in block.inner if across[:, t.index].any()]
        costs = (block.enter, block.stay, across[:, [t.index for t in self._tensors]])
        self._scale = self._scales(costs)
        self.low, self.high = self._bounds(*costs)
        # What is forbidden anyway counts nothing.
        self._enter, self._stay, self._across = (
            np.where(a <= self._caps[:, None], a, 0.0) / self._scale[:, None] for a in costs
        )
        self._rows: tuple[Any, Floats] = self._constraints()

    def solve(self, low: Floats, high: Floats, budget_s: float) -> tuple[float, Floats | None]:
        """A bound on the largest goal of every part between `low` and `high`; each step's share on the device.

        The bound is at most what must be beaten. No share where there is nothing to find, or no time.
        """
        from scipy.optimize import linprog

        if (low > high).any():
            return float(self._most[0]), None
        if budget_s <= 0:
            return 0.0, None
        objective = np.zeros(low.size)
        objective[-1] = 1.0
        matrix, most = self._rows
        options = {"time_limit": budget_s} if math.isfinite(budget_s) else {}
        answer = linprog(
            objective, A_ub=matrix, b_ub=most, bounds=np.stack([low, high], axis=1), method="highs", options=options
        )
        if answer.status == 2:  # infeasible: nothing here is better than what is known
            return float(self._most[0]) * (1 - _TOLERANCE), None
        if answer.status != 0:
            return 0.0, None
        return float((answer.fun - _TOLERANCE) * self._scale[0]), np.clip(answer.x[: self.steps], 0.0, 1.0)

    def ranking(self, shares: Floats) -> Ints:
        """The block's steps in a topological order, the larger share first."""
        first = self.block.first
        shares = shares.round(6)
        for place in range(self.steps):
            for before in self.block.order.needs[first + place]:
                if before >= first:
                    shares[place] = min(shares[place], shares[before - first])
        return np.argsort(-shares, kind="stable").astype(np.int32)

    def split(self, shares: Floats, low: Floats, high: Floats) -> int | None:
        """The step whose being shared says most: neither side has it, and it costs much. None if none is shared."""
        weight = (self._enter + self._stay).sum(axis=0)
        score = np.minimum(shares, 1 - shares) * (weight + 1e-3)
        score[(shares < 1e-5) | (shares > 1 - 1e-5) | (low[: self.steps] == high[: self.steps])] = 0.0
        step = int(score.argmax())
        return step if score[step] > 0 else None

    # --- the program --------------------------------------------------------------------------------------------

    def _scales(self, costs: tuple[Floats, ...]) -> Floats:
        scale = self._caps.copy()
        if math.isinf(self._most[0]):  # nothing within the limits is known yet
            total = self.block.base + sum(np.where(np.isfinite(a), a, 0.0).sum(axis=1) for a in costs)
            scale[: self.goals] = total[: self.goals].max()
        return np.where(scale > 1e-300, scale, 1.0)

    def _bounds(self, enter: Floats, stay: Floats, across: Floats) -> tuple[Floats, Floats]:
        """A choice that alone costs too much is none: no coefficient of the program is above one."""
        caps = self._caps[:, None]
        low = np.zeros(self.steps + len(self._tensors) + 1)
        high = np.ones_like(low)
        high[: self.steps][(enter > caps).any(axis=0)] = 0.0
        low[: self.steps][(stay > caps).any(axis=0)] = 1.0
        high[self.steps : -1][(across > caps).any(axis=0)] = 0.0
        return low, high

    def _constraints(self) -> tuple[Any, Floats]:
        """``matrix @ variables ≤ most``."""
        from scipy.sparse import csr_array

        rows: list[int] = []
        columns: list[int] = []
        entries: list[float] = []
        most: list[float] = []

        def constrain(terms: dict[int, float], high: float) -> None:
            rows.extend([len(most)] * len(terms))
            columns.extend(terms)
            entries.extend(terms.values())
            most.append(high)

        first, largest = self.block.first, self.steps + len(self._tensors)
        for place in range(self.steps):
            for before in self.block.order.needs[first + place]:
                if before >= first:
                    constrain({place: 1.0, before - first: -1.0}, 0.0)
        for k, t in enumerate(self._tensors):
            for user in t.users:
                if user >= first and t.maker >= first:
                    constrain({t.maker - first: 1.0, user - first: -1.0, self.steps + k: -1.0}, 0.0)
                elif user >= first:
                    constrain({user - first: -1.0, self.steps + k: -1.0}, -1.0)
        for j in range(self.block.measures.count):
            terms, base = self._sum(j)
            if j < self.goals:
                constrain(terms | {largest: -1.0}, -base)
            else:
                constrain(terms, float(self._caps[j] / self._scale[j]) - base)
        # Neither nothing nor all of the block: those are prefixes, and may not pay both fixed costs.
        constrain(dict.fromkeys(range(self.steps), 1.0), self.steps - 1.0)
        constrain(dict.fromkeys(range(self.steps), -1.0), -1.0)
        return csr_array((entries, (rows, columns)), shape=(len(most), largest + 1)), np.array(most)

    def _sum(self, j: int) -> tuple[dict[int, float], float]:
        """Measure j as coefficients and a constant, scaled."""
        terms = dict(enumerate((self._enter[j] - self._stay[j]).tolist()))
        terms.update({self.steps + k: c for k, c in enumerate(self._across[j].tolist())})
        return {k: c for k, c in terms.items() if c}, float(self.block.base[j] / self._scale[j] + self._stay[j].sum())
