"""A queue in virtual time: requests go through the device, the link up, the server and the link down, in turn.

    device  ▏ head 1 ▏ head 2 ▏      ▏ whole 3 ▏
    up               ▏   up 1   ▏ up 2 ▏
    server                        ▏ tail 1 ▏▏ tail 2 ▏

The device takes one request after the other, in the order of a policy: runs the head, hands over what crosses without
waiting for it, and goes on. The link and the server take what comes, first in, first out. So it is run for real
(`queue_run`). Requests that follow each other into one tail, and are there when the server begins with the first of
them, run as one batch where that is faster (`runtime.server.batching`): all are answered when all are computed.

Where device and server share a machine's cores (`Free.shared`), a head takes longer while the server computes, and the
server while heads are computed: by as much of the one as lies beside the other.

>>> jobs = [QueuedJob((StageTimes(10, 20, 30, 0, 5),)), QueuedJob((StageTimes(40),))]
>>> [slot.ended for slot in timeline(jobs, [JobTurn(0), JobTurn(1)])]
[70, 50]

Milliseconds everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple, TypeAlias

#: Requests of one batch, at most: what a server allows by default.
MOST_TOGETHER = 8


class StageTimes(NamedTuple):
    """What one request keeps busy, one way to serve it. `trip` is half of the round trip: it keeps nothing busy.

    Those with the same `tail` can run as one batch on the server: one takes `server`, each further one `more`, which
    is not more than that.
    """

    device: float
    up: float = 0
    server: float = 0
    down: float = 0
    trip: float = 0
    remote: bool | None = None
    more: float = 0
    tail: str = ""

    @property
    def crosses(self) -> bool:
        """Whether the server takes part."""
        return self.remote if self.remote is not None else self.up + self.server > 0

    @property
    def total(self) -> float:
        """What it takes alone."""
        return self.device + self.up + self.server + self.down + 2 * self.trip

    @property
    def least_server(self) -> float:
        """What it takes of the server at least: in a full batch."""
        return (self.server + (MOST_TOGETHER - 1) * self.more) / MOST_TOGETHER if self.tail else self.server


class QueuedJob(NamedTuple):
    """A request and the ways to serve it, first the one that is best for it alone. `due` counts from the start."""

    ways: tuple[StageTimes, ...]
    release: float = 0
    due: float = inf
    priority: int = 0


class JobTurn(NamedTuple):
    job: int
    way: int = 0


class Batch(NamedTuple):
    """What the server runs as one since `began`: `size` requests for `tail`.

    Before it, the link down is free at `down`.
    """

    tail: str
    began: float
    size: int
    down: float

    def takes(self, stages: StageTimes, arrived: float) -> bool:
        """Whether one more, which is there when it has `arrived`, belongs to it."""
        return self.tail == stages.tail != "" and arrived <= self.began and self.size < MOST_TOGETHER


class Free(NamedTuple):
    """From when on each is free. `last` is the server's last batch, which others may join until it begins; the server
    has been busy without a break from `since` on. While both compute, device and server take `shared` times as long."""

    device: float = 0
    up: float = 0
    server: float = 0
    down: float = 0
    last: Batch = Batch("", 0.0, 0, 0.0)
    since: float = 0
    shared: float = 1


#: Nothing is under way.
IDLE = Free()


class Slot(NamedTuple):
    """When a job was where. One that stays on the device ends with its head."""

    turn: JobTurn
    started: float
    headed: float
    sent: float
    arrived: float
    served_from: float
    served: float
    ended: float


class QueueOrder(NamedTuple):
    """What a policy decided. `bound`: no choice and no order ends earlier; 0 where it does not say."""

    turns: tuple[JobTurn, ...]
    bound: float = 0


#: (jobs, those that wait, from when on things are free) → their order.
DecideOrder: TypeAlias = Callable[[Sequence[QueuedJob], Sequence[int], Free], QueueOrder]


def advance(stages: StageTimes, turn: JobTurn, start: float, free: Free) -> tuple[Slot, Free]:
    """One job that the device begins at `start`, and from when on things are free after it."""
    headed = start + stages.device
    beside = min(headed, free.server) - max(start, free.since) if free.shared > 1 else 0.0
    if beside > 0:
        late = (free.shared - 1) * beside
        headed, last = headed + late, free.last
        if last.began > start:
            last = last._replace(began=last.began + late)
        free = free._replace(server=free.server + late, down=free.down + late, last=last)
    if not stages.crosses:
        return Slot(turn, start, headed, headed, headed, headed, headed, headed), free._replace(device=headed)
    sent = max(free.up, headed) + stages.up
    arrived = sent + stages.trip
    batch, since = free.last, free.since
    if batch.takes(stages, arrived):
        batch = batch._replace(size=batch.size + 1)
        served = free.server + stages.more
    else:
        batch = Batch(stages.tail, max(free.server, arrived), 1, free.down)
        since = arrived if arrived > free.server else since
        served = batch.began + stages.server
    down = max(batch.down, served) + batch.size * stages.down
    slot = Slot(turn, start, headed, sent, arrived, batch.began, served, down + stages.trip)
    return slot, Free(headed, sent, served, down, batch, since, free.shared)


def put(slots: list[Slot], slot: Slot, free: Free, jobs: Sequence[QueuedJob]) -> None:
    """Adds `slot`, after which things are `free`: its job was the last to join the batch, and those that it runs with
    are answered when it is. What the server computes beside its head is later by what that costs."""
    stages = jobs[slot.turn.job].ways[slot.turn.way]
    late, beside = slot.headed - slot.started - stages.device, free.shared - 1
    for place in reversed(range(len(slots) if beside > 0 and late > 1e-9 else 0)):
        one = slots[place]
        if jobs[one.turn.job].ways[one.turn.way].crosses:
            if one.served <= slot.started:
                break
            begins, done = (min(late, beside * max(0.0, at - slot.started)) for at in (one.served_from, one.served))
            slots[place] = one._replace(
                served_from=one.served_from + begins, served=one.served + done, ended=one.ended + done
            )
    slots.append(slot)
    left, ended, place = free.last.size - 1 if stages.crosses else 0, slot.ended, len(slots) - 1
    while left and place:  # the first of them may have been begun before
        place -= 1
        one = slots[place]
        if jobs[one.turn.job].ways[one.turn.way].crosses:
            left, ended = left - 1, ended - stages.down
            slots[place] = one._replace(served=slot.served, ended=ended)


def timeline(jobs: Sequence[QueuedJob], turns: Iterable[JobTurn], free: Free = IDLE) -> list[Slot]:
    """The slots of `turns`, each begun as soon as the device is free and the job is there."""
    slots: list[Slot] = []
    for turn in turns:
        job = jobs[turn.job]
        slot, free = advance(job.ways[turn.way], turn, max(free.device, job.release), free)
        put(slots, slot, free, jobs)
    return slots


def rehearse(jobs: Sequence[QueuedJob], decide: DecideOrder, free: Free = IDLE) -> tuple[list[Slot], float]:
    """What happens to a queue whose jobs arrive when they do: (slots, the least bound that was told).

    `decide` is given what has arrived, and asked anew when more has.
    """
    left = sorted(range(len(jobs)), key=lambda k: jobs[k].release)
    waiting: list[int] = []
    turns: list[JobTurn] = []
    slots: list[Slot] = []
    bound = 0.0
    while left or waiting:
        now = free.device if waiting else max(free.device, jobs[left[0]].release)
        new = [k for k in left if jobs[k].release <= now]
        if new:
            left = left[len(new) :]
            waiting += new
            decided = decide(jobs, waiting, free._replace(device=now))
            turns, bound = list(decided.turns), max(bound, decided.bound)
        turn = turns.pop(0)
        waiting.remove(turn.job)
        slot, free = advance(jobs[turn.job].ways[turn.way], turn, now, free)
        put(slots, slot, free, jobs)
    return slots, bound


# --- policies that leave every request its own best plan --------------------------------------------------------------


def fifo(jobs: Sequence[QueuedJob], waiting: Sequence[int], free: Free = IDLE) -> QueueOrder:
    """First come, first served."""
    return _by(jobs, waiting, lambda k: jobs[k].release)


def edf(jobs: Sequence[QueuedJob], waiting: Sequence[int], free: Free = IDLE) -> QueueOrder:
    """The earliest deadline first; those without one last, as they came."""
    return _by(jobs, waiting, lambda k: jobs[k].due)


def sjf(jobs: Sequence[QueuedJob], waiting: Sequence[int], free: Free = IDLE) -> QueueOrder:
    """The shortest first: what it takes alone."""
    return _by(jobs, waiting, lambda k: jobs[k].ways[0].total)


def _by(jobs: Sequence[QueuedJob], waiting: Sequence[int], key: Callable[[int], float]) -> QueueOrder:
    ordered = sorted(waiting, key=lambda k: (-jobs[k].priority, key(k), jobs[k].release, k))
    return QueueOrder(tuple(JobTurn(k) for k in ordered))


# --- what came out ----------------------------------------------------------------------------------------------------


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The time in at least one of them.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
