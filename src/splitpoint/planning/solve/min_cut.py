"""The placement of least total cost, exactly: a minimum s–t cut (DADS, INFOCOM'19, light load).

Source side = the device. A step on the device cuts its edge to the sink (capacity: device time), a step on the server
its edge from the source (server time, and the answer's way down); a tensor's edge is cut when it crosses, once, and
edges without limit keep a step from being on the device without what it needs.

SciPy's flow is int32 and truncates wider integers without a word, so a cost in a graph with costs a million times
larger would be rounded away. Here capacities are cut off above U, the best value known, and scaled so that U is at
most 2^29. Rounding *down* makes what SciPy finds a real flow of the unrounded network. What is left of the capacities
(exact in float64: the scale is a power of two) is solved again with the gap as the new U, some 10⁵ times finer each
time, until flow and cut meet. An edge that is left with more than the gap is in no better cut: its ends become one
vertex, so that the second pass has only the few steps to decide that rounding had left open. The flow is then the proof
that no placement is better.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitpoint.planning.solve.problem import Bools, Floats, Ints, Problem, Solution, stages

#: The largest flow there can be, and a capacity that no cut of at most that much contains. Their sum fits int32.
_FLOW = 1 << 29
_ENDLESS = 1 << 30
#: Passes after which the gap is what it is. Three are enough for costs from a nanosecond to an hour.
_PASSES = 8
_EPSILON = float(np.finfo(np.float64).eps)

_INDEX = np.int32
Indices: TypeAlias = NDArray[np.intp]


def least(problem: Problem, *, keep_edge: Bools | None = None, keep_cloud: Bools | None = None) -> Solution:
    """The closed placement with the least `stages(problem, …).total`, and the proof; see `Cutter.least`."""
    return Cutter(problem).least(problem, keep_edge=keep_edge, keep_cloud=keep_cloud)


@dataclass(frozen=True)
class _Network:
    """Directed edges in CSR order (`heads`, `starts`; `tails` in full), each with its reverse: SciPy then adds none,
    and its answer lines up with ours. The last two vertices are source and sink. What edges can still carry is apart,
    in `spare` (float64, one an edge).
    """

    vertices: int
    tails: Ints
    heads: Ints
    starts: Ints

    @property
    def source(self) -> int:
        return self.vertices - 2

    @property
    def sink(self) -> int:
        return self.vertices - 1

    @classmethod
    def of(cls, vertices: int, tails: Indices, heads: Indices) -> tuple[_Network, Indices]:
        """The network with these edges and their reverses, and which edge of it each given one is."""
        there, back = tails * vertices + heads, heads * vertices + tails
        keys, place = np.unique(np.concatenate([there, back]), return_inverse=True)
        tails, heads = np.divmod(keys, vertices)
        starts = np.searchsorted(tails, np.arange(vertices + 1))
        return cls(vertices, tails.astype(_INDEX), heads.astype(_INDEX), starts.astype(_INDEX)), place[: there.size]

    def cut(self, spare: Floats, side: Bools) -> float:
        """What the edges out of `side` can still carry: how much more than the flow so far it costs."""
        return float(spare[side[self.tails] & ~side[self.heads]].sum())

    def push(self, spare: Floats, gap: float) -> tuple[Bools, float]:
        """The source's side of a minimum cut of `spare` as integers, and its flow, which is taken off `spare`.

        `gap` is what some cut of `spare` can carry.
        """
        from scipy.sparse.csgraph import maximum_flow

        unit = 2.0 ** np.ceil(np.log2(gap / _FLOW))
        whole = np.where(spare > gap, _ENDLESS, np.minimum(spare, gap) // unit).astype(_INDEX)
        solved = maximum_flow(_matrix(whole, self.heads, self.starts), self.source, self.sink, method="dinic")
        flow: Ints = solved.flow.data
        spare -= flow * unit
        return self.reached(whole > flow, self.source), solved.flow_value * unit

    def reached(self, passable: Bools, start: int) -> Bools:
        """Which vertices passable edges lead to from `start`."""
        from scipy.sparse.csgraph import breadth_first_order

        seen = np.zeros(self.vertices, bool)
        seen[breadth_first_order(self._only(passable), start, return_predecessors=False)] = True
        return seen

    def contracted(self, spare: Floats, gap: float) -> tuple[_Network, Floats, Indices]:
        """The network in which all that no cut of less than `gap` parts is one vertex, its `spare`, and which vertex
        of it each of ours is in.
        """
        from scipy.sparse.csgraph import connected_components

        # Whatever is on the source's side, the source is there, too; the same for the sink.
        together = (spare > gap) | (self.heads == self.source) | (self.tails == self.sink)
        count, parts = connected_components(self._only(together), directed=True, connection="strong")
        if count == self.vertices:
            return self, spare, np.arange(count)
        ends = [parts[self.source], parts[self.sink]]
        rank = np.empty(count, np.intp)
        rank[np.delete(np.arange(count), ends)] = np.arange(count - 2)
        rank[ends] = count - 2, count - 1
        label = rank[parts]
        tails, heads = label[self.tails], label[self.heads]
        apart = tails != heads
        smaller, place = _Network.of(count, tails[apart], heads[apart])
        merged = np.bincount(place, spare[apart], smaller.tails.size).astype(np.float64)
        return smaller, merged, label

    def _only(self, chosen: Bools) -> Any:
        """The network with the chosen edges alone, as SciPy's graph."""
        count = np.concatenate([np.zeros(1, _INDEX), np.cumsum(chosen, dtype=_INDEX)])
        heads = self.heads[chosen]
        return _matrix(np.ones(heads.size), heads, count[self.starts])


