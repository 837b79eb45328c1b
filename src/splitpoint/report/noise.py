"""What a few measurements can tell apart.

Latencies are skewed and have outliers, so nothing is supposed of how they are distributed: the sign test and the
interval of the median that belongs to it (Conover, Practical Nonparametric Statistics, 1999, 3.2 and 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import comb
from statistics import median

#: How often what is only noise may look like a difference.
_RISK = 0.05


def outside(count: int) -> int:
    """How many of `count` ordered values lie on either side of the median's interval, its ends included; 0 if they are
    too few (less than 6) to have one.

    >>> outside(5), outside(6), outside(12)
    (0, 1, 3)
    """
    tails = accumulate(comb(count, k) for k in range(count // 2 + 1))
    return sum(2 * tail <= _RISK * 2**count for tail in tails)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what `values` are drawn from lies, 19 times in 20; their least and most if they are few."""
    ordered, k = sorted(values), max(1, outside(len(values)))
    return ordered[k - 1], ordered[-k]


def tied(rounds: Sequence[Sequence[float]]) -> list[int]:
    """Which of `rounds` cannot be told from the one with the least median, this first, by their medians.

    ``rounds[i][j]`` is what the i-th took in round j: they were measured in turns, so that differences within a round
    count. Too few rounds tell nothing apart.
    """
    order = sorted(range(len(rounds)), key=lambda i: median(rounds[i]))
    best = rounds[order[0]]

    def slower(values: Sequence[float]) -> bool:
        k = outside(len(values))
        return k > 0 and sorted(a - b for a, b in zip(values, best, strict=True))[k - 1] > 0

    return [i for i in order if not slower(rounds[i])]
