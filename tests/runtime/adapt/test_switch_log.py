"""What a switch cost."""

from __future__ import annotations

import pytest

from splitpoint.runtime.adapt.switch_log import Gaps, Switch


def test_gaps_are_those_across_a_moment() -> None:
    gaps = Gaps()
    assert gaps.across(1.0) is None
    assert gaps.usual(1.0) is None
    for k in range(10):
        gaps.answered(0.1 * k, 0.1 * k + 0.3)  # three under way at once
    assert gaps.across(0.55) == pytest.approx(100)
    assert gaps.usual(2.0) == pytest.approx(100)
    gaps.answered(0.95, 1.0)  # overtakes: nothing stood still
    assert gaps.across(0.92) == 0.0
    assert "between" not in str(Switch(1.0, "a", "b", "c", 0.0))
