"""A pool of the server: a few workers, a fair and bounded queue, and an honest account of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import perf_counter, sleep

from splitpoint.runtime.events import OnEvent, ignore
from splitpoint.runtime.server.fair_queue import SLACK, Client, FairQueue, Gauge, Together, WaitingJob
from splitpoint.runtime.threads import begin, join, persist

#: How long threads that have nothing to do may take to end.
_END_S = 5.0


class Compute:
    """At most `workers` jobs run at once, in threads of their own or, when one is free, in the caller's.

    A thread that has just received a request keeps it if there is room (`begin`, then `end`): handing it over
    would cost two context switches. `submit` queues it. Whose turn it is: `fair_queue`. Jobs with the same key
    that wait at the same time are given to `together`, as many as the key says. A worker waits for more of them as long
    as the key says; with `max_wait_s`, for as many as it wants until the first has waited that long.
    """

    def __init__(
        self,
        workers: int,
        queue: int,
        together: Callable[[Sequence[WaitingJob]], None] | None = None,
        max_wait_s: float | None = None,
        on_event: OnEvent = ignore,
        slack: float = SLACK,
        name: str = "compute",
    ) -> None:
        self.workers = workers
        self._max_wait_s = max_wait_s
        self._together = together
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._more = threading.Condition(self._lock)
        self._gathering: list[Together] = []  # keys that a worker waits for, and how many more at least
        self._enough = 0
        self._queue = FairQueue(queue, slack)
        self._running = 0
        self._surplus = 0  # threads that were lent a place which was taken back
        self._closed = False
        self._gauge = Gauge(workers, perf_counter())
        self._tell = on_event
        self.threads: Sequence[threading.Thread] = ()
        try:
            for i in range(workers):
                self._begin_thread(f"{name} {i}")
        except BaseException:
            self.close()
            raise

    def _begin_thread(self, name: str) -> None:
        work = (self._work, "computing", self._tell, sleep)
        thread = threading.Thread(target=persist, args=work, name=name, daemon=True)
        begin(thread)
        self.threads = [*(t for t in self.threads if t.is_alive()), thread]

    def lend(self) -> None:
        """One more may work, and a thread more: what runs in one place lasts, or will never end."""
        with self._lock:
            if self._closed:
                return
            self._begin_thread("compute more")
            self.workers += 1
            if self._queue.waiting:
                self._ready.notify()

    def regain(self) -> None:
        """It has ended after all: there are as many as before."""
        with self._lock:
            self.workers -= 1
            self._surplus += 1
            self._ready.notify()

    def begin(self, client: Client, key: Together | None = None) -> bool:
        """Takes a worker's place for the calling thread, if one is free and nobody waits, and a job with this `key`
        need not wait for others. Then call `end`."""
        with self._lock:
            if self._running >= self.workers or self._queue.waiting or self._closed:
                return False
            now = perf_counter()
            if key is not None and (key in self._gathering or self._company(key, 1, now, now)[0] > 1):
                return False
            self._running += 1
            self._gauge.change(now, 1)
            self._queue.begin(client)
            return True

    def end(self, client: Client, busy_s: float) -> None:
        """Gives the place back after `busy_s` of work for `client`."""
        with self._lock:
            self._queue.end(client, busy_s)
            self._free(perf_counter())

    def _free(self, now: float) -> None:
        """A place is free again; the lock is held."""
        self._running -= 1
        self._gauge.change(now, -1)
        if self._queue.waiting:
            self._ready.notify()
        elif not self._running:
            self._queue.rest()

    def submit(self, job: WaitingJob) -> bool:
        """Queues `job`; False if there is no room for it."""
        with self._lock:
            if self._closed or not self._queue.push(perf_counter(), job):
                return False
            if self._gathering and (job.key not in self._gathering or self._queue.waiting >= self._enough):
                self._more.notify_all()
            if self._running < self.workers and (job.key is None or job.key not in self._gathering):
                self._ready.notify()
            return True

    def room(self, client: Client, line: object) -> bool:
        return self._queue.room(client, line)

    @property
    def waiting(self) -> int:
        return self._queue.waiting

    @property
    def utilisation(self) -> float:
        return self._gauge.at(perf_counter())

    def crowded_s(self, client: Client) -> float:
        return self._queue.crowded_s(client, self.workers)

    def retry_after_s(self, client: Client) -> float:
        return self._queue.retry_after_s(client, self.workers)

    def drop(self, client: Client, line: object) -> None:
        """The jobs of `client` that came by `line` and have not begun will not, and are told so."""
        with self._lock:
            jobs = self._queue.drop(client, line)
        for job in jobs:
            job.dropped()

    def _work(self) -> bool:
        """Runs what is next; False once it is closed."""
        with self._lock:
            while not self._queue.waiting or self._running >= self.workers:
                if self._closed and not self._queue.waiting:
                    return False
                if self._surplus:
                    self._surplus -= 1
                    self._ready.notify()  # what this one was woken for may be another one's
                    return False
                self._ready.wait()
            started = perf_counter()
            self._running += 1
            self._gauge.change(started, 1)
            jobs = [self._queue.take(started)]
            if self._together is not None and (key := jobs[0].key) is not None:
                started = self._gather(key, jobs, started)
        try:
            if len(jobs) == 1 or self._together is None:
                jobs[0].run(jobs[0].waited_s)
            else:
                self._together(jobs)
        finally:
            ended = perf_counter()
            with self._lock:
                for job in jobs:
                    self._queue.end(job.client, (ended - started) / len(jobs), job.charged_s)
                self._free(ended)
        return True

    def _gather(self, key: Together, jobs: list[WaitingJob], now: float) -> float:
        """Adds the jobs that are to run with `jobs[0]`; returns when that was done. The lock is held.

        Waits for more of them as long as that pays (see the class), but not while another kind of job waits, nor until
        it is too late for one of them.
        """
        waiting = [jobs[0], *self._queue.like(key)]
        wanted, end = self._company(key, len(waiting), jobs[0].queued_s, now)
        if wanted > len(waiting):
            end = min(end, min(job.latest_s for job in waiting) - key.seconds(wanted))
            self._gathering.append(key)
            while now < end and not self._closed and len(waiting) < wanted and len(waiting) > self._queue.waiting:
                self._enough = wanted - 1
                self._more.wait(end - now)
                now = perf_counter()
                waiting = [jobs[0], *self._queue.like(key)]
            self._gathering.remove(key)
            jobs[0].waited_s = now - jobs[0].queued_s
        jobs += self._queue.take_like(now, key, key.size(len(waiting)) - 1)
        if self._queue.waiting and self._running < self.workers:
            self._ready.notify()  # nobody was, for those that came meanwhile
        return now

    def _company(self, key: Together, waiting: int, since_s: float, now_s: float) -> tuple[int, float]:
        """How many to run together where `waiting` are there, the first since `since_s`; until when to wait."""
        if self._max_wait_s is None:
            return key.company(waiting, now_s)
        return (key.wanted(), since_s + self._max_wait_s) if self._max_wait_s else (waiting, now_s)

    def close(self, within_s: float = _END_S) -> bool:
        """Ends the threads after what they run now; what is queued is dropped. Whether they have, `within_s`."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._ready.notify_all()
            self._more.notify_all()
        return join(self.threads, within_s)
