"""Cuts that are ready: compiled once, switched to at once, freed on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import (
    CutError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
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


def test_switching_to_a_warm_cut_asks_nobody_and_compiles_nothing(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Server([model], engine=gate, port=0) as server, Edge(server.address, at="add0", cache=cache) as edge:
        edge.warm("add1")
        compiled = len(gate.compiled)
        with monkeypatch.context() as patched:
            patched.setattr(edge._channel, "send", lambda *_: pytest.fail("it asked the server"))
            for name in ("add1", "add0") * 2:
                edge.switch(name)
                assert edge.cut.name == name
        assert len(gate.compiled) == compiled == 2
        with pytest.raises(CutError, match="add7"):
            edge.switch("add7")
        assert edge.cut.name == "add0"


def test_forgetting_frees_both_halves(model: Model, cache: Path) -> None:
    there, here = Gate(), Gate()
    with Server([model], engine=there, port=0) as server:
        with Edge(server.address, at="add0", cache=cache, engine=here) as edge:
            edge.switch("add1")
            edge.forget()
            assert until(lambda: len(there.closed) == 1)
            assert len(here.closed) == 1
            assert edge.infer(inputs()[0]).cut == "add1"
            with pytest.raises(UsageError, match="in use"):
                edge.forget("add1")
            edge.switch("add0")
            assert len(there.compiled) == 3
        assert len(there.closed) == 1
