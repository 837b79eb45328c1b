from __future__ import annotations

import numpy as np
import pytest
from bench.curves import (
    Point,
    at_share,
    drawn_needs,
    draws,
    interval,
    isotonic,
    level_at,
    needs,
    picked,
    window,
    worth_testing,
)  # fmt: skip


def points(*means: float, name: str = "klt:{}", step: int = 10) -> list[Point]:
    """Settings of 100, 200, 400 … bytes for 100 crops."""
    return [
        Point(name.format(step * (k + 1)), np.full(100, 100 << k), (np.arange(100) < round(100 * m)).astype(float))
        for k, m in enumerate(means)
    ]


def test_isotonic_pools_what_falls() -> None:
    np.testing.assert_allclose(isotonic(np.array([1.0, 3.0, 2.0, 4.0])), [1, 2.5, 2.5, 4])
    np.testing.assert_allclose(isotonic(np.array([3.0, 2.0, 1.0])), [2, 2, 2])
    np.testing.assert_allclose(isotonic(np.array([[1.0, 2.0], [2.0, 1.0]])), [[1, 2], [1.5, 1.5]])


def test_bytes_at_a_share_are_between_settings() -> None:
    assert at_share([100, 400], np.array([0.9, 1.0]), 0.95) == pytest.approx(200)
    assert at_share([100, 400], np.array([0.9, 1.0]), 0.9) == 100
    assert at_share([100, 400], np.array([0.9, 0.94]), 0.95) == float("inf")


def test_a_lucky_setting_is_not_enough() -> None:
    """The 96 % before 92 % are the 94 % that both are on average."""
    assert needs(points(0.8, 0.96, 0.92, 0.98), 0.95) > 400


def test_settings_are_ordered_by_their_bytes() -> None:
    assert needs(points(0.9, 1.0)[::-1], 0.95) == pytest.approx(100 * 2**0.5)


def test_draws_keep_the_crops_of_a_photo_together() -> None:
    for drawn in draws([0, 0, 1, 2, 2], count=50):
        counts = np.bincount(drawn, minlength=5)
        assert counts[0] == counts[1]
        assert counts[3] == counts[4]
        assert counts[0] + counts[2] + counts[3] == 3


def test_needs_of_draws_scatter_about_those_of_all() -> None:
    some = points(0.8, 0.9, 0.99)
    values = drawn_needs(some, 0.9, draws(range(100), count=200))
    low, high = interval(values)
    assert low < needs(some, 0.9) < high


def test_an_interval_may_end_nowhere() -> None:
    assert interval(np.array([1.0] * 50 + [np.inf] * 50)) == (1.0, float("inf"))


def test_the_smallest_that_reaches_is_picked() -> None:
    assert picked(points(0.8, 0.95, 0.99), 0.95) == "klt:20"
    assert picked(points(0.8, 0.9, 0.94), 0.95) == "klt:30"


def test_a_level_between_those_tried_is_picked() -> None:
    assert level_at(points(0.8, 0.9, 1.0), 0.95) == 25
    assert level_at(points(0.8, 0.9, 1.0), 0.7) == 10
    assert level_at(points(0.8, 0.9), 0.95) == 20


def test_levels_around_the_shares_are_tested() -> None:
    assert worth_testing(points(0.5, 0.7, 0.85, 0.93, 0.99, 1.0, 1.0, 1.0)) == [30, 40, 50, 60]
    assert worth_testing(points(0.95, 1.0)) == [10, 20]


def test_a_window_has_seven_tenths_of_the_sides() -> None:
    picture = np.arange(100 * 60 * 3).reshape(100, 60, 3)
    part = window(picture, 3)
    assert part.shape == (70, 42, 3)
    np.testing.assert_array_equal(part, window(picture, 3))
    y, x = divmod(int(part[0, 0, 0]) // 3, 60)
    np.testing.assert_array_equal(part, picture[y : y + 70, x : x + 42])