def _matrix(data: NDArray[Any], heads: Ints, starts: Ints) -> Any:
    from scipy.sparse import csr_array

    vertices = starts.size - 1
    return csr_array((data, heads, starts), shape=(vertices, vertices))


def _minimum(network: _Network, spare: Floats, side: Bools) -> tuple[Bools, float]:
    """The source's side of a minimum cut, and what no cut is below; `side` is any whose cut is finite."""
    flow, gap = 0.0, network.cut(spare, side)
    place = np.arange(network.vertices)  # of the vertices at first in the network as it is now
    for _ in range(_PASSES):
        if gap <= _EPSILON * flow:
            break
        network, spare, label = network.contracted(spare, gap)
        place, here = label[place], np.zeros(network.vertices, bool)
        here[label[side]] = True
        side = here
        if network.vertices == 2:
            flow += gap  # nothing is left to decide: this is the only cut
            break
        reached, more = network.push(spare, gap)
        flow += more
        gap, side = min(((network.cut(spare, s), s) for s in (side, reached)), key=lambda pair: pair[0])
    return side[place], flow


class Cutter:
    """Finds the best placement again and again while only costs change: the network of flows is built once.

    Its vertices are the steps, one for each tensor with several users, source and sink.

    >>> cutter = Cutter(problem)
    >>> slower = cutter.least(dataclasses.replace(problem, link=problem.link * 4))
    >>> cutter.least(problem).value <= slower.value
    True
    """

    def __init__(self, problem: Problem) -> None:
        n, count = problem.steps, problem.link.size
        owner = np.repeat(np.arange(count), np.diff(problem.first))
        users = problem.users.astype(np.intp)
        real = users != problem.maker[owner]
        owner, users = owner[real], users[real]
        wanted = np.bincount(owner, minlength=count)
        shared = np.flatnonzero(wanted > 1)
        helper = np.full(count, -1, np.intp)
        helper[shared] = n + np.arange(shared.size)
        vertices = n + shared.size + 2
        source, sink = vertices - 2, vertices - 1
        # A tensor's edge ends at its only user, or at its helper, from which edges without limit lead to the users.
        ends = helper.copy()
        alone = wanted[owner] == 1
        ends[owner[alone]] = users[alone]
        #: The tensors that have an edge: those with a user other than their maker.
        self._crossing = crossing = np.flatnonzero(wanted > 0)
        makers = np.where(problem.maker < 0, source, problem.maker).astype(np.intp)
        steps = np.arange(n)
        apart = problem.before != problem.after
        tails = [np.full(n, source), steps, makers[crossing], helper[owner[~alone]], problem.after[apart]]
        heads = [steps, np.full(n, sink), ends[crossing], users[~alone], problem.before[apart]]
        self._network, place = _Network.of(vertices, np.concatenate(tails), np.concatenate(heads))
        priced = 2 * n + crossing.size
        #: Which edge each cost belongs to, first cloud, then edge, then link; and the edges that have no limit.
        self._slots, self._endless = place[:priced], place[priced:]

    def least(self, problem: Problem, *, keep_edge: Bools | None = None, keep_cloud: Bools | None = None) -> Solution:
        """The best placement of `problem`: the same steps and tensors as the one this was made with, at any costs.

        Steps in `keep_edge` must be on the device and those in `keep_cloud` on the server. `value` and `bound` are
        inf if no placement meets that and the links that are inf.
        """
        if keep_edge is not None:
            problem = dataclasses.replace(problem, cloud=np.where(keep_edge, np.inf, problem.cloud))
        if keep_cloud is not None:
            problem = dataclasses.replace(problem, edge=np.where(keep_cloud, np.inf, problem.edge))
        everything, nothing = np.ones(problem.steps, bool), np.zeros(problem.steps, bool)
        # Nothing and everything on the device do without one of the fixed costs; no other placement does. So the best
        # of the others is a least variable cost, and the three are compared.
        local, remote = stages(problem, everything).total, stages(problem, nothing).total
        if not problem.steps:
            return Solution(everything, local, local)
        spare, paid = self._capacities(problem)
        start = self._start(spare)
        if start is None:
            return Solution(everything, np.inf, np.inf)
        side, flow = _minimum(self._network, spare, start)
        on_edge = side[: problem.steps]
        mixed = stages(problem, on_edge).total
        value, best = min([(local, everything), (remote, nothing), (mixed, on_edge)], key=lambda each: each[0])
        # A sum of float64 is off by at most an epsilon of itself for each term.
        floor = (paid + flow) * max(0.0, 1 - _EPSILON * spare.size) + problem.edge_fixed + problem.remote_fixed
        return Solution(best, value, float(min(local, remote, value, floor)))

    def _capacities(self, problem: Problem) -> tuple[Floats, float]:
        """What each edge can carry, and what every placement pays: the smaller of a step's two costs."""
        cloud = problem.cloud + problem.down
        costs = np.concatenate([cloud, problem.edge, problem.across[self._crossing]])
        spare: Floats = np.bincount(self._slots, costs, self._network.tails.size).astype(np.float64)
        spare[self._endless] = np.inf
        up, down = self._slots[: problem.steps], self._slots[problem.steps : 2 * problem.steps]
        both = np.minimum(spare[up], spare[down])
        both[np.isinf(both)] = 0.0  # at home on neither side: `_start` finds out
        spare[up] -= both
        spare[down] -= both
        return spare, float(both.sum())

    def _start(self, spare: Floats) -> Bools | None:
        """The better of the most and the fewest steps on the device that edges without limit allow; None if none."""
        network = self._network
        must = np.isinf(spare)
        fewest, most = np.zeros(network.vertices, bool), np.ones(network.vertices, bool)
        fewest[network.source], most[network.sink] = True, False
        if must[network.tails == network.source].any():
            fewest = network.reached(must, network.source)
            if fewest[network.sink]:
                return None
        if must[network.heads == network.sink].any():
            # Backwards from the sink: as many as do not lead there.
            backwards = np.lexsort((network.tails, network.heads))
            most = ~network.reached(must[backwards], network.sink)
        return min((most, fewest), key=lambda side: network.cut(spare, side))
