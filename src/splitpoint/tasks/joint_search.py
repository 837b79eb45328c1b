"""Choose each request's plan and the order of all, knowing the queue: the least makespan, or near it.

A flow shop of three machines (device, link, server) in which each job may be cut anywhere along its way. NP-hard;
what is done here, in this order:

1. An integer program (so many jobs of a model, so many ways: a few dozen counts) shares the jobs out so that the
   busiest machine is least busy. It is also the bound: each machine must do its work, and what comes before the first
   and after the last job on it.
2. Its answer, the individual plans, and what is least for some prices of the machines' time are starts, each ordered
   by Johnson's rule for two machines (1954), as Campbell, Dudek and Smith (1970) stretch it over three: twice, with the
   middle one counted to either side. Jobs for one tail get the same key, so that the server can run them as one batch.
3. From the best of these, ways are changed one or two jobs at a time, as long as it helps; then jobs change places.

The individual plans in order of arrival are one of the starts, so that the result is never predicted to be worse.
Where device and server share cores, the integer program counts what each loses while the other computes; the search
takes both for slowed all the time, as it keeps both busy, and what comes out must be better than the individual plans
by the timeline, which knows when both do compute.
All neighbours are priced at once, as arrays; nothing depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitpoint.tasks.schedule import (
    IDLE,
    MOST_TOGETHER,
    Free,
    JobTurn,
    QueuedJob,
    QueueOrder,
    StageTimes,
    edf,
    fifo,
    timeline,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Steps over the three machines' prices, neighbours priced at once, and how often each kind of search goes on.
_GRID, _PAIRS, _ROUNDS, _POLISH = 6, 300, 30, 8
#: How near to its bound the integer program is solved, and with how many nodes of its search at most.
_GAP, _NODES = 0.003, 100
#: Cells (neighbours × jobs) of one array.
_MOST_CELLS = 1_000_000
#: What a millisecond counts of the mean, and of anybody's work, where one of the makespan counts 1. Else whoever has
#: time to spare would be kept busy for nothing: 450 kB more on an idle link, to save the server 5 ms.
_MEAN, _WORK = 0.01, 0.02
_MISSED = 1e9
#: More jobs than these are put in order by Johnson's rule alone: then it is as good as any.
_POLISHED = 64
#: Where device and server share cores, ways are chosen together only where that is predicted to gain this share.
_SURE = 0.05
#: How many different ways a model may be served in one plan: each is a head and a tail that must be held in memory.
MOST_WAYS = 3


def joint(jobs: Sequence[QueuedJob], waiting: Sequence[int], free: Free = IDLE) -> QueueOrder:
    """The ways and the order of `waiting`, and a bound on the last answer's time (as far as they are concerned).

    Jobs of higher priority come first; among the rest missed deadlines count most, then the makespan, then the mean.
    """
    if not waiting:
        return QueueOrder(())
    search = _JointSearch([jobs[k] for k in waiting], free)
    best = search.run()
    turns = tuple(JobTurn(waiting[k], int(w)) for k, w in zip(best.order, best.ways[best.order], strict=True))
    if free.shared > 1:
        own = [decide(jobs, waiting, free).turns for decide in (fifo, edf)]
        turns = min((*own, turns), key=lambda t: _score(jobs, t, free, _SURE if t is turns else 0.0))
    return QueueOrder(turns, search.bound)


def _score(jobs: Sequence[QueuedJob], turns: Sequence[JobTurn], free: Free, more: float) -> tuple[int, float]:
    """(missed deadlines, the time it takes and this share more)."""
    slots = timeline(jobs, turns, free)
    missed = sum(s.ended > jobs[s.turn.job].due for s in slots)
    return missed, (max(s.ended for s in slots) - free.device) * (1 + more)


class _Choice(NamedTuple):
    value: float
    ways: Ints
    order: Ints


class _JointSearch:
    def __init__(self, jobs: Sequence[QueuedJob], free: Free) -> None:
        self.jobs, self.free = jobs, free
        self.count = len(jobs)
        kinds = list(dict.fromkeys(j.ways for j in jobs))
        self.kind: Ints = np.array([kinds.index(j.ways) for j in jobs])
        self.kinds = kinds
        widest = max(len(ways) for ways in kinds)
        tails = list(dict.fromkeys(["", free.last.tail, *(s.tail for ways in kinds for s in ways)]))
        self.batches = len(tails) > 1
        # [job, way, part]: device, up, server, down, trip, whether it crosses, what one more in a batch takes, which
        # tail it is (0: runs alone). Ways that are not there take for ever.
        self.parts = np.full((self.count, widest, 8), inf)
        for k, job in enumerate(jobs):
            self.parts[k, : len(job.ways)] = [
                (*s[:5], float(s.crosses), s.more, float(tails.index(s.tail))) for s in job.ways
            ]
        self.parts[..., [0, 2, 6]] *= free.shared
        self.last = (float(tails.index(free.last.tail)), *free.last[1:])
        self.release = np.array([j.release for j in jobs], np.float64)
        self.due = np.array([j.due for j in jobs], np.float64)
        self.rank = np.unique([-j.priority for j in jobs], return_inverse=True)[1].astype(np.float64)
        #: Each job's way of its own.
        self.own: Ints = np.zeros(self.count, np.int64)
        #: [kind, way]: which ways may be used.
        self.open = np.array([[w < len(ways) for w in range(widest)] for ways in kinds])
        self.counts = np.bincount(self.kind).tolist()
        self.bound, _ = bound(kinds, self.counts, free)
        _, self.shares = bound(kinds, self.counts, free, MOST_WAYS, _WORK)
        self._close()
        self._random = np.random.default_rng(0)
        self.cap = inf
        """What may not be exceeded: the missed deadlines and makespan of the individual plans."""

    def run(self) -> _Choice:
        as_they_came = self._arrived()
        improved = self._improved(self._start())
        return self._polished(min(improved, as_they_came, key=lambda choice: choice.value))

    def _close(self) -> None:
        """Leaves each kind `MOST_WAYS` ways at most: those of the integer program first, then what is best alone."""
        for kind, ways in enumerate(self.kinds):
            wanted = np.argsort(-self.shares[kind], kind="stable")[: int((self.shares[kind] > 0).sum())].tolist()
            kept = list(dict.fromkeys([*wanted, *range(len(ways))]))[:MOST_WAYS]
            self.open[kind] = False
            self.open[kind, kept] = True

    # --- starts -------------------------------------------------------------------------------------------------

    def _arrived(self) -> _Choice:
        """The individual plans, as they came or by their deadlines: what must not be worse."""
        everyone = range(self.count)
        orders = np.array([[t.job for t in decide(self.jobs, everyone).turns] for decide in (fifo, edf)])
        ways = np.broadcast_to(self.own, orders.shape)
        self.cap = float(self._priced(ways, orders)[0].min())
        values = self.values(ways, orders)
        best = int(values.argmin())
        return _Choice(float(values[best]), self.own, orders[best])

    def _start(self) -> _Choice:
        steps = range(_GRID + 1)
        prices = np.array([(a, b, _GRID - a - b) for a in steps for b in steps if a + b <= _GRID], np.float64)
        # [price, job, way], with a hair of everything, so that of two that cost the same the quicker is taken.
        total = self.parts[..., :5].sum(-1)
        parts = np.where(np.isfinite(self.parts[..., :3]), self.parts[..., :3], 0.0)
        cost = np.einsum("pm,jwm->pjw", prices, parts) + 1e-3 * total
        cost = np.where(self.open[self.kind], cost, inf)
        starts = [*cost.argmin(-1), self._counted(), self._kept(self.own)]
        return self._best(np.array(starts))

    def _kept(self, ways: Ints) -> Ints:
        """`ways`, or the first open one where it is closed."""
        closed = ~self.open[self.kind, ways]
        return np.where(closed, self.open.argmax(1)[self.kind], ways)

    def _counted(self) -> Ints:
        ways = self.own.copy()
        for kind, counts in enumerate(self.shares):
            members = np.flatnonzero(self.kind == kind)
            given = np.repeat(np.arange(len(counts)), counts.astype(int))[: len(members)]
            ways[members[: len(given)]] = given
        return self._kept(ways)

    # --- changing ways ------------------------------------------------------------------------------------------

    def _improved(self, choice: _Choice) -> _Choice:
        for _ in range(_ROUNDS):
            singles = self._changes(choice.ways)
            better = self._best(self._changed(choice.ways, [(c,) for c in singles])) if singles else choice
            if better.value >= choice.value - 1e-9:
                pairs = self._pairs(singles)
                better = self._best(self._changed(choice.ways, pairs)) if pairs else choice
            if better.value >= choice.value - 1e-9:
                break
            choice = better
        return choice

    def _changes(self, ways: Ints) -> list[tuple[int, int]]:
        """(job, another way) for one job of each kind, due time and way that is in use."""
        alike: dict[tuple[int, int, float, float], int] = {}
        for k in range(self.count):
            alike.setdefault((int(self.kind[k]), int(ways[k]), self.jobs[k].due, self.rank[k]), k)
        changes = [
            (k, int(w)) for (kind, way, *_), k in alike.items() for w in np.flatnonzero(self.open[kind]) if w != way
        ]
        return [changes[k] for k in self._some(len(changes), self._room)]

    def _pairs(self, singles: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        pairs = [(a, b) for i, a in enumerate(singles) for b in singles[i + 1 :] if a[0] != b[0]]
        return [pairs[k] for k in self._some(len(pairs), min(_PAIRS, self._room))]

    def _changed(self, ways: Ints, changes: Sequence[tuple[tuple[int, int], ...]]) -> Ints:
        changed = np.repeat(ways[None], len(changes), 0)
        for row, change in zip(changed, changes, strict=True):
            for job, way in change:
                row[job] = way
        return changed

    def _some(self, count: int, most: int) -> Iterator[int]:
        chosen = range(count) if count <= most else self._random.choice(count, most, replace=False)
        return (int(k) for k in chosen)

    @property
    def _room(self) -> int:
        """How many neighbours are priced at once."""
        return max(8, _MOST_CELLS // (16 * self.count))

    def _best(self, ways: Ints) -> _Choice:
        """The best of several choices of ways, each in the better of its orders."""
        orders = self._orders(ways)
        values = np.array([self.values(ways, order) for order in orders])
        by, row = np.unravel_index(int(values.argmin()), values.shape)
        return _Choice(float(values[by, row]), ways[row], orders[by][row])

    def _orders(self, ways: Ints) -> list[Ints]:
        """Johnson's order of each row, with the link counted to the device, or to the server; by deadline, if any."""
        cost = self.parts[np.arange(self.count), ways]
        device, up, server = cost[..., 0], cost[..., 1], cost[..., 2] + cost[..., 3]
        keys = [_johnson(device + up, up + server), _johnson(device, server)]
        if np.isfinite(self.due).any():
            keys.append(np.broadcast_to(np.where(np.isfinite(self.due), self.due, 1e12), ways.shape))
        return [np.lexsort((key, np.broadcast_to(self.rank, key.shape)), axis=-1) for key in keys]

    # --- changing places ----------------------------------------------------------------------------------------

    def _polished(self, choice: _Choice) -> _Choice:
        if not 1 < self.count <= _POLISHED:
            return choice
        for _ in range(_POLISH):
            starts = self._ends(choice)
            moves = _moves(self.count, starts)
            orders = choice.order[moves[[int(k) for k in self._some(len(moves), self._room)]]]
            values = self.values(np.broadcast_to(choice.ways, orders.shape), orders)
            best = int(values.argmin())
            if values[best] >= choice.value - 1e-9:
                break
            choice = _Choice(float(values[best]), choice.ways, orders[best])
        return choice

    def _ends(self, choice: _Choice) -> list[int]:
        """The places of the first and the last of those that are alike: moving another one of them is the same."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for place, k in enumerate(choice.order.tolist()):
            alike.setdefault((self.kind[k], choice.ways[k], self.due[k], self.rank[k]), []).append(place)
        return sorted({place for places in alike.values() for place in (places[0], places[-1])})

    # --- what a choice is worth ---------------------------------------------------------------------------------

    def values(self, ways: Ints, orders: Ints) -> Floats:
        """float64[rows]: what is minimised, for jobs with `ways` taken in `orders` (both int[rows, jobs]).

        Infinite for what puts a lower priority first, and for what ends later than the individual plans would: a
        better mean does not buy that.
        """
        first, mean = self._priced(ways, orders)
        work = self.parts[np.arange(self.count), ways, :3].sum((-1, -2))
        value: Floats = first + _MEAN * mean + _WORK * work
        value[(np.diff(self.rank[orders], axis=1) < 0).any(1) | (first > self.cap)] = inf
        return value

    def _priced(self, ways: Ints, orders: Ints) -> tuple[Floats, Floats]:
        """(missed deadlines and makespan as one number, mean) of each row, by `schedule.timeline`'s rules."""
        rows = np.arange(len(orders))[:, None]
        cost = np.ascontiguousarray(self.parts[orders, ways[rows, orders]].transpose(1, 2, 0))
        device, up, server, down = (np.full(len(orders), at, np.float64) for at in self.free[:4])
        batch = _Batches(self.last, orders.shape[::-1])
        ended = np.empty(orders.shape[::-1])
        release = self.release[orders].T
        for place in range(self.count):
            here, sending, serving, back, trip, remote, *_ = cost[place]
            device = np.maximum(device, release[place]) + here
            # One that stays here passes without taking time: what comes behind it is later than that in any case.
            up = np.maximum(up, device) + sending
            if self.batches:
                server, down = batch.next(place, up + trip, server, down, cost[place])
            else:
                server = np.maximum(server, up + trip) + serving
                down = np.maximum(down, server) + back
            ended[place] = np.where(remote > 0, down + trip, device)
        if self.batches:
            batch.settle(ended, cost)
        missed = (ended > self.due[orders].T).sum(0) if np.isfinite(self.due).any() else 0
        return missed * _MISSED + ended.max(0), (ended - release).mean(0)


