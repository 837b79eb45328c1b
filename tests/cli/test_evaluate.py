"""splitpoint predict evaluate: it measures once, judges as often as asked, and refuses what it cannot judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from latencies import latency

from splitpoint.cli import main
from splitpoint.predict.calibrate.random_networks import random_network
from splitpoint.predict.learn.files import save_latency
from splitpoint.predict.learn.latency_model import Reference

LENET = "zoo:lenet5"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_measures_once_and_judges_as_often_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = tmp_path / "here.latency.json", tmp_path / "data"
    save_latency(path, latency(machine=None))
    words = ("predict", "evaluate", "--on", path, "--data", data, "--budget", "1s", LENET)
    status, _, err = run(capsys, *words, "--prepare")
    assert status == 0
    assert "opening zoo:lenet5" in err
    assert [p.name for p in data.iterdir()] == ["lenet5.graph"]
    status, text, err = run(capsys, *words, "-o", tmp_path / "out")
    assert status == 0, err
    assert "opening" not in err
    for said in ("lenet5", "whole networks: MAPE", "plans made from predictions", "all kernels"):
        assert said in text
    assert (tmp_path / "out" / "plans.csv").is_file()
    before = (data / "lenet5.profile.json").stat().st_mtime_ns
    status, text, _ = run(capsys, "predict", "evaluate", "--on", path, "--data", data, "--json")
    assert status == 0
    found = json.loads(text)
    assert [r["network"] for r in found["wholes"]] == ["lenet5"]
    # a file whose reference networks were not measured there
    flops = sum(node.flops for node in random_network(0, "mobile", 1e8).graph.nodes)
    one = Reference(family="mobile", seed=0, work=1e8, flops=flops, ms=5.0)
    save_latency(path, latency(machine=None, reference=(one,)))
    status, text, _ = run(capsys, "predict", "evaluate", "--on", path, "--data", data)
    assert (status, "how fast the machine was meanwhile is not known" in text) == (0, True)
    assert (data / "lenet5.profile.json").stat().st_mtime_ns == before


def test_what_evaluate_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.latency.json"
    save_latency(path, latency(engine="tvm"))
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET)
    assert (status, "engine tvm, not with engine onnxruntime" in err) == (4, True)
    save_latency(path, latency())
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET)
    assert (status, "is of Cortex-A72, and the networks run on" in err) == (4, True)
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET, "--prepare")
    assert (status, "--prepare needs --data" in err) == (2, True)
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET, LENET)
    assert (status, "two of the networks are called lenet5" in err) == (2, True)
