"""Survey and compare, with a real server: what `run --at auto` and `compare` stand on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import nothing_leaks

from splitpoint import survey as advisor
from splitpoint.engines import open_engine
from splitpoint.link import Link
from splitpoint.models import load
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
