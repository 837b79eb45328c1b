"""What changing the cut cost: each switch, and the gaps between answers around it. Pure.

>>> print(Switch(12.0, "all on the server", "all on the edge", "2 Mbit/s up", 580.0, 78.2, 77.5))
switched after 12.0 s: all on the server → all on the edge (2 Mbit/s up), expected to gain 580 ms; 78.2 ms between \
answers, usually 77.5
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median

import msgspec

from splitpoint.units import ms, rate

#: Of so many last answers the usual gap is taken.
_USUAL = 20


class Switch(msgspec.Struct, frozen=True):
    """One change of the cut, `at_s` seconds after adapting began. `old` and `new` are options in words.

    `gap_ms` lies between the last answer to a request that began before it and the first to one that began after it;
    `usual_ms` is the median of the gaps before. Both are None while there is no such answer. `gain_rate`, requests a
    second, is what it was for in a stream that is planned for throughput.
    """

    at_s: float
    old: str
    new: str
    why: str
    gain_ms: float
    gap_ms: float | None = None
    usual_ms: float | None = None
    gain_rate: float = 0.0

    def __str__(self) -> str:
        said = f"switched after {self.at_s:.1f} s: {self.old} → {self.new} ({self.why})"
        if self.gain_rate > 0:
            said += f", expected to gain {rate(self.gain_rate)}"
        elif self.gain_ms > 0:
            said += f", expected to gain {ms(self.gain_ms)} ms"
        if self.gap_ms is None:
            return said
        usual = "" if self.usual_ms is None else f", usually {ms(self.usual_ms)}"
        return f"{said}; {ms(self.gap_ms)} ms between answers{usual}"


class Gaps:
    """When requests began and were answered, seconds on one clock; the last ones.

    >>> gaps = Gaps()
    >>> for k in range(5):
    ...     gaps.answered(0.1 * k, 0.1 * k + 0.1)
    >>> gaps.answered(0.5, 0.75)
    >>> f"{gaps.across(0.5):.0f} ms, usually {gaps.usual(0.5):.0f}"
    '250 ms, usually 100'
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_USUAL * 5)

    def answered(self, began_s: float, ended_s: float) -> None:
        self._seen.append((began_s, ended_s))

    def across(self, moment_s: float) -> float | None:
        """Milliseconds from the last answer to a request from before `moment_s` to the first to one from after it.

        None if one of them is missing.
        """
        seen = list(self._seen)
        before = [ended for began, ended in seen if began < moment_s]
        after = [ended for began, ended in seen if began >= moment_s]
        # In a pipeline an answer of before may come after one of after: then nothing stood still.
        return max(0.0, min(after) - max(before)) * 1e3 if before and after else None

    def usual(self, moment_s: float) -> float | None:
        """The median of the gaps between the last answers before `moment_s`, milliseconds; None if there were none."""
        ends = sorted(ended for _, ended in list(self._seen) if ended <= moment_s)[-_USUAL - 1 :]
        return median(b - a for a, b in pairwise(ends)) * 1e3 if len(ends) > 1 else None
