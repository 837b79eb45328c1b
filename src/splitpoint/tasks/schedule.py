"""A queue in virtual time: requests go through the device, the link up, the server and the link down, in turn.

    device  ▏ head 1 ▏ head 2 ▏      ▏ whole 3 ▏
    up               ▏   up 1   ▏ up 2 ▏
    server                        ▏ tail 1 ▏▏ tail 2 ▏

The device takes one request after the other, in the order of a policy: runs the head, hands over what crosses without
waiting for it, and goes on. The link and the server take what comes, first in, first out. So it is run for real
(`splitpoint.tasks.execute`), and so every policy is run.

>>> jobs = [Job((Stages(10, 20, 30, 0, 5),)), Job((Stages(40),))]
>>> [slot.ended for slot in timeline(jobs, [Turn(0), Turn(1)])]
[70, 50]

Milliseconds everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple, TypeAlias

from splitpoint.errors import UsageError, nearest


class Stages(NamedTuple):
    """What one request keeps busy, one way to serve it. `trip` is half of the round trip: it keeps nothing busy."""

    device: float
    up: float = 0
    server: float = 0
    down: float = 0
    trip: float = 0
    remote: bool | None = None

    @property
    def crosses(self) -> bool:
        """Whether the server takes part."""
        return self.remote if self.remote is not None else self.up + self.server > 0

    @property
    def total(self) -> float:
        """What it takes alone."""
        return self.device + self.up + self.server + self.down + 2 * self.trip


class Job(NamedTuple):
    """A request and the ways to serve it; `usual` is the one that is best for it alone. `due` counts from the start."""

    ways: tuple[Stages, ...]
    usual: int = 0
    release: float = 0
    due: float = inf
    priority: int = 0


class Turn(NamedTuple):
    """Which job, and which of its ways."""

    job: int
    way: int = 0


class Free(NamedTuple):
    """From when on each is free."""

    device: float = 0
    up: float = 0
    server: float = 0
    down: float = 0


#: Nothing is under way.
IDLE = Free()


class Slot(NamedTuple):
    """When a job was where. One that stays on the device ends with its head."""

    turn: Turn
    started: float
    headed: float
    sent: float
    arrived: float
    served_from: float
    served: float
    ended: float


class Order(NamedTuple):
    """What a policy decided. `bound`: no choice and no order ends earlier; 0 where it does not say."""

    turns: tuple[Turn, ...]
    bound: float = 0


#: (jobs, those that wait, from when on things are free) → their order.
Policy: TypeAlias = Callable[[Sequence[Job], Sequence[int], Free], Order]


def advance(stages: Stages, turn: Turn, start: float, free: Free) -> tuple[Slot, Free]:
    """One job that the device begins at `start`, and from when on things are free after it."""
    headed = start + stages.device
    if not stages.crosses:
        return Slot(turn, start, headed, headed, headed, headed, headed, headed), free._replace(device=headed)
    sent = max(free.up, headed) + stages.up
    arrived = sent + stages.trip
    served_from = max(free.server, arrived)
    served = served_from + stages.server
    down = max(free.down, served) + stages.down
    slot = Slot(turn, start, headed, sent, arrived, served_from, served, down + stages.trip)
    return slot, Free(headed, sent, served, down)


def timeline(jobs: Sequence[Job], turns: Iterable[Turn], free: Free = IDLE) -> list[Slot]:
    """The slots of `turns`, each begun as soon as the device is free and the job is there."""
    slots = []
    for turn in turns:
        job = jobs[turn.job]
        slot, free = advance(job.ways[turn.way], turn, max(free.device, job.release), free)
        slots.append(slot)
    return slots


def rehearse(jobs: Sequence[Job], policy: Policy) -> tuple[list[Slot], float]:
    """What happens to a queue whose jobs arrive when they do: (slots, the least bound that was told).

    A policy sees what has arrived and decides anew when more has.
    """
    left = sorted(range(len(jobs)), key=lambda k: jobs[k].release)
    waiting: list[int] = []
    turns: list[Turn] = []
    slots: list[Slot] = []
    free, bound = IDLE, 0.0
    while left or waiting:
        now = free.device if waiting else max(free.device, jobs[left[0]].release)
        new = [k for k in left if jobs[k].release <= now]
        if new:
            left = left[len(new) :]
            waiting += new
            decided = policy(jobs, waiting, free._replace(device=now))
            turns, bound = list(decided.turns), max(bound, decided.bound)
        turn = turns.pop(0)
        waiting.remove(turn.job)
        slot, free = advance(jobs[turn.job].ways[turn.way], turn, now, free)
        slots.append(slot)
    return slots, bound


# --- policies that leave every request its own best plan --------------------------------------------------------------


def fifo(jobs: Sequence[Job], waiting: Sequence[int], free: Free = IDLE) -> Order:
    """First come, first served."""
    return _by(jobs, waiting, lambda k: jobs[k].release)


def edf(jobs: Sequence[Job], waiting: Sequence[int], free: Free = IDLE) -> Order:
    """The earliest deadline first; those without one last, as they came."""
    return _by(jobs, waiting, lambda k: jobs[k].due)


def sjf(jobs: Sequence[Job], waiting: Sequence[int], free: Free = IDLE) -> Order:
    """The shortest first: what it takes alone."""
    return _by(jobs, waiting, lambda k: jobs[k].ways[jobs[k].usual].total)


def _by(jobs: Sequence[Job], waiting: Sequence[int], key: Callable[[int], float]) -> Order:
    ordered = sorted(waiting, key=lambda k: (-jobs[k].priority, key(k), jobs[k].release, k))
    return Order(tuple(Turn(k, jobs[k].usual) for k in ordered))


def _joint(jobs: Sequence[Job], waiting: Sequence[int], free: Free = IDLE) -> Order:
    from splitpoint.tasks.joint import joint  # numpy and SciPy, and nobody else needs them

    return joint(jobs, waiting, free)


POLICIES: Mapping[str, Policy] = {"fifo": fifo, "edf": edf, "sjf": sjf, "joint": _joint}


def policy(name: str) -> Policy:
    """The policy of that name; UsageError if there is none."""
    if name not in POLICIES:
        raise UsageError(f"no policy is called {name}{nearest(name, POLICIES)}: there are {', '.join(POLICIES)}")
    return POLICIES[name]


# --- what came out ----------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """What `joint` minimises, the first first: missed deadlines, then the last answer, then the mean wait for one."""

    missed: int
    makespan: float
    mean: float


def score(jobs: Sequence[Job], slots: Sequence[Slot]) -> Score:
    """`slots` measured: the makespan from the start on, the mean from each arrival on."""
    missed = sum(s.ended > jobs[s.turn.job].due for s in slots)
    spent = [s.ended - jobs[s.turn.job].release for s in slots]
    return Score(missed, max((s.ended for s in slots), default=0.0), sum(spent) / max(1, len(spent)))
