"""The best placement of all there are, not of the prefixes alone, with a proven bound."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from splitpoint.link import Link
from splitpoint.planning.candidates import Candidates
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.solve.constrained import Limit, least_within
from splitpoint.planning.solve.min_cut import Cutter
from splitpoint.planning.solve.problem import Problem, Solution
from splitpoint.planning.solve.throughput import bottleneck
from splitpoint.planning.split_problem import SplitProblem

#: Seconds that a search without an exact answer may take: for a plan, and for one of the many of its sensitivity.
_SEARCH_S, _GLANCE_S = 1.0, 0.05


class PlacementSearch:
    """Searches all placements between two hosts under constraints. What does not add up (accuracy) is left out of the
    bound, which stays true."""

    def __init__(self, costs: CostModel, constraints: Constraints, candidates: Candidates) -> None:
        self.costs, self.constraints, self._candidates = costs, constraints, candidates
        self.objective = candidates.objective

    def glance(self, link: Link) -> Solution:
        """The best placement for a new link, in little time."""
        return self._searched(self.choice, link, _GLANCE_S)

    def solutions(self, link: Link) -> tuple[list[Solution], float]:
        """Placements for the table, and a value that no placement is below."""
        floor = self._searched(self._bounding, link, _SEARCH_S)
        solutions = [floor]
        if self.choice is not self._bounding:
            # The bound holds for every codec; what is chosen may use only what is accurate enough.
            solutions.append(self._searched(self.choice, link, _SEARCH_S))
        mixed = solutions[-1].on_edge.any() and not solutions[-1].on_edge.all()
        if self.objective == "latency" and len(self.costs.graph.order) > 1 and not mixed:
            # One side has everything: the best true split, for the table.
            solutions.append(self._inside(link))
        return solutions, floor.bound

    @cached_property
    def _bounding(self) -> SplitProblem:
        """The costs of every placement with every codec: a bound for those with less choice."""
        return SplitProblem(self.costs, keep_input_local=self.constraints.keep_input_local)

    @cached_property
    def choice(self) -> SplitProblem:
        """The costs of what may be chosen: codecs tensor by tensor, as far as they are accurate enough."""
        limits = self.constraints
        if limits.max_drop is None:
            return self._bounding
        return SplitProblem(
            self.costs,
            may_use=lambda tensor, codec: self.costs.calibrated.allows(tensor, codec, limits.max_drop),
            keep_input_local=limits.keep_input_local,
        )

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._bounding.problem(Link(1.0, 1.0, 1.0), self.objective))

    def _searched(self, split: SplitProblem, link: Link, search_s: float) -> Solution:
        stream = self.objective == "throughput"
        problem = self._problem(split, link, self._known(link) if stream else np.inf)
        deadline = self.constraints.deadline_ms
        limits = []
        if deadline is not None and self.objective != "latency":
            limits.append(Limit(split.problem(link), deadline))
        if stream:
            return bottleneck(problem, within=limits, budget_s=search_s)
        if limits:
            return least_within(problem, limits, budget_s=search_s)
        return self._cutter.least(problem)

    def _inside(self, link: Link) -> Solution:
        problem = self._problem(self.choice, link)
        first, last = np.zeros(problem.steps, bool), np.zeros(problem.steps, bool)
        first[0] = last[-1] = True
        return self._cutter.least(problem, keep_edge=first, keep_cloud=last)

    def _known(self, link: Link) -> float:
        """The least slowest stage of an allowed prefix: what a better placement must stay below."""
        scores, allowed = self._candidates.scores(link)
        return float(np.where(allowed, scores, np.inf).min())

    def _problem(self, split: SplitProblem, link: Link, most: float = np.inf) -> Problem:
        """The costs of every placement; steps too large for the device's memory, and those that the server does not
        share, cost without limit there."""
        problem = split.problem(link, self.objective, most=most)
        shared = self.constraints.shared
        if self._room is None and shared is None:
            return problem
        fits = np.arange(problem.steps) < (problem.steps if self._room is None else self._room)
        if shared is not None:
            fits &= self.costs.steps.on_edge(shared.cut.nodes)
        return dataclasses.replace(problem, edge=np.where(fits, problem.edge, np.inf))

    @cached_property
    def _room(self) -> int | None:
        """How many steps the device has memory for; None without a limit.

        Exactly what `Scorer.memory_of` allows: it grows with the prefix, and a cut counts as the smallest around it.
        """
        most = self.costs.hosts[0].most_memory
        return None if most is None else int(np.flatnonzero(np.array(self._candidates.memory) <= most)[-1])
