"""splitpoint tasks: what it runs, prints and refuses, on a real server."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from queues import two_models
from serving import nothing_leaks

import nets
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.models.model import Model
from splitpoint.runtime.server.server import Server


@pytest.fixture(autouse=True)
def soon_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are sent together before the start only once."""
    monkeypatch.setattr("splitpoint.tasks.batch_trial.BUDGET_S", 0.02)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    return two_models(tmp_path_factory.mktemp("nets"))


@pytest.fixture
def server(models: Mapping[str, Model]) -> Iterator[Server]:
    with nothing_leaks(), Server(list(models.values()), engine=open_engine(threads=1), port=0) as made:
        yield made


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    assert main(["tasks", *map(str, args)]) == status
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--cloud HOST" in fails(capsys, 2, "--mix", "lenet5")
    assert "a file of tasks" in fails(capsys, 2, "--cloud", "localhost")
    assert "a file of tasks" in fails(capsys, 2, "x.toml", "--mix", "lenet5", "--cloud", "localhost")
    assert "from 1 to" in fails(capsys, 2, "--mix", "lenet5", "--count", 0, "--cloud", "127.0.0.1:1")
    assert "policy" in fails(capsys, 2, "--mix", "lenet5", "--policy", "lifo", "--cloud", "127.0.0.1:1")
    wrong = tmp_path / "tasks.toml"
    wrong.write_text('[[tasks]]\nmodel = "lenet5"\n[[tasks]]\nmodel = "a"\ndeadlne = "1s"\n')
    assert "line 5: unknown field deadlne" in fails(capsys, 4, wrong, "--cloud", "127.0.0.1:1"), "without a server, too"


def test_the_command_names_all_models_that_are_not_there(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = fails(capsys, 3, "--mix", "lenet6,resnet,lenet5", "--cloud", server.address, "--cache", tmp_path)
    assert "lenet6" in text
    assert "resnet" in text
    file = tmp_path / "tasks.toml"
    entries = ('model = "lenet6"', 'model = "lenet5"\npriority = 1.5', 'model = "x"\ncount = 0')
    file.write_text("".join(f"[[tasks]]\n{entry}\n" for entry in entries))
    text = fails(capsys, 4, file, "--cloud", server.address, "--cache", tmp_path)
    assert "has 4 mistakes" in text
    for line, hint in ((2, "did you mean lenet5"), (5, "whole number"), (7, "no model x"), (8, "whole number")):
        assert any(f"line {line}:" in row and hint in row for row in text.splitlines())


def test_the_command_runs_a_file(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, rows = tmp_path / "tasks.toml", tmp_path / "rows.csv"
    file.write_text(
        '[[tasks]]\nmodel = "lenet5"\ncount = 3\ndeadline = "1min"\n[[tasks]]\nmodel = "residual"\npriority = 1\n'
    )
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--budget", "300ms", "--threads", "1"]
    assert main(["tasks", str(file), *common, "--csv", str(rows)]) == 0
    text = capsys.readouterr().out
    assert "4 tasks by joint in" in text
    assert "deadlines: 3 met, 0 missed" in text
    assert "busy: edge" in text
    written = list(csv.DictReader(rows.read_text().splitlines()))
    assert sorted(r["task"] for r in written) == ["lenet5-1", "lenet5-2", "lenet5-3", "residual-1"]
    assert all(float(r["total_ms"]) > 0 and r["answer"] for r in written)
    assert main(["tasks", str(file), *common, "--json", "--policy", "sjf"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["policy"] == "sjf"
    assert len(found["tasks"]) == 4
    assert main(["tasks", str(file), *common, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "predicted: 4 tasks by joint" in text
    assert "by policy: fifo" in text


def test_a_model_with_weights_must_be_the_servers(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, models: Mapping[str, Model]
) -> None:
    other = nets.saved(nets.residual(), tmp_path / "other.onnx")
    file = tmp_path / "tasks.toml"
    file.write_text('[[tasks]]\nmodel = "other.onnx"\n')
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--budget", "300ms", "--threads", "1"]
    assert main(["tasks", str(file), *common]) == 0, "the same model under another name: its fingerprint counts"
    capsys.readouterr()
    nets.saved(nets.flattening(), other)
    assert "line 2: the server does not have this other" in fails(capsys, 4, file, *common)
    file.write_text('[[tasks]]\nmodel = "other.onnx"\nweights = "w.pth"\n')
    assert "line 2:" in fails(capsys, 4, file, *common)
