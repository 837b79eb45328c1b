"""Scenarios that run: a server, a relay and a device in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitpoint.errors import UsageError
from splitpoint.lab import experiment, scenario

SCENARIO = """
model = "zoo:lenet5"
at = ["input", "conv2", "output"]
link = "20mbit,10ms"
requests = 20
warm_up = 1
inputs = "synthetic"
codec = "fp16"

[device]
slowdown = 2

[[events]]
at_s = 0.0
do = "cut"
seconds = 0.2
"""


def test_a_scenario_runs_survives_its_cut_and_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO)
    it = scenario.load_scenario(path)
    results = experiment.run(it, path)
    assert len(results.rows) == 60
    assert "emulated link: 20mbit,10ms" in results.note
    assert "emulated: 2x slower" in results.note
    failed = [r for r in results.rows if r.error]
    assert len(failed) == 1  # the link was cut once, and used again once it was back
    good = [r for r in results.rows if not r.error]
    assert {r.cut for r in good} == {"input", "conv2", "output"}
    for row in good:
        assert sum(row.spans_ms.values()) == pytest.approx(row.total_ms, abs=0.01)
        assert row.note == results.note
        if row.cut != "output":
            assert row.total_ms >= 9.9  # no request beats the link's round trip
    results.save(tmp_path / "out")
    lines = (tmp_path / "out" / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["cut"] for line in lines] == [r.cut for r in results.rows]
    header, *rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert header.startswith("scenario,cut,codec,requests,failed,up_nbytes,down_nbytes,median_ms")
    assert [row.split(",")[1] for row in rows] == ["input", "conv2", "output"]
    assert json.loads((tmp_path / "out" / "about.json").read_text())["note"] == results.note
    assert (tmp_path / "out" / "scenario.toml").read_text() == SCENARIO


def test_a_scenario_whose_device_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('model = "zoo:lenet5"\nlink = "lan"\ninputs = "synthetic"\nat = ["nowhere"]\n')
    with pytest.raises(UsageError, match=r"the device ended: .*nowhere"):
        experiment.run(scenario.load_scenario(path), path)
