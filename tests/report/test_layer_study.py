"""What every layer costs and makes, as rows and files."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest
from plans import profiles
from profile_cases import example

from splitpoint.models import load as open_model
from splitpoint.models.model import Model
from splitpoint.report.files import write_csv
from splitpoint.report.layer_study import COLUMNS, TABLE, cost_rows, draw, kind_of


@pytest.fixture(scope="module")
def lenet() -> Model:
    return open_model("zoo:lenet5")


def test_rows_are_the_profiles_numbers() -> None:
    edge, _ = profiles("zoo:lenet5", 60.0, 2.0)
    rows = cost_rows(edge)
    assert len(rows) == len(edge.graph.prefixes())
    assert sum(r.ms for r in rows) == pytest.approx(60.0, rel=1e-3)
    assert sum(r.share for r in rows) == pytest.approx(1.0, rel=1e-3)
    for k, row in enumerate(rows):
        assert row.head_ms + row.tail_ms == pytest.approx(60.0, rel=1e-3)
        assert row.crossing_bytes == edge.graph.prefixes()[k].nbytes
    assert {r.kind for r in rows if r.layer.startswith("conv")} == {"convolution"}
    assert {r.kind for r in rows if r.layer.startswith("fc")} <= {"linear", "activation"}


def test_files_have_every_column(tmp_path: Path) -> None:
    edge, _ = profiles("zoo:lenet5", 60.0, 2.0)
    rows = cost_rows(edge)
    write_csv(tmp_path / "l.csv", [asdict(r) for r in rows], COLUMNS)
    with (tmp_path / "l.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert [line["layer"] for line in lines] == [r.layer for r in rows]
    cells = {column.title: column.cell(rows[1]) for column in TABLE}
    assert cells["layer"] == rows[1].layer
    assert cells["crosses behind it"]
    pytest.importorskip("matplotlib")
    draw(edge, rows, tmp_path / "l.png")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_rows_follow_the_graph(lenet: Model) -> None:
    profile = example(lenet)
    rows = cost_rows(profile)
    assert [r.layer for r in rows[4:8]] == ["normalize", "conv1", "tanh1", "pool1"]
    assert rows[0].output_bytes == lenet.inputs[0].bind({"batch": 1}).nbytes
    assert rows[5].shape == "1x6x28x28"
    assert sum(r.share for r in rows) == pytest.approx(1, abs=1e-3)
    assert sum(r.ms for r in rows) == pytest.approx(sum(profile.nodes))
    assert [r.measured for r in rows].count(True) == 3
    assert rows[-1].head_ms == pytest.approx(profile.whole.median)


def test_kinds_of_layers(lenet: Model) -> None:
    graph = open_model("zoo:efficientnet_lite0").graph
    kinds = {n.layer: kind_of([n], graph) for n in graph.nodes}
    assert kinds["blocks.1.depthwise.norm"] == "depthwise convolution"
    assert kinds["blocks.1.expand.norm"] == "convolution"
    assert kinds["stem.norm"] == "convolution"
    assert kinds["fc"] == "linear"
    assert {kind_of([n], lenet.graph) for n in lenet.graph.nodes if n.op == "Conv"} == {"convolution"}
