"""Survey and compare, with a real server: what `run --at auto` and `compare` stand on."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import nothing_leaks

from splitpoint import survey as advisor
from splitpoint.engines import open_engine
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.profile.files import load_profile
from splitpoint.profile.kernel_times import typical_ms
from splitpoint.profile.spare import Enough, Spare
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.survey import survey

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


class Stepped(Spare):
    """Enough after so many steps, with a clock on which each takes a second."""

    def __init__(self, steps: int) -> None:
        self.closed, self.steps, self.at_s = threading.Event(), steps, 0.0
        super().__init__(lambda: 0, self.closed)

    def clock(self) -> float:
        return self.at_s

    def proceed(self) -> None:
        self.at_s += 1.0
        self.steps -= 1
        if self.steps < 0:
            self.closed.set()
        super().proceed()

    def pause(self, seconds: float) -> None: ...


def test_a_profile_that_ended_early_is_kept_unless_an_earlier_one_had_longer(tmp_path: Path) -> None:
    engine, model = open_engine(threads=1), load("zoo:lenet5")
    with pytest.raises(Enough):
        advisor.profile_here(model, engine, budget_s=60.0, cache=tmp_path, beside=Stepped(0))
    assert not list(tmp_path.glob("profiles/*.json"))
    long = advisor.profile_here(model, engine, budget_s=60.0, cache=tmp_path, beside=Stepped(8))
    [kept] = tmp_path.glob("profiles/*.json")
    assert load_profile(kept) == long
    assert not long.complete
    short = advisor.profile_here(model, engine, budget_s=60.0, cache=tmp_path, beside=Stepped(4))
    assert short == load_profile(kept) == long
    longer = advisor.profile_here(model, engine, budget_s=60.0, cache=tmp_path, beside=Stepped(12))
    assert load_profile(kept) == longer != long


def test_what_is_known_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, lenet, other = open_engine(threads=1), load("zoo:lenet5"), load("zoo:efficientnet_lite0")
    how: dict[str, Any] = {"budget_s": 10.0, "cache": tmp_path, "on_step": lambda text: None}
    nothing = advisor.known_here(other, engine, **how)
    assert nothing.why == "this machine by the model's FLOPs"
    assert nothing.profile.whole.median == pytest.approx(typical_ms(other.graph).sum())
    made = advisor.profile_here(lenet, engine, budget_s=0.2, cache=tmp_path)
    alike = advisor.known_here(other, engine, **how)
    assert alike.why == "this machine by the model's FLOPs, as fast as for lenet5"
    slower = made.whole.median / typical_ms(lenet.graph).sum()
    assert alike.profile.whole.median == pytest.approx(slower * nothing.profile.whole.median)
    assert not nothing.sure
    assert not alike.sure
    kept = advisor.known_here(lenet, engine, **how)
    assert kept.profile == made
    assert not kept.sure, "it had less than it may have"
    assert advisor.known_here(lenet, engine, **how | {"budget_s": 0.2}).sure
    monkeypatch.setenv("SPLITPOINT_EMULATED", "emulated: 4x slower")
    assert advisor.known_here(lenet, engine, **how).why == "this machine by the model's FLOPs"


def test_a_guess_is_a_profile_that_plans_are_made_of() -> None:
    model, engine = load("zoo:lenet5"), open_engine(threads=1)
    fast, slow = advisor.by_flops(model, engine), advisor.by_flops(model, engine, 50.0)
    planner = Planner(model.graph, (slow, fast), constraints=Constraints(codecs=("int8",)))
    assert planner.plan(Link(1000, 1000, 0.1)).best.kind == "server"
    assert Planner(model.graph, (fast, slow)).plan(SLOW).best.kind == "device"


def test_what_is_there_at_once_is_not_announced_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(advisor, "_AT_ONCE_S", 60.0)
    with advisor._announced(told.append, "the server profiles lenet5"):
        pass
    assert told == []
    monkeypatch.setattr(advisor, "_AT_ONCE_S", 0.0)
    said = threading.Event()

    def heard(text: str) -> None:
        told.append(text)
        said.set()

    with advisor._announced(heard, "the server profiles lenet5"):
        assert said.wait(60)
    assert told == ["the server profiles lenet5"]
