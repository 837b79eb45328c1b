"""splitpoint run: images in, answers and milliseconds out."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import PYTHON, Serving, fails, ok

from splitpoint.cli import main
from splitpoint.models.zoo import digits, photos
from splitpoint.tensors import load_arrays


def test_run_without_a_server_runs_everything_here(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "espresso" in ok(capsys, "run", "zoo:efficientnet_lite0", photos()[2])


def test_run_prints_labels_and_stages(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "run", "efficientnet_lite0", "--cloud", serving.address, "--at", "blocks.5", *photos())
    assert "espresso" in text
    assert "Egyptian cat" in text
    for title in ("decode", "edge", "encode", "net", "queue", "server", "total", "median"):
        assert title in text


def test_run_json_lines_add_up_and_equal_the_uncut_model(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "outputs.npz"
    text = ok(capsys, "run", "efficientnet_lite0", "--cloud", serving.address, "--at", "blocks.7", "--json",
              "--save", saved, *photos())  # fmt: skip
    rows = [json.loads(line) for line in text.splitlines()]
    assert [Path(r["input"]).name for r in rows] == [p.name for p in photos()]
    for row in rows:
        stages = dict(row["ms"])
        total = stages.pop("total")
        assert sum(stages.values()) == pytest.approx(total, abs=0.01)
        assert all(value >= 0 for value in stages.values())
    ok(capsys, "run", "zoo:efficientnet_lite0", "--save", tmp_path / "whole.npz", *photos())
    cut, whole = load_arrays(saved), load_arrays(tmp_path / "whole.npz")
    assert list(cut) == list(whole) == [f"{p.stem}/logits" for p in photos()]
    for name in cut:
        np.testing.assert_allclose(cut[name], whole[name], atol=2e-4)
    logits = list(whole.values())
    assert max(np.abs(a - logits[0]).max() for a in logits[1:]) > 1  # the answers do differ from photo to photo


def test_run_streams_a_folder_and_passes_over_what_is_broken(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos():
        shutil.copy(photo, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    status = main(["run", "efficientnet_lite0", "--cloud", serving.address, str(folder)])
    captured = capsys.readouterr()
    assert status == 4
    assert "1 of 5 inputs could not be read; the others were answered" in captured.err
    assert "broken.png" in captured.err
    answered = [line.split()[0] for line in captured.out.splitlines() if ".jpg" in line]
    assert answered == sorted(p.name for p in photos())


def test_an_answer_without_labels_is_described_and_ends_nothing(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "two.npy", np.zeros((2, 32, 32, 1), np.uint8))
    shutil.copy(digits()[0], tmp_path / "zero.png")
    text = ok(capsys, "run", "lenet", "--cloud", serving.address, tmp_path)
    assert "float32[2,10]" in text
    assert any(line.startswith("zero.png") for line in text.splitlines())


@pytest.mark.parametrize("at", ["input", "output", "3", "pool1"])
def test_run_anywhere(at: str, serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digit = digits()[0]
    text = ok(capsys, "run", "lenet", "--cloud", serving.address, "--at", at, digit)
    line = next(line for line in text.splitlines() if line.startswith(digit.name))
    assert line.split()[1] == digit.stem


def test_run_reads_standard_input(serving: Serving, cache: Path) -> None:
    command = [*PYTHON, "run", "efficientnet_lite0", "--cloud", serving.address, "-"]
    done = subprocess.run(command, input=photos()[2].read_bytes(), capture_output=True, check=True)
    assert b"espresso" in done.stdout


def test_two_models_ask_which(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 2, "run", "--cloud", serving.address, photos()[0])
    assert "lenet5" in message
    message = fails(capsys, 3, "run", "resnet50", "--cloud", serving.address, photos()[0])
    assert "efficientnet_lite0" in message


def test_outputs_are_saved_to_a_pipe(
    serving: Serving, cache: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["run", "lenet", "--cloud", serving.address, "--at", "input", "--save", "-", str(digits()[0])]) == 0
    out, err = capfdbinary.readouterr()
    assert [a.shape for a in load_arrays(out).values()] == [(1, 10)]
    assert b"cut at input" in err


def test_nothing_waits_where_nothing_crosses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a server: each photo when the one before it is answered."""
    rows = [json.loads(line) for line in ok(capsys, "run", "lenet", digits()[0].parent, "--json").splitlines()]
    assert len(rows) == len(digits())
    assert [row["ms"]["queue"] for row in rows] == [0.0] * len(rows)


def test_every_number_of_a_run_is_a_row_of_its_csv(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "run.csv"
    words = ["run", "lenet", "--cloud", serving.address, "--at", "pool1", "--codec", "int8", digits()[0].parent]
    rows = [json.loads(line) for line in ok(capsys, *words, "--json", "--csv", table).splitlines()]
    written = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["input"] for row in written] == [row["input"] for row in rows]
    for told, flat in zip(rows, written, strict=True):
        assert flat["cut"] == told["cut"] == "pool1"
        assert flat["codecs"] == " ".join(f"{tensor}=int8" for tensor in told["codecs"])
        assert int(flat["up_nbytes"]) == told["up_nbytes"]
        assert {name: float(flat[f"{name}_ms"]) for name in told["ms"]} == pytest.approx(told["ms"], abs=1e-3)
        assert flat["answer"].startswith(told["labels"][0]["label"])
