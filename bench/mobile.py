"""A mobile link that changes as such links do: drawn from a seed, not recorded. It ships as ``lab/scenarios/lte.csv``.

Published LTE traces (per-second logs from walking, bus and car) have in common what is made here: rates are spread like
a log-normal, a level that holds for tens of seconds (where one is), ripples of a second or two around it (fading), now
and then a dip to nearly nothing for about a second (a handover, a tunnel), and a round trip that grows when the rate
falls. What is not in it: bursts of packet loss, and a modem that falls asleep.
"""

from __future__ import annotations

from math import exp, log, sqrt
from random import Random

from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace

#: Rows a second.
_STEP_S = 0.2
#: Standard deviations of the logarithm of the rate, and how long each is remembered (s): the level, and the ripples.
_LEVEL, _LEVEL_S = 0.9, 20.0
_RIPPLE, _RIPPLE_S = 0.18, 1.5
#: Dips: one in so many seconds, for so long, to such a share of the rate.
_DIP_EVERY_S, _DIP_S, _DIP_SHARE = 25.0, (0.5, 2.0), (0.08, 0.25)
#: More comes down than goes up, and the two are alike only in their level.
_DOWN = 3.0
_LEAST_MBPS, _MOST_MBPS = 0.2, 60.0
_RTT_MS, _RTT_RIPPLE_MS = 38.0, 6.0


def mobile_trace(seconds: float = 90.0, up_mbps: float = 6.0, seed: int = 8) -> LinkTrace:
    """A made-up LTE-like link: its rate up lies around `up_mbps` (the median of what is drawn, without the dips).

    >>> trace = mobile_trace(10.0)
    >>> trace == mobile_trace(10.0), len(trace.times), trace.times[1]
    (True, 50, 0.2)
    """
    random = Random(seed)
    level, ripple, down = _Walk(random, _LEVEL, _LEVEL_S), _Walk(random, _RIPPLE, _RIPPLE_S), _Walk(random, 0.3, 5.0)
    dips = _dips(random, seconds)
    times, links = [], []
    for k in range(round(seconds / _STEP_S)):
        at = round(k * _STEP_S, 3)
        shared = exp(level.step() + ripple.step()) * next((s for a, b, s in dips if a <= at < b), 1.0)
        up = min(max(up_mbps * shared, _LEAST_MBPS), _MOST_MBPS)
        rtt = _RTT_MS + abs(random.gauss(0.0, _RTT_RIPPLE_MS)) + 12.0 * max(0.0, log(up_mbps / up))
        rate_down = min(max(_DOWN * up * exp(down.step()), _LEAST_MBPS), _MOST_MBPS)
        times.append(at)
        links.append(Link(round(up, 3), round(rate_down, 3), round(rtt, 1)))
    return LinkTrace(tuple(times), tuple(links), f"mobile {seed}")


class _Walk:
    """A value that wanders around 0 with a standard deviation, and forgets where it was (AR(1))."""

    def __init__(self, random: Random, deviation: float, memory_s: float) -> None:
        self._random, self._kept = random, exp(-_STEP_S / memory_s)
        self._push = deviation * sqrt(1 - self._kept**2)
        self._value = random.gauss(0.0, deviation)

    def step(self) -> float:
        self._value = self._kept * self._value + self._random.gauss(0.0, self._push)
        return self._value


def _dips(random: Random, seconds: float) -> list[tuple[float, float, float]]:
    """(from, to, share of the rate that is left)."""
    found, at = [], random.expovariate(1 / _DIP_EVERY_S)
    while at < seconds:
        end = at + random.uniform(*_DIP_S)
        found.append((at, end, random.uniform(*_DIP_SHARE)))
        at = end + random.expovariate(1 / _DIP_EVERY_S)
    return found


def as_csv(trace: LinkTrace) -> str:
    """The trace as `splitpoint.link.files.load_trace` reads it."""
    rows = [f"{t:g},{k.up_mbps:g},{k.down_mbps:g},{k.rtt_ms:g}" for t, k in zip(trace.times, trace.links, strict=True)]
    return "\n".join(["time,up,down,rtt", *rows]) + "\n"
