"""How much a device and a server slow each other down while both compute: measured by letting both do so.

On one machine they share its cores, which is how a queue is mostly tried first; two machines share nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

#: For how long both are run, one by one and at once, and in how many rounds of both: what else a machine does drifts.
BUDGET_S, _ROUNDS = 1.0, 2
#: Runs that differ by less than this share are alike.
_ALIKE = 0.1


def slowdown(
    device: Callable[[], float], server: Callable[[], float], budget_s: float = BUDGET_S,
    clock: Callable[[], float] = perf_counter,
) -> float:  # fmt: skip
    """How many times as long a run takes while the other side computes, too; 1 if that is the same within a tenth.

    `device` and `server` run once and return the seconds that were computed there. The server's runs begin and end
    while the device computes; what a slow link leaves of the server does not disturb the device.
    """
    device(), server()
    alone: tuple[list[float], list[float]] = ([], [])
    beside: tuple[list[float], list[float]] = ([], [])
    part_s = budget_s / _ROUNDS / 4
    with ThreadPoolExecutor(1) as pool:
        for _ in range(_ROUNDS):
            for run, taken in zip((device, server), alone, strict=True):
                taken.extend(_until(run, clock() + part_s, clock))
            end = clock() + 2 * part_s
            other = pool.submit(_until, server, end, clock)
            beside[0].extend(_until(device, end, clock))
            while not other.done():  # not counted: the server may be idle by then
                device()
            beside[1].extend(other.result())
    usual = [median(one) for one in alone]
    if not all(usual):  # the server was not asked
        return 1.0
    factor = sum(median(both) / one for one, both in zip(usual, beside, strict=True)) / 2
    return factor if factor > 1 + _ALIKE else 1.0


def _until(run: Callable[[], float], end: float, clock: Callable[[], float]) -> list[float]:
    """Each run's seconds, one at least."""
    taken = [run()]
    while clock() < end:
        taken.append(run())
    return taken
