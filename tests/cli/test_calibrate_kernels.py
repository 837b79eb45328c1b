"""splitpoint calibrate-kernels: it measures, learns, goes on, and sees how fast the machine is by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_kernels import VirtualEngine, collected

from splitpoint.cli import calibrate_kernels, main
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.predict.calibrate.collection import load_collection
from splitpoint.predict.kernels.kernel_table import Table, read_tables
from splitpoint.predict.learn import training


def run(*args: object) -> int:
    return main(["calibrate-kernels", "--threads", "1", *map(str, args)])


def test_the_command_measures_learns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from splitpoint.predict.learn import training as learn
    from splitpoint.predict.learn.files import load_latency

    monkeypatch.setattr(learn, "FULL", learn.QUICK)
    output = tmp_path / "device.latency.json"
    assert run("--budget", "1s", "-o", output, "--name", "a box") == 0
    said = capsys.readouterr()
    assert "a box" in said.out
    assert "conv" in said.out
    assert f"next: splitpoint predict MODEL --on {output}" in said.out
    latency = load_latency(output)
    found = load_collection(tmp_path / "device.strips.json")
    assert (latency.engine, latency.device, latency.threads) == ("onnxruntime", "cpu", 1)
    assert latency.rows == found.rows > 10
    assert run("--budget", "1s", "-o", output) == 2
    assert "a larger --budget measures on" in capsys.readouterr().err
    assert run("--budget", "1s", "-o", output, "--threads", "2") == InputError.exit_code
    assert "another number of threads: 1, not 2" in capsys.readouterr().err
    output.unlink()  # as if training had been interrupted
    assert run("--budget", "1s", "-o", output) == 0
    assert "going on with" in capsys.readouterr().err


def test_without_scikit_learn_it_only_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = tmp_path / "device.latency.json"
    assert run("--budget", "1s", "-o", output) == MissingExtraError.exit_code
    assert "install 'scikit-learn>=1.5' 'threadpoolctl>=3.5'" in capsys.readouterr().err
    assert run("--budget", "1s", "-o", output, "--csv", tmp_path / "csv") == 0
    assert "splitpoint predict train" in capsys.readouterr().err
    assert not output.exists()
    tables, said = read_tables(tmp_path / "csv")
    assert said == []
    assert "conv" in tables


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = collected(VirtualEngine(), 3.0)

    def interrupted(*args: object, **options: object) -> Any:
        yield begun
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_kernels, "collect", interrupted)
    assert run("-o", tmp_path / "device.latency.json") == 130
    assert " kept in " in (said := capsys.readouterr().err)
    assert "the same command goes on" in said
    assert load_collection(tmp_path / "device.strips.json") == begun


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--budget", "soon"], "budget"),
        (["-o", "/nowhere/device.latency.json"], "no folder"),
        (["--seed", "-1"], "--seed"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_sentence(
    args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [] if "-o" in args else ["-o", str(tmp_path / "d.latency.json")]
    assert run(*before, *args) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_moment_that_was_busy_does_not_end_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([1.0, 1e-4])
    monkeypatch.setattr(training, "leaf_s", lambda: next(times))
    expected = calibrate_kernels._learning(30.0)
    assert "expect" in capsys.readouterr().err
    table = Table("conv", {}, np.ones(100))
    assert expected({"conv": table}) == training.learning_s({"conv": table}, 1e-4) < 3.0


def test_of_a_kind_in_one_network_no_accuracy_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    collection = collected(VirtualEngine(), 0.5)
    assert len(collection.strips) == 1
    calibrate_kernels._print(collection.learned(name="x"), collection)
    shown = capsys.readouterr().out
    assert "%" not in shown.split("kernels of 1 network")[0].split("in the range")[1]
    assert "how nearly, one does not tell" in shown
