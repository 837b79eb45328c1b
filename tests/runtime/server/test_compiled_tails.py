"""Compiled tails: made once for all who ask, and bounded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, until

from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.compiled_tails import Tails
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def test_a_tail_is_compiled_once_for_all_who_ask(model: Model, cache: Path) -> None:
    gate = Gate()
    gate.compile_gate.clear()
    edges: list[Edge] = []
    with Server([model], engine=gate, port=0) as server:
        threads = [
            threading.Thread(target=lambda: edges.append(Edge(server.address, at="input", cache=cache)))
            for _ in range(4)
        ]
        for t in threads:
            t.start()
        assert until(lambda: sum(p.requests.waiting for p in server._peers) == 4)
        gate.compile_gate.set()
        for t in threads:
            t.join()
        assert len(gate.compiled) == 1
        for e in edges:
            e.close()


def test_the_tail_cache_is_bounded_and_spares_what_runs(model: Model, cache: Path) -> None:
    gate = Gate(nbytes=400)
    cuts = ["input", "add0", "add1", "add2"]
    with (
        Server([model], engine=gate, port=0, tail_cache_bytes=1000) as server,
        Edge(server.address, at="input", cache=cache) as edge,
    ):
        for at in cuts:
            edge.switch(at)
            assert server.services.runner.tails.nbytes <= 1000
        assert len(gate.closed) == 2
        edge.switch("input")  # left memory: compiled again, without the device noticing more than the time
        edge.infer(inputs()[0])
        assert len(gate.compiled) == 5
        gate.open.clear()
        thread = threading.Thread(target=edge.infer, args=(inputs()[0],))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        assert gate.entered.acquire(timeout=5)
        running = model.segment(("x",), ("y3",)).key
        with Edge(server.address, at="add0", cache=cache) as second:
            for at in cuts[1:]:
                second.warm(at)
        assert running not in gate.closed[3:]
        gate.open.set()
        thread.join()
        assert until(lambda: server.services.runner.tails.nbytes <= 1000)


def test_a_cache_smaller_than_one_tail_keeps_the_one_used_last(model: Model) -> None:
    """Else it would be compiled for every request."""
    gate = Gate(nbytes=400)
    tails = Tails(gate, budget=100)
    one, other = (tails.tail(model.segment((name,), ("y3",))) for name in ("x", "y0"))
    for tail in (one, one, other, other):
        session = tails.build(tail, owner=None)
        assert tails.acquire(tail) is session
        tails.release(tail)
        tails.release(tail)
        assert tails.nbytes == 400
    assert len(gate.compiled) == 2
    assert gate.closed == gate.compiled[:1]
    assert tails.acquire(one) is None, "whoever runs it does not compile it"
    tails.close()
