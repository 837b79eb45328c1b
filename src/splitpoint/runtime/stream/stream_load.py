"""What a stream asks of a plan: the load test of DADS, how many requests to have under way, and what is cheaper.

DADS (Hu et al., INFOCOM 2019) plans for the least latency while the system keeps up with what arrives, and for the most
throughput when it does not: then requests wait for each other, and the slowest stage decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf

import msgspec

from splitpoint.planning.plans import Option
from splitpoint.units import rate as per_second

#: What a cheaper option must gain to be worth a switch.
_WORTH = 1.1
#: Throughputs that nobody can tell apart.
_ALIKE = 1.01
_LEAST_WINDOW, _MOST_WINDOW = 2, 32


class Load(msgspec.Struct, frozen=True):
    """`objective` is ``latency`` or ``throughput``; `why` says so in one sentence."""

    objective: str
    why: str


def judge(rate: float, latency: Option, throughput: Option) -> Load:
    """The objective to plan for when `rate` frames a second arrive (inf: as many as are answered). `latency` and
    `throughput` are the best options for each. Light is what the first one's slowest stage keeps up with."""
    takes, most = per_second(latency.throughput), per_second(throughput.throughput)
    if rate <= latency.throughput:
        return Load("latency", f"light load: {per_second(rate)} arrive and {takes} are possible: planned for latency")
    arriving = "frames come as fast as they are answered" if rate == inf else f"{per_second(rate)} arrive"
    short = "; not enough for all of them" if throughput.throughput < rate < inf else ""
    if throughput.throughput <= latency.throughput * _ALIKE:
        why = f"heavy load: {arriving}; the plan for latency has the most throughput, too: {takes}{short}"
        return Load("latency", why)
    why = f"heavy load: {arriving}; planned for throughput: {most}, instead of {takes} with the least latency{short}"
    return Load("throughput", why)


def window(option: Option) -> int:
    """How many requests of `option` must be under way to keep its slowest stage busy: Little's law, and one more."""
    if not 0 < option.throughput < inf:
        return _LEAST_WINDOW
    needed = ceil(option.total.ms * option.throughput / 1e3 - 1e-6) + 1
    return min(max(needed, _LEAST_WINDOW), _MOST_WINDOW)


def cheaper(options: Iterable[Option], than: Option, most: int = 3) -> tuple[Option, ...]:
    """At most `most` options within the constraints, each with a shorter slowest stage than `than` and the one before;
    the last has the shortest there is."""
    rungs: list[Option] = []
    last = than
    for option in sorted((o for o in options if not o.refused), key=lambda o: o.throughput):
        if option.throughput >= last.throughput * _WORTH:
            rungs.append(option)
            last = option
    return tuple(rungs if len(rungs) <= most else [*rungs[: most - 1], rungs[-1]])
