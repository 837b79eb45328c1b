"""splitpoint inspect: layers, what crosses behind each, and names that select just that cut."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PYTHON, Serving, fails, ok


def test_inspect_lists_layers_and_what_crosses(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "inspect", "lenet")
    assert "conv2" in text
    assert "1×16×10×10" in text
    assert "uint8[batch,32,32,1]" in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_inspect_fits_the_terminal(width: int) -> None:
    env = os.environ | {"COLUMNS": str(width), "TTY_COMPATIBLE": "1", "TERM": "dumb", "NO_COLOR": "1"}
    command = [*PYTHON, "inspect", "zoo:efficientnet_lite0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert max(len(line) for line in done.stdout.splitlines()) <= width


def test_inspect_writes_json_csv_names_and_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = json.loads(ok(capsys, "inspect", "lenet", "--json"))
    conv2 = next(r for r in out["rows"] if r["layer"] == "conv2")
    assert conv2["shape"] == [1, 16, 10, 10]
    assert conv2["memory_bytes"] == 6400
    assert 6400 < conv2["crossing_wire_bytes"] < 6500
    ok(capsys, "inspect", "lenet", "--csv", tmp_path / "l.csv", "--names", tmp_path / "layer_names.txt")
    with (tmp_path / "l.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(out["rows"])
    names = (tmp_path / "layer_names.txt").read_text().split()
    assert names[:3] == ["normalize", "conv1", "tanh1"]
    openpyxl = pytest.importorskip("openpyxl")
    ok(capsys, "inspect", "lenet", "--xlsx", tmp_path / "l.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "l.xlsx").active
    assert sheet.max_row == len(out["rows"]) + 1


def test_missing_extras_are_asked_for_by_name(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "the extra [xlsx]" in fails(capsys, 2, "inspect", "lenet", "--xlsx", tmp_path / "x.xlsx")


def test_every_row_of_inspect_and_sweep_names_its_own_cut(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside parallel branches the last node's name means a smaller cut: such rows are called prefix:K."""
    import nets
    from splitpoint.models import load

    nodes = [
        nets.node("MatMul", ["a", "wl"], ["l1"], name="left"),
        nets.node("Relu", ["l1"], ["l2"], name="left_relu"),
        nets.node("MatMul", ["a", "wr"], ["r1"], name="right"),
        nets.node("Tanh", ["r1"], ["r2"], name="right_tanh"),
        nets.node("Add", ["l2", "r2"], ["y"], name="add"),
    ]
    shape = ["batch", 8]
    weights = [nets.normal("wl", 8, 8), nets.normal("wr", 8, 8)]
    net = nets.proto(nodes, [nets.value("a", shape)], [nets.value("y", shape)], weights)
    path = nets.saved(net, tmp_path / "b.onnx")
    graph = load(path).graph
    rows = json.loads(ok(capsys, "inspect", path, "--json"))["rows"]
    assert [r["at"] for r in rows] == ["input", "left", "left_relu", "prefix:3", "prefix:4", "output"]
    for row, cut in zip(rows, graph.prefixes(), strict=True):
        assert graph.cut(row["at"]).nodes == cut.nodes
        assert [t.name for t in graph.cut(row["at"]).crossing] == row["crossing"]
