"""The server's clock on the device's, as NTP does it (RFC 5905, section 8), from pings.

>>> clock = ServerClock()
>>> clock.add(sent=10.000, received=70.004, answered=70.005, back=10.009)
>>> f"{clock.offset_s:.4f} ± {clock.error_s(10.009):.4f}"
'60.0000 ± 0.0040'

The true offset was within half of a ping's round trip of what that ping says. Where what is known and what comes next
cannot both be true, one of the clocks has jumped (it stands still while its machine sleeps) or runs faster than a
quartz should, and what was known is forgotten:

>>> clock.add(sent=12.000, received=75.004, answered=75.005, back=12.009)  # the device has slept for three seconds
>>> f"{clock.offset_s:.4f} ± {clock.error_s(12.009):.4f}"
'63.0000 ± 0.0040'
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from typing import NamedTuple

#: How fast two quartz clocks drift apart at the worst: an old sample is trusted less. (NTP's PHI is 15e-6 for one.)
DRIFT = 30e-6
#: The fastest that clocks drift which are only being set right (Linux slews by 500e-6 at most); what is faster jumps.
_FASTEST = 1.2e-3
_KEEP = 16
#: Rounding of clock readings and of their differences: contradictions that are smaller are none.
_NOISE_S = 1e-6


class Offset(NamedTuple):
    """The server's clock minus the device's, the most it could be wrong by when it was taken, and when that was.

    `drift`: seconds a second by which it grows. `pinged`: from a ping, whose round trip is twice the error; else from
    an answer, of which no more is known than that it came after its request.
    """

    offset_s: float
    error_s: float
    taken: float
    drift: float = DRIFT
    pinged: bool = True

    def error_at(self, now: float) -> float:
        """The most it can be wrong by at `now`, seconds: clocks drift."""
        return self.error_s + self.drift * max(0.0, now - self.taken)

    def apart(self, other: Offset, now: float) -> float:
        """By how many seconds both cannot be true at `now`; 0 if they can."""
        return max(0.0, abs(self.offset_s - other.offset_s) - self.error_at(now) - other.error_at(now) - _NOISE_S)


class ServerClock:
    """Offset of the server's clock from the device's: that of the ping with the shortest round trip, lately."""

    def __init__(self) -> None:
        self._samples: deque[Offset] = deque(maxlen=_KEEP)
        self._drift = DRIFT
        self.best = Offset(0.0, float("inf"), 0.0)

    def add(self, sent: float, received: float, answered: float, back: float) -> None:
        """A ping: sent and back on the device's clock, received and answered on the server's (seconds)."""
        if not isfinite(sent + received + answered + back):
            return
        trip = max(0.0, (back - sent) - (answered - received))
        self._add(Offset(((received - sent) + (answered - back)) / 2, trip / 2, back))

    def judge(self, sent: float, received: float, spent: float, back: float) -> bool:
        """Whether an answer fits what is known; if not, the offset is known again as far as this answer tells it.

        The request was handed over at `sent` and its answer was here at `back`, on the device's clock; the server had
        it at `received` on its own, and answered `spent` seconds later.
        """
        best = self.best
        slack = best.error_s + best.drift * (back - best.taken) + _NOISE_S
        arrived = received - best.offset_s
        if arrived >= sent - slack and arrived + spent <= back + slack:
            return True
        trip = back - sent
        if not isfinite(trip + received + spent) or best.error_s == float("inf"):
            return True  # no times, or nothing that could be contradicted
        if not 0.0 <= spent <= trip:  # it claims more time than there was: only its arrival is believed
            if sent - slack <= arrived <= back + slack:
                return True
            spent = 0.0
        self._add(Offset(received - sent - (trip - spent) / 2, (trip - spent) / 2, back, pinged=False))
        return False

    def _add(self, seen: Offset) -> None:
        now, best = seen.taken, self.best
        if best.error_s < float("inf") and (gap_s := best.apart(seen, now)):
            passed_s = max(now - best.taken, 1e-3)
            if seen.pinged and best.pinged and gap_s <= _FASTEST * passed_s:
                # One runs fast: from now on samples are trusted less as they age, by the most that this can mean.
                most = (abs(seen.offset_s - best.offset_s) + seen.error_s + best.error_s) / passed_s
                self._drift = min(_FASTEST, max(self._drift, most))
            self._samples.clear()
        self._samples.append(seen._replace(drift=self._drift))
        self.best = min(self._samples, key=lambda s: s.error_at(now))

    @property
    def offset_s(self) -> float:
        """Server's clock minus the device's."""
        return self.best.offset_s

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip of the recent pings."""
        return min((2 * s.error_s for s in self._samples if s.pinged), default=float("inf"))

    def error_s(self, now: float) -> float:
        """The most that the offset can be wrong by at `now`; infinite before the first ping."""
        return self.best.error_at(now)
