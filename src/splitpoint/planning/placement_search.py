"""The best placement of all there are, not of the prefixes alone, with a proven bound.

The search is two-sided because its mathematics is: a minimum cut parts two terminals, and the steps on either side of
it cost what they cost there (`solve.problem`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from splitpoint.codecs import open_priced
from splitpoint.link import Link
from splitpoint.planning.candidates import Candidates
from splitpoint.planning.constraints import Constraints, input_like
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.frame_bytes import ANSWER_NBYTES, REQUEST_NBYTES
from splitpoint.planning.objectives import ObjectiveWeights, weights_of
from splitpoint.planning.solve.min_cut import Cutter
from splitpoint.planning.solve.problem import Floats, Ints, Problem, Solution
from splitpoint.planning.solve.search import Limit, search

#: Seconds that a search without an exact answer may take: for a plan, and for one of the many of its sensitivity.
_SEARCH_S, _GLANCE_S = 1.0, 0.05
#: Objectives that many placements share the least value of, and what of it counts as the same (bytes, ms).
_TIES: Mapping[str, float] = {"bytes": 0.5, "server-time": 0.5e-6}
_NONE = Constraints()


class SplitProblem:
    """The problem of a cost model with two hosts, for any link: a new link takes a few sums over arrays.

    >>> split = SplitProblem(costs)
    >>> cut = costs.steps.cut(least(split.problem(PRESETS["4g"])).on_edge)

    Of `limits` it keeps what answers must be kept, an inexact codec being used only for tensors that are shown to keep
    it (`Calibrated.allows`), and `keep_input_local`: neither the model's input nor what still shows it crosses.
    """

    def __init__(self, costs: CostModel, limits: Constraints = _NONE) -> None:
        self.costs = costs
        [self._table] = costs.tables
        self._own, self._theirs = (host.profile.costs() for host in costs.hosts)
        self._head, self._tail = costs.steps.sums(self._own.head), costs.steps.sums(self._theirs.tail)
        tensors = costs.steps.tensors
        shown = input_like(costs.graph) if limits.keep_input_local else ()
        self._local = np.array([t.name in shown for t in tensors], bool)
        self._usable = self._table.accepts.copy()
        for c, name in enumerate(costs.codecs):
            if not open_priced(name).exact:
                self._usable[:, c] &= [costs.calibrated.allows(t.name, name, limits) for t in tensors]

    def problem(self, link: Link, objective: str = "latency", *, most: float = np.inf) -> Problem:
        """The problem in the objective's unit: ms (latency, server-time), mJ (energy) or bytes.

        Bytes and server time count latency, too, with so small a weight that all of it is less than a byte or a
        nanosecond: it decides between equals.

        For throughput: the ms that keep device, link (codecs included) and server busy; the round trip keeps none. A
        tensor has the least that any of its codecs takes of each stage, so that no placement with any choice of codecs
        is below its value here. A codec that alone takes more than `most` ms of a stage is in no placement better than
        one of that value, and is left out.
        """
        w = self._weights(link, objective)
        up, down = _byte_costs(link, w)
        stream = objective == "throughput"
        if stream:
            encode, crossing, decode = self._stage_costs(up, most)
        else:
            crossing = self._tensor_costs(link, w).min(axis=1)
            encode = decode = np.zeros(len(crossing))
        crossing[self._local] = np.inf
        own = w.hosts[1] * self._theirs.tail_fixed
        around = w.trips[0] * link.beside_ms + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        steps = self.costs.steps
        return Problem(
            edge=w.hosts[0] * self._head,
            cloud=w.hosts[1] * self._tail,
            before=steps.before,
            after=steps.after,
            maker=steps.maker,
            link=crossing,
            first=steps.first,
            users=steps.users,
            down=down * steps.down,
            edge_fixed=w.hosts[0] * self._own.head_fixed,
            cloud_fixed=around if stream else own + around,
            encode=encode,
            decode=decode,
            server_fixed=own if stream else 0.0,
        )

    def codecs(self, link: Link, objective: str = "latency") -> Ints:
        """The codec of every tensor that may cross, as its place in ``costs.codecs``: the cheapest on this link."""
        # The first of equals: raw before codecs that gain nothing.
        cheapest: Ints = self._tensor_costs(link, self._weights(link, objective)).argmin(axis=1).astype(np.int32)
        return cheapest

    def _tensor_costs(self, link: Link, weights: ObjectiveWeights) -> Floats:
        """float64[tensors, codecs]: what each crossing costs."""
        up, _ = _byte_costs(link, weights)
        table = self._table
        device, server = weights.hosts
        return np.where(self._usable, device * table.encode_ms + up * table.nbytes + server * table.decode_ms, np.inf)

    def _stage_costs(self, up: float, most: float) -> tuple[Floats, Floats, Floats]:
        """The least that a tensor keeps the device, the link and the server busy, over its codecs (float64[tensors]).

        inf on the link for a tensor that no codec brings across within `most`.
        """
        stages = np.stack([self._table.encode_ms, up * self._table.nbytes, self._table.decode_ms])
        usable = self._usable & (stages <= most).all(axis=0)
        device, network, server = np.where(usable, stages, np.inf).min(axis=2)
        never = np.isinf(network)
        return np.where(never, 0.0, device), network, np.where(never, 0.0, server)

    def _weights(self, link: Link, objective: str) -> ObjectiveWeights:
        weights = weights_of(objective, self.costs.hosts)
        if objective == "throughput":
            return ObjectiveWeights(weights.hosts, weights.transfers, (0.0,))
        if objective not in _TIES:
            return weights
        latency = weights_of("latency", self.costs.hosts)
        up, down = _byte_costs(link, latency)
        raw = up * self._table.nbytes[:, 0].sum() + down * self.costs.steps.down.sum()
        fixed = self._own.head_fixed + self._theirs.tail_fixed + link.beside_ms
        coded = (self._table.encode_ms + self._table.decode_ms).max(axis=1).sum()
        most = self._head.sum() + self._tail.sum() + raw + coded + fixed + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        return weights.plus(latency, _TIES[objective] / max(1.0, most))


def _byte_costs(link: Link, weights: ObjectiveWeights) -> tuple[float, float]:
    """What a byte up and a byte down cost."""
    return weights.transfers[0] * link.up_ms(1) + weights.byte, weights.transfers[0] * link.down_ms(1) + weights.byte


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
        return SplitProblem(self.costs, Constraints(keep_input_local=self.constraints.keep_input_local))

    @cached_property
    def choice(self) -> SplitProblem:
        """The costs of what may be chosen: codecs tensor by tensor, as far as they are accurate enough."""
        return SplitProblem(self.costs, self.constraints) if self.constraints.faithful else self._bounding

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
        if stream or limits:
            return search(problem, "slowest" if stream else "total", limits, budget_s=search_s)
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
        return None if most is None else int(np.flatnonzero(np.array(self._candidates.scorer.memory) <= most)[-1])
