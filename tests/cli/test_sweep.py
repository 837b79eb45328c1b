"""splitpoint sweep: the seed's columns, resumed runs, the picture."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Serving, fails, ok
from PIL import Image

from splitpoint.cli import main
from splitpoint.measured_cuts import AGAIN
from splitpoint.models.zoo import digits
from splitpoint.report.sweep_table import COLUMNS, FASTEST, SLOWER, SweepRow, read_rows, write_rows


def test_sweep_writes_the_seeds_columns_and_resumes(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "split_latency_results.csv"
    command = ["sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", digits()[0].parent]
    text = ok(capsys, *command, "--csv", path, "--cuts", "5")
    assert "fastest" in text
    with path.open(newline="") as file:
        header = file.readline().strip()
        assert header.startswith("split_layer,avg_compute,avg_transfer,avg_recv,avg_rtt")
        assert header == ",".join(COLUMNS)
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0]["split_layer"] == "input"
    assert rows[-1]["split_layer"] == "output"
    for row in rows:
        compute, transfer, recv, rtt = (float(row[c]) for c in COLUMNS[1:5])
        assert compute + transfer + recv == pytest.approx(rtt, rel=1e-9)
        assert rtt > 0
        assert min(compute, transfer, recv) >= 0
    before = path.read_text().splitlines()
    ok(capsys, *command, "--csv", path, "--cuts", "chain")
    after = path.read_text().splitlines()
    assert len(after) == 18
    again = AGAIN if len(digits()) <= AGAIN else len(digits())
    with path.open(newline="") as file:
        turns = {row["split_layer"] for row in csv.DictReader(file) if int(row["n"]) == again}
    assert turns  # what may be the fastest has taken turns
    kept = {line for line in before[1:] if line.partition(",")[0] not in turns}
    assert kept <= set(after)  # what else was measured is not measured again
    ok(capsys, *command, "--csv", path, "--cuts", "3")
    last = path.read_text().splitlines()
    assert [line.partition(",")[0] for line in last] == [line.partition(",")[0] for line in after]  # nor lost
    message = fails(capsys, 2, *command, "--csv", path, "--repeat", "2")
    assert "was measured otherwise" in message
    message = fails(capsys, 2, "sweep", "efficientnet_lite0", "--cloud", serving.address, "--csv", path)
    assert "--fresh" in message


def test_a_verdict_is_kept_and_one_that_was_not_reached_is_not_made_up(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    command = ["sweep", "lenet", "--cloud", serving.address, "--images", digits()[0], "--csv", path]
    ok(capsys, *command, "--cuts", "3", "--repeat", "12")
    measured = read_rows(path)
    assert FASTEST in {row.verdict for row in measured}
    made_up = [0.3, 0.1, 0.2]

    def given(verdicts: tuple[str, str, str]) -> list[SweepRow]:
        rows = [
            replace(row, p50_rtt=s, p50_low=0.4 * s, p50_high=1.1 * s, verdict=verdict)
            for row, s, verdict in zip(measured, made_up, verdicts, strict=True)
        ]
        write_rows(path, rows)
        return rows

    # As many requests as turns have, but a verdict for none: it was interrupted before they took them.
    given(("", "", ""))
    ok(capsys, *command, "--cuts", "3", "--repeat", "12")
    after = read_rows(path)
    assert [row.p50_rtt for row in after[1:]] != made_up[1:]
    assert all(row.verdict for row in after if row.n >= AGAIN and row.p50_rtt not in made_up)
    kept = given((SLOWER, FASTEST, FASTEST))
    text = ok(capsys, *command, "--cuts", "3", "--repeat", "12")
    assert read_rows(path) == kept  # nothing is measured again
    assert "not told apart by 12 requests each: split after" in text
    assert ", 100 ms; all on the edge, 200 ms" in text
    assert "all on the server: 300 ms" in text
    ok(capsys, *command, "--cuts", "2", "--repeat", "12")
    assert [row.p50_rtt for row in read_rows(path)][1] == 0.1
    assert read_rows(path)[2].p50_rtt != 0.2  # it was of three, so it is no verdict of two


def test_sweep_writes_once_where_nothing_can_be_written_anew(
    serving: Serving, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", str(digits()[0]),
                 "--csv", "-", "--cuts", "3"]) == 0  # fmt: skip
    out, err = capfd.readouterr()
    assert [row["split_layer"] for row in csv.DictReader(out.splitlines())][::2] == ["input", "output"]
    assert out.count("split_layer") == 1
    assert "fastest" in err


def test_sweep_draws(serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    ok(capsys, "sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", digits()[0],
       "--csv", tmp_path / "s.csv", "--png", tmp_path / "s.png", "--cuts", "3")  # fmt: skip
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600


def test_a_list_of_layers_is_swept_as_it_is(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line has its row, called as the line; names of one cut share its measurement."""
    names, path = tmp_path / "layer_names.txt", tmp_path / "rows.csv"
    names.write_text("expand.conv\n\nconv1\n")
    command = ["sweep", "lenet", "--cloud", serving.address, "--images", digits()[0], "--repeat", "1", "--csv", path]
    assert "no layer, node or tensor expand.conv" in fails(capsys, 2, *command, "--cuts", names)
    names.write_text("conv1\nlayer:conv1\n\ntanh1\nnode:conv1\n")
    status = main([str(word) for word in (*command, "--cuts", names)])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "4 names are 2 cuts" in said.err
    rows = {row.split_layer: row for row in read_rows(path)}
    assert sorted(rows) == ["conv1", "layer:conv1", "node:conv1", "tanh1"]
    assert rows["conv1"].p50_rtt == rows["layer:conv1"].p50_rtt == rows["node:conv1"].p50_rtt
    before = path.read_text()
    ok(capsys, *command, "--cuts", names)
    assert path.read_text() == before
    assert "a file of layers' names" in fails(capsys, 2, *command, "--cuts", tmp_path / "none.txt")
