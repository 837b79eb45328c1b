"""The server's clock on the device's, as NTP does it (RFC 5905, section 8), from pings.

>>> clock = ServerClock()
>>> clock.add(sent=10.000, received=70.004, answered=70.005, back=10.009)
>>> f"{clock.offset_s:.4f} ± {clock.error_s(10.009):.4f}"
'60.0000 ± 0.0040'
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: How fast two quartz clocks drift apart at the worst: an old sample is trusted less. (NTP's PHI is 15e-6 for one.)
DRIFT = 30e-6
_KEEP = 16


class Offset(NamedTuple):
    """The server's clock minus the device's, the most it could be wrong by when it was taken, and when that was."""

    offset_s: float
    error_s: float
    taken: float

    def error_at(self, now: float) -> float:
        """The most it can be wrong by at `now`, seconds: clocks drift."""
        return self.error_s + DRIFT * max(0.0, now - self.taken)


class ServerClock:
    """Offset of the server's clock from the device's: that of the ping with the shortest round trip, lately.

    The true offset is within half of that round trip, whatever the two ways' shares in it.
    """

    def __init__(self) -> None:
        self._samples: deque[Offset] = deque(maxlen=_KEEP)
        self.best = Offset(0.0, float("inf"), 0.0)

    def add(self, sent: float, received: float, answered: float, back: float) -> None:
        """A ping: sent and back on the device's clock, received and answered on the server's (seconds)."""
        trip = max(0.0, (back - sent) - (answered - received))
        self._samples.append(Offset(((received - sent) + (answered - back)) / 2, trip / 2, back))
        self.best = min(self._samples, key=lambda s: s.error_s + DRIFT * (back - s.taken))

    @property
    def offset_s(self) -> float:
        """Server's clock minus the device's."""
        return self.best.offset_s

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip of the recent pings."""
        return min((2 * s.error_s for s in self._samples), default=float("inf"))

    def error_s(self, now: float) -> float:
        """The most that the offset can be wrong by at `now`; infinite before the first ping."""
        return self.best.error_at(now)
