"""Whose turn it is: a queue a client, and the client that has been computed for least comes first. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), with the slack that a round gives in deficit round robin. A
client is an address, and its connections are served in turns. What a job costs is known only when it has run, so the
client's recent mean is put to its account when the job begins, and is corrected when it ends. Who was away begins where
the others are now; accounts outlive an empty queue: who sends one large request at a time pays for it like one who
sends many small ones.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from math import exp, inf
from typing import Any, Protocol

import msgspec

_SMOOTH = 0.2
#: How many mean jobs a client may be ahead of the others and still be served in order of arrival: a burst is no greed
#: (docs/design/server.md has what fewer cost).
SLACK = 6.0
#: A client with this share (its inverse) of the queue has many jobs waiting: no worker will soon be without.
_CROWD = 8
#: The shortest pause that is ever advised, seconds.
_LEAST_S = 0.01
#: How long ago a wait, or a busy moment, still counts: it fades with this time constant.
RECENT_S = 1.0


def within(used: float, left: float, has_none: bool) -> bool:
    """Whether a client that uses so much of something, of which so much is left, may have more of it.

    As much as is left; three times that, if it is for one of its connections that `has_none`.
    """
    return used < left * (3 if has_none else 1)


class Client:
    """One client's account. `turn_s`: seconds computed for it, on the queue's own clock."""

    __slots__ = ("jobs", "mean_s", "round", "rounds", "turn_s", "waiting")

    def __init__(self) -> None:
        self.jobs: deque[WaitingJob] = deque()
        #: How many jobs of each of its lines wait, and the round of the last of them; `round`: of the one taken last.
        self.waiting: Counter[object] = Counter()
        self.rounds: dict[object, int] = {}
        self.round = 0
        self.turn_s = 0.0
        #: What a job of it takes, lately.
        self.mean_s = 0.0

    def add(self, job: WaitingJob) -> None:
        """Puts `job` among its jobs: one of each line in a round, in order of arrival."""
        jobs = self.jobs
        job.round = self.rounds[job.line] = max(self.round, self.rounds.get(job.line, 0)) + 1
        self.waiting[job.line] += 1
        at = len(jobs)
        while at and jobs[at - 1].round > job.round:
            at -= 1
        jobs.insert(at, job)

    def next(self) -> WaitingJob:
        job = self.jobs.popleft()
        self.round = job.round
        self._forget(job.line)
        return job

    def drop(self, line: object) -> list[WaitingJob]:
        """Takes all jobs of `line` away; of every line, if it is None."""
        dropped = [job for job in self.jobs if line is None or job.line is line]
        left = [job for job in self.jobs if line is not None and job.line is not line]
        self.jobs.clear()
        self.jobs.extend(left)
        for job in dropped:
            self._forget(job.line)
        return dropped

    def _forget(self, line: object) -> None:
        self.waiting[line] -= 1
        if not self.waiting[line]:
            del self.waiting[line]
        if not self.jobs:
            self.rounds.clear()
            self.round = 0


class RecentWait:
    """How long the jobs of one line have waited lately: `queue_s`."""

    __slots__ = ("_at_s", "queue_s")

    def __init__(self) -> None:
        self.queue_s = self._at_s = 0.0

    def add(self, now_s: float, seconds: float) -> None:
        """One of them began at `now_s`, after `seconds` in the queue."""
        weight = max(_SMOOTH, 1 - exp(min(0.0, self._at_s - now_s) / RECENT_S))
        self.queue_s += weight * (seconds - self.queue_s)
        self._at_s = now_s


class Together(Protocol):
    """What jobs have in common that can run as one."""

    def size(self, waiting: int) -> int:
        """How many of `waiting` such jobs to run as one now: 1 or more."""

    def wanted(self) -> int:
        """How many are worth waiting for, whenever they come; 1: none but what is there."""

    def company(self, waiting: int, now_s: float) -> tuple[int, float]:
        """How many to wait for, `waiting` and those that are likely to come soon enough, and until when."""

    def seconds(self, size: int) -> float:
        """How long running so many as one is likely to take."""


def nothing() -> None:
    """Does nothing."""


class WaitingJob(msgspec.Struct):
    """Something to compute for `client`: `run` gets the seconds it waited. Jobs with the same `key` can run together.

    `what` is for whoever runs several together; `line` is which of the client's connections it came by; `dropped` is
    called instead of `run` if that ends first; after `latest_s` it is of no use. The rest is the queue's own.
    """

    client: Client
    run: Callable[[float], None]
    key: Together | None = None
    what: Any = None
    line: object = None
    dropped: Callable[[], None] = nothing
    latest_s: float = inf
    round: int = 0
    queued_s: float = 0.0
    waited_s: float = 0.0
    charged_s: float = 0.0


class FairQueue:
    """At most `limit` jobs. A client may have as many waiting as there are places left: one alone gets half of them,
    two get a third each, and there is room for one more whoever fills the queue (Choudhury and Hahne, 1998). For a line
    that has none waiting there are three times as many: whoever fills its client's places has not filled these.

    >>> queue, a, b = FairQueue(8), Client(), Client()
    >>> for _ in range(4):  # on four workers: then a is ahead by more than six mean jobs
    ...     queue.begin(a)
    >>> for _ in range(4):
    ...     queue.end(a, took_s=5.0)
    >>> for client in (a, a, a, b):
    ...     assert queue.push(0.0, WaitingJob(client, print))
    >>> taken = [queue.take(0.0).client for _ in range(4)]
    >>> [("a", "b")[client is b] for client in taken]
    ['b', 'a', 'a', 'a']
    """

    def __init__(self, limit: int, slack: float = SLACK) -> None:
        self.limit, self._slack = limit, slack
        self.waiting = 0
        self._clients: list[Client] = []  # those with jobs
        self._now_s = 0.0  # the least account of those who want something
        self._furthest_s = 0.0
        self._mean_s = 0.0

    def room(self, client: Client, line: object = None) -> bool:
        """Whether `push` would take a job of `client` that comes by `line`."""
        return within(len(client.jobs), self.limit - self.waiting, line not in client.waiting)

    def push(self, now_s: float, job: WaitingJob) -> bool:
        """Queues `job`; False if there is no room for it."""
        client = job.client
        if not self.room(client, job.line):
            return False
        if not client.jobs:
            client.turn_s = max(client.turn_s, self._now_s)
            self._clients.append(client)
        job.queued_s = now_s
        client.add(job)
        self.waiting += 1
        return True

    def take(self, now_s: float) -> WaitingJob:
        return self._take(now_s, self._next(self._clients))

    def _next(self, clients: list[Client]) -> Client:
        """Who is served next: who has waited longest, unless it is too far ahead of the others."""
        even_s = self._now_s + self._slack * self._mean_s
        return min(clients, key=lambda c: (max(0.0, c.turn_s - even_s), c.jobs[0].queued_s))

    def take_like(self, now_s: float, key: Together, most: int) -> list[WaitingJob]:
        """Up to `most` jobs with this `key` that are next in their clients' queues, in the order of `take`."""
        taken: list[WaitingJob] = []
        while len(taken) < most:
            ready = [c for c in self._clients if c.jobs[0].key is key]
            if not ready:
                break
            taken.append(self._take(now_s, self._next(ready)))
        return taken

    def like(self, key: Together) -> Iterator[WaitingJob]:
        """The jobs `take_like` would return, in any order."""
        return chain.from_iterable(takewhile(lambda job: job.key is key, client.jobs) for client in self._clients)

    def _take(self, now_s: float, client: Client) -> WaitingJob:
        job = client.next()
        if not client.jobs:
            self._clients.remove(client)
        self.waiting -= 1
        job.waited_s = now_s - job.queued_s
        self.begin(client)
        job.charged_s = client.mean_s
        client.turn_s += client.mean_s
        return job

    def begin(self, client: Client) -> None:
        """A job of `client` begins, perhaps one that was never in the queue."""
        # On the way of every request, like `end` and `Gauge.change`: hence no calls of min and max.
        least_s = client.turn_s
        for other in self._clients:
            if other.turn_s < least_s:
                least_s = other.turn_s
        if least_s > self._now_s:
            self._now_s = least_s
        if client.turn_s < self._now_s:
            client.turn_s = self._now_s

    def end(self, client: Client, took_s: float, charged_s: float = 0.0) -> None:
        """A job of `client` has taken `took_s` of a worker, of which `charged_s` are on its account already."""
        client.turn_s += took_s - charged_s
        client.mean_s += _SMOOTH * (took_s - client.mean_s) if client.mean_s else took_s
        self._mean_s += _SMOOTH * (took_s - self._mean_s)
        if client.turn_s > self._furthest_s:
            self._furthest_s = client.turn_s

    def rest(self) -> None:
        """Nothing waits and nothing runs: all accounts are even again, as there is enough for everybody."""
        self._now_s = self._furthest_s

    def drop(self, client: Client, line: object = None) -> list[WaitingJob]:
        """Its jobs that came by `line`, or all, which are not run: it is gone."""
        dropped = client.drop(line)
        self.waiting -= len(dropped)
        if dropped and not client.jobs:
            self._clients.remove(client)
        return dropped

    def clear(self) -> None:
        for client in list(self._clients):
            self.drop(client)

    def crowded_s(self, client: Client, workers: int) -> float:
        """When one job of each line of `client` will have run, if many of its jobs wait; else 0.0."""
        if len(client.jobs) * _CROWD < self.limit:
            return 0.0
        return client.mean_s * len(client.waiting) * len(self._clients) / workers

    def retry_after_s(self, client: Client, workers: int) -> float:
        """When `client`, for whom there is no room, is likely to find some.

        Once a quarter of its own jobs have run, or one of each of its lines, each other client that waits having had
        as much time meanwhile; or a quarter of all jobs, if none of them is its own.
        """
        own = len(client.jobs)
        if own:
            seconds = client.mean_s * max(own // 4, len(client.waiting)) * len(self._clients)
        else:
            seconds = self._mean_s * max(1, self.waiting // 4)
        return max(_LEAST_S, seconds / workers)


class Gauge:
    """How busy `workers` have been lately (0…1): an average in which a moment counts less the longer ago it is."""

    def __init__(self, workers: int, now_s: float) -> None:
        self._workers = workers
        # One value, so that it can be read while another thread changes it.
        self._state = (now_s, 0.0, 0)

    def change(self, now_s: float, by: int) -> None:
        """`by` more workers are busy from `now_s` on."""
        since_s, share, running = self._state
        share += (running / self._workers - share) * (1 - exp((since_s - now_s) / RECENT_S))
        self._state = (now_s, share, running + by)

    def at(self, now_s: float) -> float:
        since_s, share, running = self._state
        return share + (running / self._workers - share) * (1 - exp(min(0.0, since_s - now_s) / RECENT_S))