class _Batches:
    """The server's batches as `schedule.advance` has them, for many rows at once."""

    def __init__(self, last: tuple[float, float, int, float], shape: tuple[int, ...]) -> None:
        self._tail, self._began, self._size, self._down = (np.full(shape[1], at, np.float64) for at in last)
        self._joined = np.zeros(shape, bool)

    def next(self, place: int, arrived: Floats, server: Floats, down: Floats, cost: Floats) -> tuple[Floats, Floats]:
        """From when on server and link down are free, when those at `place` have `arrived` at the server."""
        _, _, serving, back, _, remote, more, tail = cost
        joins = (tail > 0) & (tail == self._tail) & (arrived <= self._began) & (self._size < MOST_TOGETHER)
        opens = (remote > 0) & ~joins
        begins = np.maximum(server, arrived)
        self._joined[place] = joins
        self._began, self._tail = np.where(opens, begins, self._began), np.where(opens, tail, self._tail)
        self._size, self._down = np.where(opens, 1, self._size + joins), np.where(opens, down, self._down)
        server = np.where(joins, server + more, begins + serving)
        return server, np.where(remote > 0, np.maximum(self._down, server) + self._size * back, down)

    def settle(self, ended: Floats, cost: Floats) -> None:
        """Those that others joined are answered with these."""
        later, joined = np.zeros(ended.shape[1]), np.zeros(ended.shape[1], bool)
        for place in reversed(range(len(ended))):
            back, remote = cost[place, 3], cost[place, 5] > 0
            ended[place] = np.where(remote & joined, later - back, ended[place])
            later, joined = np.where(remote, ended[place], later), np.where(remote, self._joined[place], joined)


