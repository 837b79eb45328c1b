"""The server's compute pool: a few workers, a bounded queue, and an honest account of both."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter

Job = Callable[[float], None]
_SMOOTH = 0.2
_WINDOW_S = 1.0


class Compute:
    """At most `workers` jobs run at once, in threads of their own or, when one is free, in the caller's.

    A thread that has just received a request keeps it if there is room (`begin`, then `end`): handing it over
    would cost two context switches. `submit` queues it; a job is called with the seconds it waited.
    """

    def __init__(self, workers: int, queue: int) -> None:
        self.workers = workers
        self._limit = queue
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._jobs: deque[tuple[Job, float]] = deque()
        self._running = 0
        self._closed = False
        self._busy_s = 0.0
        self._since = perf_counter()
        self._mean_s = 0.0
        #: Recent wait for a worker, seconds, and recent busy share of the workers (0…1).
        self.queue_s = 0.0
        self.utilisation = 0.0
        self._threads = [threading.Thread(target=self._work, name=f"compute {i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def begin(self) -> bool:
        """Takes a worker's place for the calling thread, if one is free and nobody waits. Then call `end`."""
        with self._lock:
            if self._running >= self.workers or self._jobs or self._closed:
                return False
            self._running += 1
            self.queue_s *= 1 - _SMOOTH
            return True

    def end(self, busy_s: float) -> None:
        """Gives the place back after `busy_s` of work."""
        now = perf_counter()
        with self._lock:
            self._running -= 1
            self._busy_s += busy_s
            self._mean_s += _SMOOTH * (busy_s - self._mean_s)
            elapsed = now - self._since
            if elapsed >= _WINDOW_S:
                self.utilisation = min(1.0, self._busy_s / (elapsed * self.workers))
                self._busy_s, self._since = 0.0, now
            if self._jobs:
                self._ready.notify()

    def submit(self, job: Job) -> bool:
        """Queues `job`; False if the queue is full."""
        with self._lock:
            if len(self._jobs) >= self._limit or self._closed:
                return False
            self._jobs.append((job, perf_counter()))
            if self._running < self.workers:
                self._ready.notify()
            return True

    def full(self) -> bool:
        """Whether `submit` would refuse now."""
        return len(self._jobs) >= self._limit

    @property
    def retry_after_s(self) -> float:
        """When a place in a full queue is likely to be free: the time it takes to work off a quarter of it."""
        return max(0.01, self._mean_s * max(1, len(self._jobs) // 4) / self.workers)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._jobs or self._running >= self.workers:
                    if self._closed and not self._jobs:
                        return
                    self._ready.wait()
                job, queued = self._jobs.popleft()
                self._running += 1
                started = perf_counter()
                waited = started - queued
                self.queue_s += _SMOOTH * (waited - self.queue_s)
            try:
                job(waited)
            finally:
                self.end(perf_counter() - started)

    def close(self) -> None:
        """Ends the threads after what they run now; what is queued is dropped."""
        with self._lock:
            self._closed = True
            self._jobs.clear()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
