"""One direction of a link as a schedule: which bytes leave when, when they arrive, and which are changed (`Damage`).
Pure: time is an argument.

    take a chunk in when the link is (nearly) free → it leaves when those before it have left and its own bytes ÷ rate
    have passed → it arrives `delay` later, never before those that were sent before it

So what a lane holds is a chunk or two that are leaving and what is on its way (rate × delay): backpressure reaches the
sender at once, and nothing is hidden in a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

#: A chunk is what the link carries in this time: short against every delay that matters, long against a wake-up.
_CHUNK_S = 1e-3
#: Below, a chunk costs more work than it smooths; above, reading it holds up the other direction.
_CHUNK_LEAST, _CHUNK_MOST = 256, 64 << 10
#: A relay that was woken late makes up for it if the sender was waiting; a longer sleep than this is lost time.
_CATCH_UP_S = 0.1
#: A burst draws its jitter anew after this long, or a stream that never pauses would have only one draw.
_BURST_S = 0.1
#: The 90th percentile of the sum of two exponential waits (one each way), in units of their mean.
_P90_OF_TWO = 3.8897
_NEVER = float("-inf")


class ShapedLane(Generic[T]):
    """The schedule of one direction, with what is on its way. All times are seconds on the caller's clock.

    >>> lane = ShapedLane[str](mbps=8, delay_s=0.020)
    >>> lane.admit(0.0, 1000, "a"), lane.admit(0.0, 1000, "b")      # 1 MB/s: a millisecond each, then 20 on the way
    (0.021, 0.022)
    >>> list(lane.arrived(0.0215)), lane.next_at
    (['a'], 0.022)

    `jitter_ms` is a Link's: how far the 90th percentile of round trips lies above the least. Each way gets an
    exponential wait of its own, one draw a burst (one a chunk would only make long transfers slower).
    """

    def __init__(self, mbps: float, delay_s: float = 0.0, jitter_ms: float = 0.0, random: Random | None = None) -> None:
        self._random = random or Random(0)
        #: (leaves, arrives, what), in order of both
        self._way: deque[tuple[float, float, T]] = deque()
        self._free_at = self._burst_at = self._blocked_until = _NEVER
        self.bytes_per_s = mbps * 125e3
        self.set(0.0, mbps, delay_s, jitter_ms)

    def set(self, now: float, mbps: float, delay_s: float, jitter_ms: float = 0.0) -> None:
        """The link from `now` on: what has not left yet leaves at the new rate, what has arrives as it would have."""
        slower = self.bytes_per_s / (mbps * 125e3)
        self.bytes_per_s, self.delay_s = mbps * 125e3, delay_s
        self._mean_wait_s = jitter_ms * 1e-3 / _P90_OF_TWO
        self._wait_s, self._burst_at = 0.0, _NEVER
        self.chunk = int(min(max(self.bytes_per_s * _CHUNK_S, _CHUNK_LEAST), _CHUNK_MOST))
        self._ahead_s = self.chunk / self.bytes_per_s
        self._retime(now, lambda leaves: now + (leaves - now) * slower)

    def stall(self, now: float, seconds: float) -> None:
        """Nothing leaves or arrives for `seconds`; none of it is lost."""
        self._blocked_until = max(self._blocked_until, now + seconds)
        self._retime(now, lambda leaves: leaves + seconds)
        self._free_at = max(self._free_at, now + seconds)

    def _retime(self, now: float, when: Callable[[float], float]) -> None:
        """Moves what has not left by `now`; the order of arrival stays."""
        if self._free_at > now:
            self._free_at = when(self._free_at)
        last = _NEVER
        for k, (leaves, arrives, what) in enumerate(self._way):
            if leaves > now:
                leaves = when(leaves)
                arrives = leaves + self.delay_s + self._wait_s
            last = max(last, arrives)
            self._way[k] = leaves, last, what

    @property
    def most(self) -> int:
        """Bytes that may be held at once: what is on its way, what is leaving, and a chunk to spare."""
        return int(self.bytes_per_s * (self.delay_s + 3 * self._mean_wait_s)) + 3 * self.chunk

    @property
    def ready_at(self) -> float:
        """When the next chunk may be taken in: one chunk before the link is free, so that it never runs dry."""
        return self._free_at - self._ahead_s

    @property
    def next_at(self) -> float | None:
        """When the next chunk arrives; None if nothing is on its way."""
        return max(self._way[0][1], self._blocked_until) if self._way else None

    @property
    def followed_after(self) -> float:
        """How long after the next arrival another one is due; infinite if none is on its way."""
        return self._way[1][1] - self._way[0][1] if len(self._way) > 1 else float("inf")

    def admit(self, now: float, nbytes: int, what: T, *, waiting: bool = False) -> float:
        """Takes in `nbytes` and returns when they arrive. `waiting`: they were there before, we came late for them."""
        late = now - self._free_at
        start = self._free_at if late <= 0 or (waiting and late <= _CATCH_UP_S) else now
        if start > self._free_at or start - self._burst_at > _BURST_S:
            self._burst_at = start
            self._wait_s = self._random.expovariate(1 / self._mean_wait_s) if self._mean_wait_s else 0.0
        self._free_at = start + nbytes / self.bytes_per_s
        arrives = self._free_at + self.delay_s + self._wait_s
        if self._way:
            arrives = max(arrives, self._way[-1][1])
        self._way.append((self._free_at, arrives, what))
        return arrives

    def arrived(self, now: float) -> Iterator[T]:
        """What has arrived by `now`, in order; it is on its way no more."""
        while (at := self.next_at) is not None and at <= now:
            yield self._way.popleft()[2]


class Damage:
    """Which of the bytes that pass are changed: one bit each, which `random` chooses. `nbytes` were so far.

    >>> damage = Damage(Random(0))
    >>> damage.order(after_nbytes=1, count=2)
    >>> bytes(damage.passed(b"aa")), bytes(damage.passed(b"aaa")), damage.nbytes
    (b'a!', b'!aa', 2)
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._after = self._left = 0
        self.nbytes = 0

    def order(self, after_nbytes: int, count: int) -> None:
        """Changes `count` bytes once `after_nbytes` more have passed, and nothing else that was ordered before."""
        self._after, self._left = after_nbytes, count

    def passed(self, data: bytes) -> bytes:
        if not self._left:
            return data
        first = min(self._after, len(data))
        end = min(first + self._left, len(data))
        self._after -= first
        if first == end:
            return data
        changed = bytearray(data)
        for k in range(first, end):
            changed[k] ^= 1 << self._random.randrange(8)
        self._left -= end - first
        self.nbytes += end - first
        return bytes(changed)
