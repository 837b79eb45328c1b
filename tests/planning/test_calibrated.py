"""What a calibration says of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from split_cases import (
    CODECS,
    chosen_of,
    graph_of,
    split_of,
)

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.link import Link


def calibration_of(graph: Graph, rows: Iterable[CalibrationRow]) -> Calibration:
    return Calibration(
        model=graph.name, fingerprint="f" * 64, inputs=1000, classifier=True, output="logits", rows=tuple(rows)
    )


class Shown(Quality, frozen=True):
    """A quality whose bound is given: how it is made is the calibration's own affair."""

    @property
    def bound(self) -> float:
        return 1 - self.cosine


def shown(bound: float) -> Quality:
    return Shown(inputs=1000, agreement=1.0, cosine=1 - bound, error=0.0)


def test_codecs_within_a_budget_are_those_that_are_shown_to_be() -> None:
    """int8 is shown to keep within 1 % at one tensor, not at another, and never measured at the rest."""
    graph = graph_of("zoo:lenet5")
    good, bad = graph.prefixes()[7], graph.prefixes()[9]
    rows = [CalibrationRow(7, "int8", (1000,), 1000, shown(0.004)), CalibrationRow(9, "int8", (300,), 300, shown(0.02))]
    split = split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows), max_drop=0.01)
    slow = Link(0.001, 0.001, 1)
    chosen = chosen_of(split, slow)
    assert {t for t, c in chosen.items() if c == "int8"} == {good.crossing[0].name}
    assert chosen[bad.crossing[0].name] == "raw"
    free = chosen_of(split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows)), slow)
    assert free[bad.crossing[0].name] == "int8"


def test_without_a_calibration_a_budget_leaves_only_exact_codecs() -> None:
    split = split_of(graph_of("zoo:lenet5"), codecs=CODECS, max_drop=0.01)
    assert set(chosen_of(split, Link(0.001, 0.001, 1)).values()) == {"raw"}


def test_measured_bytes_count_instead_of_estimated_ones() -> None:
    graph = graph_of("zoo:lenet5")
    rows = [CalibrationRow(0, "jpeg:90", (321,), 400, shown(0.001))]
    split = split_of(graph, codecs=("jpeg:90",), calibration=calibration_of(graph, rows))
    assert chosen_of(split, Link(0.01, 1, 1))["image"] == "jpeg:90"
    sent = split.costs.coded(0, graph.tensors["image"], "jpeg:90")
    assert (sent.codec, sent.nbytes, sent.sized) == ("jpeg:90", 321, True)


def test_rows_that_do_not_fit_the_graph_are_refused() -> None:
    graph = graph_of("zoo:lenet5")
    for row in (CalibrationRow(99, "int8", (1,), 1, shown(0.1)), CalibrationRow(3, "int8", (1, 2), 3, shown(0.1))):
        with pytest.raises(InputError, match="another model"):
            split_of(graph, calibration=calibration_of(graph, [row]))
