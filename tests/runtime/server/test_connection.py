"""One client's conversation with the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def test_a_connection_is_reported_when_it_comes_and_goes(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        with Edge(server.address, at="input", cache=cache) as edge:
            edge.infer(inputs()[0])
        assert until(lambda: told[-1].kind == "left")
    assert [e.kind for e in told] == ["listening", "connected", "opened", "left"]
    assert "left: 1 request, " in str(told[-1])
