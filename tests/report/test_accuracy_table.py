"""How good predictions are, in cells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from splitpoint.predict.accuracy import Errors
from splitpoint.report.accuracy_table import KINDS, WHOLES, kind_cells, signed, whole_cells


@pytest.mark.parametrize(
    ("share", "text"), [(0.042, "+4.2%"), (-0.11, "-11%"), (0.0, "+0.0%"), (-0.0004, "+0.0%"), (0.0999, "+10%")]
)
def test_errors_have_a_sign_and_two_digits(share: float, text: str) -> None:
    assert signed(share) == text


def test_cells_are_as_many_as_titles() -> None:
    [cells] = kind_cells({"conv": Errors(7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)})
    assert len(cells) == len(KINDS)
    assert {c.title: c.cell(cells) for c in KINDS}["MAPE"] == "10.0%"


def test_a_network_without_a_correction_has_an_empty_cell() -> None:
    names = {"network": "lenet5", "measured_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0, "linear_ms": 4.0}
    row = SimpleNamespace(**names, predicted_ms=2.2, error=0.1)
    judged = SimpleNamespace(wholes=[row], same_speed=[], corrected=[SimpleNamespace(**names, error=0.01)])
    [cells] = whole_cells(judged)  # type: ignore[arg-type]
    told = {c.title: c.cell(cells) for c in WHOLES}
    assert told["network"] == "lenet5"
    assert (told["error"], told["same speed"], told["corrected"], told["linear"]) == ("+10%", "", "+1.0%", "+100%")
