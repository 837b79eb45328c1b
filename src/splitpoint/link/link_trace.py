"""A link that changes with time, as measured once and replayed."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from splitpoint.errors import InputError
from splitpoint.link import Link


class LinkTrace(msgspec.Struct, frozen=True):
    """`links[k]` holds from `times[k]` (seconds, the first is 0) until the next one, and the last for ever.

    InputError unless times rise and are as many as links.

    >>> trace = LinkTrace((0, 10), (Link(8, 8, 20), Link(2, 2, 20)))
    >>> trace.at(9.9).up_mbps, trace.at(10).up_mbps, trace.at(1e9).up_mbps
    (8, 2, 2)
    >>> trace.duration, trace.mean.up_mbps
    (20.0, 3.2)
    """

    times: tuple[float, ...]
    links: tuple[Link, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.times or len(self.times) != len(self.links):
            raise InputError(
                f"a trace needs as many times as links, at least one: {len(self.times)}, {len(self.links)}"
            )
        if self.times[0] != 0:
            raise InputError(f"a trace's times are counted from its first row: that is 0, not {self.times[0]:g}")
        for before, after in zip(self.times, self.times[1:], strict=False):
            if not before < after < float("inf"):
                raise InputError(f"a trace's times must rise: {after:g} comes after {before:g}")

    def at(self, seconds: float) -> Link:
        """The link `seconds` after the trace began: a step function. It does not loop; the last row holds."""
        return self.links[max(0, bisect_right(self.times, seconds) - 1)]

    @property
    def duration(self) -> float:
        """Seconds the trace covers: the last row counts as long as the rows are on average (1 s if it is alone)."""
        return self.times[-1] + self._last

    @property
    def mean(self) -> Link:
        """The constant link on which requests at random moments take as long, on average.

        That is the mean of milliseconds per byte, not of Mbit/s: half of the time at 8 and half at 2 Mbit/s is as
        slow as 3.2, not 5.
        """
        spans = [b - a for a, b in zip(self.times, self.times[1:], strict=False)] + [self._last]
        total = sum(spans)
        rows = list(zip(spans, self.links, strict=True))
        return Link(
            total / sum(s / link.up_mbps for s, link in rows),
            total / sum(s / link.down_mbps for s, link in rows),
            sum(s * link.rtt_ms for s, link in rows) / total,
            sum(s * link.jitter_ms for s, link in rows) / total,
            f"mean of {self.name}" if self.name else "",
        )

    @property
    def _last(self) -> float:
        return self.times[-1] / (len(self.times) - 1) if len(self.times) > 1 else 1.0
