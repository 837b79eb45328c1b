"""splitpoint run: where it cuts, by itself, by a plan, or in the middle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks
from tabled import AT, TENSOR, lenet, rated

from splitpoint.calibration.files import save_calibration
from splitpoint.cli import main
from splitpoint.cli.run_stream import Stream
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.zoo import digits
from splitpoint.planning.files import save_plan
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.server import Server
from splitpoint.survey import survey
from splitpoint.wire import Limits

SLOW = Link(1.0, 1.0, 5.0)


def refuses(*asked: object, **how: object) -> None:
    raise BusyError("measures others", 60.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as made:
        yield made


def test_run_begins_with_a_guess_and_says_so(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [str(d) for d in digits()[:2]]
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--threads", "1", "--budget", "500ms"]
    monkeypatch.setattr(Profiling, "ask", refuses)
    assert main(["run", *images, *common, "--json"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["cut"], row["plan"]) for row in rows] == [("input", "guess")] * 2
    assert "a guess to begin with: all on the server, raw input (this machine by the model's FLOPs; the" in said.err
    assert "2 of 2 cut by a guess (--profile-first plans before the first)" in said.err
    assert "best partition point" not in said.err  # the plan is not known yet
    monkeypatch.undo()
    assert main(["run", *images, *common, "--json", "--profile-first", "--fallback", "wait"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["plan"] for line in said.out.splitlines()] == ["profiled"] * 2
    assert "link " in said.err
    assert "guess" not in said.err
    for words in ("bandwidth: ", "best latency: ", "best partition point: "):  # as the second seed printed them
        assert words in said.err
    assert main(["run", images[0], *common, "--budget", "0", "--profile-first"]) == 2
    assert "with a budget of 0 nothing is profiled" in capsys.readouterr().err
    assert main(["run", images[0], *common, "--at", "pool1", "--profile-first"]) == 2
    assert "--objective and --profile-first are for --at auto" in capsys.readouterr().err
    assert main(["run", *images, *common, "--codec", "image=int8"]) == 2
    assert "the planner chooses what crosses" in capsys.readouterr().err


def test_run_follows_a_plan(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, file = str(digits()[0]), tmp_path / "plan.json"
    engine = open_engine(threads=1)
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        known = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        plan = known.planner(edge.model.graph).plan(SLOW)
    split = next(o for o in plan.options if o.kind == "split")
    save_plan(file, msgspec.structs.replace(plan, best=split))
    common = ["run", image, "--cloud", server.address, "--cache", str(tmp_path), "--threads", "1", "--json"]
    assert main([*common, "--plan", str(file)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["cut"] == split.cut
    for words in ("bandwidth: ", "best latency: ", f"best partition point: {split.cut}"):
        assert words in said.err
    assert main([*common, "--plan", str(file), "--at", "input"]) == 2
    save_plan(file, msgspec.structs.replace(plan, fingerprint="0" * 64))
    assert main([*common, "--plan", str(file)]) == 2
    assert "the plan is of lenet5 000000000000" in capsys.readouterr().err


def test_run_cuts_in_the_middle_where_the_server_does_not_profile_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lenet = load("zoo:lenet5")
    with Server([lenet], engine=open_engine(threads=1), port=0, limits=Limits(profile_s=0)) as refusing:
        words = ["run", str(digits()[0]), "--cloud", refusing.address, "--cache", str(tmp_path), "--threads", "1"]
        assert main([*words, "--profile-first", "--budget", "300ms", "--json"]) == 0
        said = capsys.readouterr()
        assert "no plan: " in said.err
        assert json.loads(said.out)["cut"] == lenet.graph.middle().name
        assert main([*words, "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["plan"] == "guess"
        assert "the server by the model's FLOPs, as it does not profile itself (this server does not" in said.err


def test_a_folder_is_planned_for_latency_unless_many_a_second_are_asked_for(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for digit in digits()[:3]:
        shutil.copy(digit, folder)
    windows: list[int] = []
    real = Stream.all_at_once
    monkeypatch.setattr(Stream, "all_at_once", lambda self, window: (windows.append(window), real(self, window))[1])
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--threads", "1", "--budget", "500ms", "--json"]

    def said(*words: str) -> str:
        assert main(["run", *words, *common]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) >= 3  # every photo is answered
        return err

    assert "planned for latency: one input after the other (--objective throughput: " in said(str(folder))
    assert "planned for latency, as --objective says" in said(str(folder), "--objective", "latency")
    assert windows == [1, 1]
    assert "planned for throughput, as --objective says" in said(str(folder), "--objective", "throughput")
    err = said("--source", str(folder), "--profile-first")
    assert "planned for what keeps up with the frames (--objective says otherwise)" in err
    assert "heavy load: frames come as fast as they are answered" in err
    assert windows[2] > 1
    assert windows[3] > 1
    for words in ("--at", "pool1"), ("--plan", "plan.json"):
        assert main(["run", str(folder), *common, *words, "--objective", "latency"]) == 2
        assert "--objective and --profile-first are for --at auto" in capsys.readouterr().err


@pytest.fixture
def tabled() -> Iterator[Server]:
    known = rated(int8=1.0, klt_20=0.9, klt_40=0.97, klt_60=0.995)
    with Server([lenet()], engine=open_engine(threads=1), port=0, calibrations=(known,)) as made:
        yield made


def test_run_takes_what_keeps_the_answers_and_says_what_they_are_worth(
    tabled: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.json"
    save_calibration(known, rated(int8=1.0, klt_20=0.9, klt_40=0.97, klt_60=0.995))
    images = [str(d) for d in digits()[:3]]
    run = ["run", "zoo:lenet5", *images, "--cloud", tabled.address, "--cache", str(tmp_path), "--threads", "1"]
    at = [*run, "--at", AT, "--calibration", str(known)]
    for asked, codec, kept in (
        (["--agreement", "95%"], "klt:40", 0.97),
        (["--agreement", "97%"], "klt:60", 0.995),  # of 1,000 answers 970 stayed, which does not show 97 %
        (["--max-drop", "5%"], "klt:40", 0.97),
        (["--codec", "klt:60", "--agreement", "95%"], "klt:60", 0.995),
    ):
        assert main([*at, *asked, "--json"]) == 0
        said = capsys.readouterr()
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert [row["codecs"] for row in rows] == [{TENSOR: codec}] * 3
        assert {row["kept"]["agreement"] for row in rows} == {kept}
        assert all(row["kept"]["least"] < kept and row["kept"]["inputs"] == 1000 for row in rows)
        assert f"3 answers as {codec} at {AT}, " in said.err
        assert f" up: {kept:.1%} of 1000 answers stayed in the calibration with {codec}, at least 9" in said.err
    assert main([*at, "--codec", "klt:20", "--agreement", "95%"]) == 2
    assert f"at {AT} klt:20 does not keep to what is asked for: 900/1000 labels stay" in capsys.readouterr().err
    assert main([*run, "--at", AT, "--agreement", "95%"]) == 2
    assert "needs a calibration: splitpoint calibrate-codecs" in capsys.readouterr().err
    assert main(["run", "zoo:lenet5", *images, "--agreement", "95%"]) == 2
    assert "are for a server" in capsys.readouterr().err


def test_run_keeps_to_a_budget_of_bytes(
    tabled: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    known = tmp_path / "known.json"
    save_calibration(known, rated(klt_20=0.9, klt_40=0.97, klt_60=0.995))
    images = [str(d) for d in digits()[:3]]
    run = ["run", "zoo:lenet5", *images, "--cloud", tabled.address, "--cache", str(tmp_path), "--threads", "1"]
    at = [*run, "--at", AT, "--calibration", str(known), "--max-bytes", "200"]
    assert main([*at, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["up_nbytes"] <= 200 for row in rows)
    levels = [int(row["codecs"][TENSOR].partition(":")[2]) for row in rows]
    assert all(level <= 60 for level in levels)
    assert min(levels) < 60, "the level by the calibration would take more"
    for row, level in zip(rows, levels, strict=True):
        coarser = [known for known in (20, 40, 60) if known <= level]
        assert row.get("kept", {}).get("measured") == (f"klt:{coarser[-1]}" if coarser else None)
    assert main([*at, "--agreement", "98%", "--fallback", "error"]) == 4
    assert "the request has" in capsys.readouterr().err
    assert main([*at, "--agreement", "98%"]) == 0, "it is finished here instead"
    assert "3 of 3 finished here (the request has" in capsys.readouterr().out
