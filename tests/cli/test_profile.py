"""splitpoint profile, as typed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from profile_cases import example
from serving import nothing_leaks

from splitpoint.cli import main
from splitpoint.cli.verbs import group
from splitpoint.engines import open_engine
from splitpoint.engines.onnxruntime import OnnxRuntimeEngine
from splitpoint.models import load as open_model
from splitpoint.models.model import Model
from splitpoint.profile import measure
from splitpoint.profile.files import load_profile, parse_profile
from splitpoint.profile.profiles import Watts
from splitpoint.runtime.server.server import Server


@pytest.fixture(scope="module")
def lenet() -> Model:
    return open_model("zoo:lenet5")


@pytest.fixture
def clean() -> Iterator[None]:
    with nothing_leaks():
        yield


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(a) for a in args], catch_exceptions=False)


def test_the_command_measures_and_writes_everything(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    openpyxl = pytest.importorskip("openpyxl")
    paths = [tmp_path / name for name in ("edge.profile.json", "p.png", "p.csv", "p.xlsx")]
    result = run("profile", "zoo:lenet5", "--threads", 1, "--budget", "2s", "--edge-watts", "5,2,1", "--note", "a test",
                 "-o", paths[0], "--png", paths[1], "--csv", paths[2], "--xlsx", paths[3])  # fmt: skip
    assert result.exit_code == 0
    assert "whole model" in result.output
    assert "conv1" in result.output
    assert "5.0 W computing, 2.0 W sending, 1.0 W idle" in result.output
    assert f"next: splitpoint plan MODEL --edge {paths[0]}" in result.output
    profile = load_profile(paths[0])
    assert (profile.threads, profile.note, profile.device) == (1, "a test", "cpu")
    assert profile.watts == Watts(5, 2, 1, "given by --edge-watts")
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [r["layer"] for r in rows][-1] == "fc3"
    assert len(rows) == 17
    assert openpyxl.load_workbook(paths[3]).active.max_row == 18


def test_it_says_by_what_layers_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ("profile", "zoo:lenet5", "--threads", 1, "--budget", "1s")
    assert ", by the engine's own kernel times\n" in run(*ask).output
    monkeypatch.setattr(OnnxRuntimeEngine, "kernel_times", lambda *_: [])
    assert ", by FLOPs and bytes: the engine's own kernel times are not known\n" in run(*ask).output


def test_what_the_budget_did_not_reach_is_said_to_be_modelled_and_how_far_off(
    lenet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = example(lenet)
    monkeypatch.setattr(measure, "profile_model", lambda *args, **more: profile)
    result = run("profile", "zoo:lenet5", "--csv", tmp_path / "p.csv")
    chain = [k for k, cut in enumerate(lenet.graph.prefixes()) if cut.index is not None and k not in (0, 4, 16)]
    halves = [half for k in chain for half in (profile.head(k), profile.tail(k))]
    shares = sorted((half.p90 - half.median) / half.median for half in halves)
    said = f"the others are modelled, four of five within ± {shares[len(shares) // 2]:.0%} in the middle (a larger"
    assert said in result.output
    with (tmp_path / "p.csv").open() as file:
        assert [r["measured"] for r in csv.DictReader(file)].count("True") == 3


def test_json_is_the_profile(tmp_path: Path) -> None:
    result = run("profile", "zoo:lenet5", "--threads", 1, "--budget", "1s", "--json")
    assert parse_profile(result.stdout.encode(), "stdout").graph.name == "lenet5"


@pytest.mark.usefixtures("clean")
def test_the_command_asks_a_server(lenet: Model, tmp_path: Path) -> None:
    path = tmp_path / "cloud.profile.json"
    with Server([lenet], engine=open_engine(threads=1), port=0) as server:
        result = run("profile", "--cloud", server.address, "--budget", "1s", "-o", path, "--cache", tmp_path)
    assert result.exit_code == 0
    assert load_profile(path).fingerprint == lenet.fingerprint


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "say which MODEL to measure"),
        (("zoo:lenet5", "--budget", "0"), "--budget is a time like 60s"),
        (("zoo:lenet5", "--budget", "soon"), "--budget is a time like 60s"),
        (("zoo:lenet5", "--edge-watts", "5,2"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "--edge-watts", "5,2,-1"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "--edge-watts", "5,nan,1"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "-o", "/no/such/folder/p.json"), "there is no folder"),
        (("zoo:lenet5", "--cloud", "127.0.0.1:1", "--note", "x"), "describe this machine"),
    ],
)
def test_wrong_uses_are_one_sentence(args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *args]) in (2, 7)
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
