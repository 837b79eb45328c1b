"""A prediction as rows: a kernel each, or so few that they fit a screen."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest

from splitpoint.models import load
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.price.prediction import Prediction, predict_latency
from splitpoint.report.files import write_csv
from splitpoint.report.prediction_table import COLUMNS, TABLE, between, kernel_rows, kind_text, layer_rows


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return predict_latency(load("zoo:efficientnet_lite0"), load_latency("neurosurgeon-edge"))


def test_rows_add_up_however_many_there_are(prediction: Prediction) -> None:
    kernels = kernel_rows(prediction)
    assert len(kernels) == len(prediction.kernels)
    for most in (8, 32, 1000):
        rows = layer_rows(prediction, most)
        assert len(rows) <= most
        assert sum(r.kernels for r in rows) == len(kernels)
        assert sum(r.ms for r in rows) == pytest.approx(sum(r.ms for r in kernels), rel=1e-3)


def test_cells_fit_their_columns(prediction: Prediction) -> None:
    for row in layer_rows(prediction):
        cells = {column.title: column.cell(row) for column in TABLE}
        assert cells["layer"] == row.layer
        assert len(kind_text(row)) <= 22
        assert kind_text(row).endswith(" *") == (not row.calibrated)
        assert cells["8 of 10"] == between(row.low_ms, row.high_ms)
    assert between(0.0042, 12.34) == "0.004…12.3"


def test_the_csv_has_every_column(prediction: Prediction, tmp_path: Path) -> None:
    write_csv(tmp_path / "k.csv", [asdict(r) for r in kernel_rows(prediction)], COLUMNS)
    with (tmp_path / "k.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert len(lines) == len(prediction.kernels)