def _johnson(first: Floats, second: Floats) -> Floats:
    """Keys whose order is Johnson's: those that are quicker on the first machine, the quickest first; then the others,
    the quickest on the second machine last."""
    most = 1 + max(float(first.max()), float(second.max()))
    return np.where(first <= second, first, 2 * most - second)


def _moves(count: int, starts: Sequence[int]) -> Ints:
    """int[moves, count]: who is at each place once the one at a start was taken out and put in elsewhere."""
    start = np.repeat(starts, count)[:, None]
    end = np.tile(np.arange(count), len(starts))[:, None]
    place = np.arange(count)[None]
    behind = (place >= start) & (place < end)
    before = (place > end) & (place <= start)
    moved = (start != end)[:, 0]
    return np.asarray(np.where(place == end, start, place + behind - before)[moved], np.int64)


def bound(
    kinds: Sequence[tuple[StageTimes, ...]], counts: Sequence[int], free: Free, most_ways: int = 0, work: float = 0.0
) -> tuple[float, list[Floats]]:
    """(a time before which not all jobs of these kinds can have ended, each kind's jobs shared out among its ways).

    Each machine has its work, before it the least that comes before the first job there, and behind it the least that
    comes after the last: an integer program in the counts. These hold if anything crosses; else the device has it all.
    With `most_ways` a kind takes no more ways than these; 0 is as many as there are. `work` is what a millisecond of
    work counts in the choice of the counts: with it, the time is none.
    """
    here = [min((s.device for s in ways if not s.crosses), default=inf) for ways in kinds]
    alone = free.device + sum(n * ms for n, ms in zip(counts, here, strict=True))
    longest = free.device + max(min(s.total for s in ways) for ways in kinds)
    ways = [(k, s) for k, own in enumerate(kinds) for s in own]
    remote = [s for _, s in ways if s.crosses]
    if not remote:
        first = [int(np.argmin([s.device for s in own])) for own in kinds]
        return max(alone, longest), [n * np.eye(len(w))[k] for w, n, k in zip(kinds, counts, first, strict=True)]
    shared, least = _shared(ways, counts, _edges(remote, free), most_ways, work, free.shared)
    return max(longest, min(alone, least)), shared


