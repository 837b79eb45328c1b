"""Survey and compare, with a real server: what `run --at auto` and `compare` stand on."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks

from splitpoint import survey as advisor
from splitpoint.cli import main
from splitpoint.cli.compare import verdict
from splitpoint.compare import Compared, compare
from splitpoint.engines import open_engine
from splitpoint.errors import UsageError
from splitpoint.inputs import read_inputs
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.zoo import digits
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import save_plan
from splitpoint.planning.plans import Band
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.survey import placement, rows, survey
from splitpoint.wire import Limits

SLOW = Link(1.0, 1.0, 5.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as made:
        yield made


def test_a_survey_is_kept_and_used_again(server: Server, tmp_path: Path) -> None:
    engine, told = open_engine(threads=1), list[str]()
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        first = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path, on_step=told.append)
        assert any("here" in text for text in told)
        told.clear()
        second = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path, on_step=told.append)
        assert second.edge == first.edge
        assert second.cloud == first.cloud, "the server keeps its own"
        assert not any("here" in text for text in told)
        # Nothing was downloaded for it but the graph.
        assert not any(h in edge.cache for h in edge.model.blobs)
        [kept] = (tmp_path / "profiles").glob("*.json")
        kept.write_text(kept.read_text()[:100])
        third = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path, on_step=told.append)
        assert any("here" in text for text in told), "half a file is measured anew"
        assert third.edge.fingerprint == first.edge.fingerprint


def test_a_profile_that_cannot_be_kept_ends_nothing(server: Server, tmp_path: Path) -> None:
    engine, told = open_engine(threads=1), list[str]()
    (tmp_path / "file").touch()
    with Edge(server.address, at="input", engine=engine, cache=tmp_path / "cache") as edge:
        found = survey(edge, engine, budget_s=0.3, link=SLOW, cache=tmp_path / "file", on_step=told.append)
    assert found.edge.whole.median > 0
    assert sum("is not kept for the next time" in text for text in told) == 1


def test_another_machines_profile_is_not_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = open_engine(threads=1), list[str]()
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        monkeypatch.setattr(advisor, "versions", lambda: {"onnxruntime": "0.0"})
        survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path, on_step=told.append)
    assert any("here" in text for text in told)


def test_a_hurried_profile_is_replaced_by_a_longer_one(server: Server, tmp_path: Path) -> None:
    engine, told = open_engine(threads=1), list[str]()
    model = load("zoo:lenet5")
    first = advisor.profile_here(model, engine, budget_s=0.05, cache=tmp_path)
    assert not first.complete
    again = advisor.profile_here(model, engine, budget_s=0.04, cache=tmp_path, on_step=told.append)
    assert again == first
    assert "kept" in told[-1]
    longer = advisor.profile_here(model, engine, budget_s=0.5, cache=tmp_path)
    assert longer != first


@pytest.mark.filterwarnings("ignore:.*full raised OSError")
def test_a_profile_that_is_neither_kept_nor_told_of_is_used(tmp_path: Path, reported: object) -> None:
    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    made = advisor.profile_here(
        load("zoo:lenet5"), open_engine(threads=1), budget_s=0.1, cache=tmp_path / "file", on_step=full
    )
    assert made.whole.median > 0


def test_an_emulated_machine_leaves_no_profile_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, model = open_engine(threads=1), load("zoo:lenet5")
    real = advisor.profile_here(model, engine, budget_s=0.3, cache=tmp_path)
    monkeypatch.setenv("SPLITPOINT_EMULATED", "emulated: 4x slower")
    slow = advisor.profile_here(model, engine, budget_s=0.3, cache=tmp_path)
    assert slow.note == "emulated: 4x slower"
    monkeypatch.delenv("SPLITPOINT_EMULATED")
    assert advisor.profile_here(model, engine, budget_s=0.1, cache=tmp_path) == real


def test_every_row_of_the_table_runs_as_planned(server: Server, tmp_path: Path) -> None:
    engine = open_engine(threads=1)
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        known = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        plan = known.planner(edge.model.graph, constraints=Constraints(codecs=("int8", "fp16"))).plan(SLOW)
        inputs = [read_inputs(edge.model, d) for d in digits()[:2]]
        found = compare(edge, rows(plan), inputs, repeat=3)
        assert [c.option for c in found] == list(rows(plan))
        assert found[0].option == plan.best
        for c in found:
            cut, codecs = placement(edge.model.graph, c.option)
            assert set(cut.nodes) == set(c.option.on_edge)
            assert c.requests == 3
            assert 0 < c.measured.low <= c.measured.ms <= c.measured.high
            assert (c.up_nbytes > 0) == (c.option.kind != "device")
            if codecs and c.option.sized:
                # What travelled is what was planned: frame and all, the estimate is within a few bytes.
                assert c.up_nbytes == pytest.approx(c.option.up_nbytes, abs=16)
        with pytest.raises(UsageError, match="at least one"):
            compare(edge, rows(plan), [])


def test_the_verdict_says_by_how_much(server: Server, tmp_path: Path) -> None:
    engine = open_engine(threads=1)
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        known = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        options = rows(known.planner(edge.model.graph).plan(SLOW))
    first, second, *_ = (Compared(o, Band(0, 0, 0), {}, 5, 0) for o in options)

    def took(c: Compared, ms: float) -> Compared:
        return msgspec.structs.replace(c, measured=Band(ms, ms * 0.9, ms * 1.1))

    assert "the plan was right" in verdict([took(first, 10), took(second, 20)])
    assert "50%" in verdict([took(first, 10), took(second, 20)])
    assert "more than requests vary by" in verdict([took(first, 20), took(second, 10)])
    assert "within what requests vary by" in verdict([took(first, 10.5), took(second, 10)])
    assert "not refuted" in verdict([took(first, 10), took(second, 10.5)])


def test_run_plans_by_itself(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(d) for d in digits()[:2]]
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--threads", "1", "--budget", "500ms"]
    assert main(["run", *images, *common, "--json"]) == 0
    said = capsys.readouterr()
    assert "link" in said.err
    assert "ms" in said.err
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
    assert json.loads(capsys.readouterr().out)["cut"] == split.cut
    assert main([*common, "--plan", str(file), "--at", "input"]) == 2
    save_plan(file, msgspec.structs.replace(plan, fingerprint="0" * 64))
    assert main([*common, "--plan", str(file)]) == 2
    assert "the plan is of lenet5 000000000000" in capsys.readouterr().err


def test_compare_prints_predicted_beside_measured(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared.json"
    words = ["compare", "lenet", "--cloud", server.address, "--cache", str(tmp_path), "--threads", "1"]
    assert main([*words, "--budget", "500ms", "--repeat", "2", "--images", str(digits()[0]), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "predicted" in said.out
    assert "measured" in said.out
    kept = json.loads(out.read_text())
    assert len(kept["compared"]) == len({json.dumps(c["option"]) for c in kept["compared"]}) >= 3
    assert kept["plan"]["model"] == "lenet5"
    assert main([*words, "--images", str(tmp_path / "none.png")]) == 4


def test_run_cuts_in_the_middle_where_the_server_does_not_profile_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lenet = load("zoo:lenet5")
    with Server([lenet], engine=open_engine(threads=1), port=0, limits=Limits(profile_s=0)) as refusing:
        words = ["run", str(digits()[0]), "--cloud", refusing.address, "--cache", str(tmp_path), "--threads", "1"]
        assert main([*words, "--budget", "300ms", "--json"]) == 0
    said = capsys.readouterr()
    assert "no plan: " in said.err
    assert json.loads(said.out)["cut"] == lenet.graph.middle().name
