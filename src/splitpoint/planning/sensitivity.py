"""The plan as a function of the uplink's bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from splitpoint.link import Link
from splitpoint.planning.plans import NO_OPTION, Option, RateRange

#: Uplink rates, in Mbit/s, from less than the slowest modem link to the fastest wire an edge device has.
SLOWEST, FASTEST = 0.05, 2000.0
#: Two rates this close are one change point.
_CLOSE = 1.01
#: A stretch narrower than this belongs to the one before.
_SLIVER = 1.05


@dataclass(frozen=True)
class Curves:
    """What each kind of option costs at each of `rates` (Mbit/s up); ``values["best"]`` is the plan: the picture."""

    rates: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


def ranges(best_at: Callable[[Link], Option | None], link: Link, best: Option | None) -> tuple[RateRange, ...]:
    """Which option is the best at which rates: re-planned on a logarithmic grid, change points by bisection.

    For a sum (latency, energy) each option is a line over 1 ÷ rate: one that wins at two rates wins between them. A
    stretch in which nothing keeps to the constraints has the kind `NO_OPTION`. At the rate of `link` itself the answer
    is `best`, so that the range with this rate says what the plan says.
    """
    own = link.up_mbps
    known: dict[float, Option | None] = {own: best}

    def at(rate: float) -> Option | None:
        if rate not in known:
            known[rate] = best_at(_at_rate(link, rate))
        return known[rate]

    def refine(low: float, high: float) -> None:
        if _key(at(low)) != _key(at(high)) and high / low > _CLOSE:
            middle = (low * high) ** 0.5
            refine(low, middle)
            refine(middle, high)

    for low, high in pairwise(sorted({*_grid(link, 33), own})):
        refine(low, high)
    stretches: list[RateRange] = []
    rates = sorted(known)
    start = rates[0]
    for here, after in zip(rates, [*rates[1:], None], strict=True):
        if after is None or _key(known[here]) != _key(known[after]):
            end = here if after is None else (here * after) ** 0.5
            # A sliver between two answers is a change point, unless one's own link lies in it.
            if end / start >= _SLIVER or start <= own <= end or not stretches:
                option = known[here]
                named = (NO_OPTION, "", ()) if option is None else (option.kind, option.cut, option.codecs)
                stretches.append(RateRange(start, end, *named))
            else:
                stretches[-1] = msgspec.structs.replace(stretches[-1], up_mbps_to=end)
            start = end
    return tuple(stretches)


def _key(option: Option | None) -> object:
    return None if option is None else (option.kind, option.on_edge, option.codecs)


def curves(kinds_at: Callable[[Link], Mapping[str, float]], link: Link) -> Curves:
    """The picture's lines; a kind that does not exist at a rate is inf there."""
    rates = _grid(link, 97)
    rows = [kinds_at(_at_rate(link, rate)) for rate in rates]
    names = dict.fromkeys(name for row in rows for name in row)
    return Curves(tuple(rates), {n: tuple(row.get(n, float("inf")) for row in rows) for n in names})


def _at_rate(link: Link, up_mbps: float) -> Link:
    """`link` with another uplink, all else being equal."""
    return msgspec.structs.replace(link, up_mbps=up_mbps)


def _grid(link: Link, points: int) -> list[float]:
    """The uplink rates (Mbit/s) that are looked at: the usual ones, and well beyond that of `link` in any case."""
    own = link.up_mbps
    slowest, fastest = SLOWEST if own > SLOWEST else own / 2, FASTEST if own < FASTEST else own * 2
    rates: list[float] = np.geomspace(slowest, fastest, points).tolist()
    return rates
