"""What a calibration says."""

from __future__ import annotations

import pytest

from splitpoint.calibration.calibrations import Quality, needed_inputs
from splitpoint.errors import UsageError


@pytest.mark.parametrize(
    ("same", "of", "bound"),
    # The second and third: Clopper and Pearson's upper end as published tables have it.
    [(300, 300, 0.01), (24, 24, 0.125), (2, 2, 1.0), (9, 10, 0.3942), (95, 100, 0.1023), (0, 5, 1.0)],
)
def test_what_a_calibration_does_not_rule_out(same: int, of: int, bound: float) -> None:
    assert Quality(of, same / of, 1.0, 0.0).bound == pytest.approx(bound, abs=2e-4)


def test_no_claim_without_labels() -> None:
    assert Quality(1000, None, 1.0, 0.0).bound == 1.0


@pytest.mark.parametrize("max_drop", [0.5, 0.1, 0.03, 0.01, 0.005, 0.001, 0.3, 3.0, 1 / 7])
def test_as_many_inputs_as_needed_and_not_one_less(max_drop: float) -> None:
    needed = needed_inputs(max_drop)
    assert Quality(needed, 1.0, 1.0, 0.0).bound <= max_drop
    assert needed == 1 or Quality(needed - 1, 1.0, 1.0, 0.0).bound > max_drop or max_drop >= 1


@pytest.mark.parametrize("max_drop", [0.0, -0.01, float("nan")])
def test_no_number_of_inputs_shows_that_nothing_drops(max_drop: float) -> None:
    with pytest.raises(UsageError, match="no number of inputs"):
        needed_inputs(max_drop)
