"""What a few measurements can tell apart, against counts of what chance does."""

from __future__ import annotations

import random
from math import comb
from statistics import median

import pytest

from splitpoint.report.noise import median_interval, outside, tied


@pytest.mark.parametrize("count", [1, 5, 6, 9, 12, 48, 1000])
def test_as_many_lie_outside_as_chance_leaves_one_time_in_twenty(count: int) -> None:
    k = outside(count)
    both = [2 * sum(comb(count, j) for j in range(n)) / 2**count for n in (k, k + 1)]
    assert both[0] <= 0.05 < both[1]


def test_the_interval_of_a_median() -> None:
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)  # too few to leave any out
    assert median_interval(range(12, 0, -1)) == (3, 10)


def test_the_interval_holds_the_median_that_often() -> None:
    drawn = random.Random(0)
    intervals = [median_interval([drawn.expovariate(1) for _ in range(12)]) for _ in range(2000)]
    held = sum(low <= 0.693147 <= high for low, high in intervals) / 2000
    assert 0.95 <= held <= 0.975  # 0.961 by the binomial distribution


def test_what_is_always_slower_is_told_apart_also_where_all_drift_more_than_they_differ() -> None:
    drift = [10.0 + 5 * k for k in range(8)]
    assert tied([[t + 1 for t in drift], drift, [t + 0.1 for t in drift]]) == [1]
    assert tied([[t + (-1) ** k for k, t in enumerate(drift)], drift]) == [0, 1]
    assert tied([[1.0, 1.0], [9.0, 9.0]]) == [0, 1]  # two rounds tell nothing
    assert tied([[4.0]]) == [0]


def test_equals_are_rarely_told_apart() -> None:
    drawn = random.Random(1)
    rounds = [[[drawn.gauss(10, 1) for _ in range(12)] for _ in range(2)] for _ in range(2000)]
    assert sum(len(tied(one)) == 1 for one in rounds) / 2000 < 0.05
    assert median(len(tied(one)) for one in rounds) == 2
