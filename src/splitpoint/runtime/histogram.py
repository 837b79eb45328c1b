"""How often something took how long: counts in fixed buckets, each twice as long as the one before."""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

#: Upper ends of the buckets in seconds: 1 µs, 2 µs, 4 µs … 17 minutes. What took longer is in one bucket more.
BOUNDS_S = tuple(2.0**k * 1e-6 for k in range(31))


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[k]` values were below ``BOUNDS_S[k]`` and not below the bound before, `total_s` all of them together."""

    counts: tuple[int, ...]
    total_s: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """A bound that at least this share of the values is below: the least in `BOUNDS_S`; 0 if there are no values.

        >>> tally = Tally()
        >>> for ms in (0.9, 1.1, 1.2, 40):
        ...     tally.add(ms * 1e-3)
        >>> tally.histogram().quantile(0.5), tally.histogram().quantile(1.0)
        (0.002048, 0.065536)
        """
        left = share * self.count
        for bound_s, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            left -= count
            if count and left <= 0:
                return bound_s
        return 0.0


class Tally:
    """A histogram that grows; the caller holds a lock."""

    __slots__ = ("_counts", "_total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        """One more value."""
        # On the way of every request: no search, and no calls of min and max.
        bucket = frexp(seconds * 1e6)[1] if seconds > 1e-6 else 0
        self._counts[bucket if bucket < len(BOUNDS_S) else len(BOUNDS_S)] += 1
        self._total_s += seconds

    def histogram(self) -> Histogram:
        """All values so far."""
        return Histogram(tuple(self._counts), self._total_s)
