"""What others may take in a time: so much at once, and then as it comes back."""

from __future__ import annotations

from threading import Lock
from time import monotonic, sleep, thread_time


class Budget:
    """At most `most` at once, of which `per_s` come back in a second. Pure: the caller says what time it is, and holds
    a lock.

    >>> budget = Budget(most=2.0, per_s=0.5)
    >>> budget.take(2.0, now_s=0.0), budget.take(1.0, now_s=0.0), budget.take(1.0, now_s=2.0)
    (0.0, 2.0, 0.0)
    """

    def __init__(self, most: float, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._left, self._then_s = most, 0.0

    def take(self, amount: float, now_s: float) -> float:
        """0.0 if `amount` is left, which is taken; else in how many seconds it will be."""
        self._left = min(self._most, self._left + max(0.0, now_s - self._then_s) * self._per_s)
        self._then_s = now_s
        if amount <= self._left:
            self._left -= amount
            return 0.0
        return (amount - self._left) / self._per_s

    def spend(self, amount: float) -> None:
        """Takes `amount`, which was known afterwards only, whether it is left or not."""
        self._left -= amount


class Backlog:
    """Bytes of frames that wait until their peers read, of one connection or of many together."""

    __slots__ = ("_lock", "nbytes")

    def __init__(self) -> None:
        self.nbytes = 0
        self._lock = Lock()

    def add(self, nbytes: int) -> None:
        """So many more wait; fewer, if it is negative."""
        with self._lock:
            self.nbytes += nbytes


class Throttle:
    """A context for work that strangers cause: one does it at a time, and altogether they get a share of the time.

    >>> throttle = Throttle(most_s=0.25, share=0.25)
    >>> with throttle:
    ...     sum(range(10))
    45
    """

    def __init__(self, most_s: float, share: float) -> None:
        """`most_s` of processor time at once, and `share` of a processor in the long run."""
        self._budget, self._lock, self._began_s = Budget(most_s, share), Lock(), 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            sleep(self._budget.take(0.0, monotonic()))
        except BaseException:
            self._lock.release()
            raise
        self._began_s = thread_time()

    def __exit__(self, *_: object) -> None:
        self._budget.spend(thread_time() - self._began_s)
        self._lock.release()
