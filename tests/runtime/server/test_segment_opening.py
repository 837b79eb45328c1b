"""OPEN and CLOSE on one connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Gate, affine, nothing_leaks

from splitpoint import wire
from splitpoint.errors import ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.segment_opening import SegmentOpener
from splitpoint.runtime.server.server import Server


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def test_a_cut_that_cannot_even_be_refused_ends_its_connection(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(exc: Exception) -> wire.Error:
        raise MemoryError

    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        monkeypatch.setattr(SegmentOpener, "_build", lambda *_: no_memory(MemoryError()))
        monkeypatch.setattr(wire, "error_of", no_memory)
        with pytest.raises(ServerError, match="closed the connection"):
            Edge(server.address, model, at="input", patience=Patience(answer_s=60))
    assert any("has no answer: MemoryError" in e.sentence for e in told)
