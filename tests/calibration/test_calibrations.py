"""What a calibration says."""

from __future__ import annotations

import pytest

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality, needed_inputs
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


@pytest.mark.parametrize(
    ("same", "of", "max_drop", "verdict"),
    [
        (300, 300, 0.01, "shown"),
        (299, 299, 0.01, "not shown"),  # no label changed, but 3/299 is more than 1 %
        (24, 24, 0.01, "not shown"),
        (24, 24, 0.125, "shown"),
        (999, 1000, 0.01, "shown"),
        (995, 1000, 0.01, "not shown"),  # half a percent seen, 1.05 % possible
        (988, 1000, 0.01, "refused"),
        (23, 24, 0.01, "refused"),
    ],
)
def test_the_three_answers(same: int, of: int, max_drop: float, verdict: str) -> None:
    row = CalibrationRow(3, "int8", (10,), 10, Quality(of, same / of, 1.0, 0.0))
    found = Calibration(model="m", fingerprint="f", inputs=of, classifier=True, output="y", rows=(row,))
    assert found.allowed(3, "int8", max_drop) == verdict
    assert found.allowed(4, "int8", max_drop) == found.allowed(3, "int4", max_drop) == "not shown"
    assert found.allowed(4, "raw+zstd", max_drop) == "shown"


def test_without_labels_nothing_is_shown() -> None:
    assert Quality(1000, None, 1.0, 0.0).verdict(0.5) == "not shown"