def _edges(remote: Sequence[StageTimes], free: Free) -> tuple[float, ...]:
    """What comes before and after the work of device, up, server and down, at least, where anything crosses."""
    sent = max(free.up, free.device + min(s.device for s in remote))
    arrived = max(free.up, free.device + min(s.device + s.up for s in remote)) + min(s.trip for s in remote)
    served = max(free.server, free.device + min(s.device + s.up + s.trip + s.server for s in remote))
    # What joins a batch is part of its work, from when that began.
    begun = free.last.began if free.last.tail else free.server
    return (
        free.device,
        sent + min(2 * s.trip + s.server + s.down for s in remote),
        max(begun, arrived) + min(s.down + s.trip for s in remote),
        max(free.down, served) + min(s.trip for s in remote),
    )


def least(jobs: Sequence[QueuedJob], free: Free) -> float:
    """A time before which not all of `jobs` can have ended, whatever their ways and order."""
    kinds = list(dict.fromkeys(j.ways for j in jobs))
    return bound(kinds, [sum(j.ways == ways for j in jobs) for ways in kinds], free)[0]


def _shared(
    ways: Sequence[tuple[int, StageTimes]], counts: Sequence[int], edges: Sequence[float], most_ways: int, price: float,
    beside: float,
) -> tuple[list[Floats], float]:  # fmt: skip
    """The integer program: (jobs of each kind by way, a time that the busiest machine needs at least).

    Its unknowns are the jobs by way, whether a way is taken, and the time. Where device and server take `beside` times
    as long while both compute, work D of the one and S of the other takes D + (beside - 1) S at least, and the other
    way round; D + S if they might as well take turns.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    size, kind = len(ways), np.array([k for k, _ in ways])
    # The solver's tolerances are absolute, and with numbers in the thousands it sometimes prints a line of its own.
    unit = max(1e-3, sum(s.total for _, s in ways) / size)
    work = np.array([(s.device, s.up, s.least_server, s.down) for _, s in ways]).T / unit
    if beside > 1:
        lost = min(beside, 2.0) - 1
        work = np.vstack([work, work[0] + lost * work[2], work[2] + lost * work[0]])
        edges = [*edges, edges[0], edges[0]]
    most = np.array(counts, np.float64)[kind]
    members = (kind == np.arange(len(counts))[:, None]).astype(float)
    none, one = np.zeros_like(members), np.zeros((len(counts), 1))
    rules = [
        LinearConstraint(np.hstack([work, 0 * work, -np.ones((len(work), 1))]), -inf, [-at / unit for at in edges]),
        LinearConstraint(np.hstack([members, none, one]), counts, counts),
    ]
    if most_ways:
        rules.append(LinearConstraint(np.hstack([np.eye(size), -np.diag(most), np.zeros((size, 1))]), -inf, 0.0))
        rules.append(LinearConstraint(np.hstack([none, members, one]), 0.0, float(most_ways)))
    solution = milp(
        c=[*(price * work[:4].sum(0)), *[0.0] * size, 1.0],
        integrality=[1] * (2 * size) + [0],
        bounds=Bounds(0.0, [*most, *[1.0] * size, inf]),
        constraints=rules,
        # Nodes and not seconds: the same answer on every machine.
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    # The solver keeps to its constraints within 1e-6 of them.
    least = unit * float(solution.mip_dual_bound or 0.0) * (1 - 1e-6)
    if solution.x is None:  # the nodes were not enough for any answer: the search begins elsewhere
        return [np.zeros(int((kind == k).sum())) for k in range(len(counts))], least
    return [np.round(solution.x[:size][kind == k]) for k in range(len(counts))], least
