"""INFER on one connection: what is refused, and what becomes of answers that cannot be given."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint import wire
from splitpoint.errors import (
    BusyError,
    EngineError,
    ServerError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.result import Result
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.batch_runner import _feed
from splitpoint.runtime.server.replies import Replies
from splitpoint.runtime.server.requests import InferRequest, Requests
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.wire import Kind, Limits


def test_who_does_not_read_its_answers_is_in_no_batch() -> None:
    """Run by itself it is told so; in a batch one answer more would wait to be read."""
    connection: Any = SimpleNamespace(behind=True)
    none: Any = None
    requests = Requests(none, none, connection, none, {}, batch=False)
    frame = wire.Frame(int(Kind.INFER), 0, 7, None, tensors=[np.zeros((1, 3), np.float32)])
    checked = SimpleNamespace(kind=None, header=wire.Infer(1, ()))
    opened: Any = SimpleNamespace(checked=checked, feed=lambda checked, tensors: {"x": tensors[0]})
    request = InferRequest(requests.account, None, 0.0, True, requests, frame, opened, opened.checked)
    assert _feed(request, 0.0) is None
    connection.behind = False
    assert _feed(request, 0.0) is not None


X = np.ones((1, 1024), np.float32)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def test_a_request_that_cannot_even_be_refused_ends_its_connection_and_no_other(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = wire.error_of
    gate = Gate(fails=RuntimeError("no kernel"))
    told: list[Event] = []

    def no_memory(exc: Exception) -> wire.Error:
        if "engine failed" in str(exc):
            raise MemoryError
        return real(exc)  # type: ignore[arg-type]

    with (
        Server([model], engine=gate, port=0, on_event=told.append) as server,
        Edge(server.address, model, at="input", patience=Patience(answer_s=60)) as one,
        Edge(server.address, model, at="input") as two,
    ):
        monkeypatch.setattr(wire, "error_of", no_memory)
        with pytest.raises(ServerError, match="closed the connection"):
            one.infer(X)
        gate.fails = None
        assert two.infer(X).outputs["y3"].shape == (1, 1024)
        assert until(lambda: not any(p.account.unanswered for p in server._peers))
    assert any("has no answer: MemoryError" in e.sentence for e in told)


def test_a_batch_of_which_one_cannot_be_answered_answers_the_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `together` does with each answer, without the luck of who meets whom."""
    sent: list[str] = []

    class Link:
        def __init__(self, peer: str) -> None:
            self.peer = peer

        def abort(self) -> None:
            sent.append("abort")

        def send(self, packet: wire.Packet, *, wait: bool) -> None:
            sent.append(f"sent {self.peer}")

    def no_memory(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(wire, "error_of", no_memory)
    for k in range(2):
        free = SimpleNamespace(
            name=f"p{k}",
            answered=lambda nbytes, *_: sent.append(f"free {nbytes}"),
            over=lambda nbytes, outcome: sent.append(f"free {nbytes}, {outcome}"),
        )
        link: Any = Link(f"p{k}")
        services: Any = SimpleNamespace(runner=SimpleNamespace(utilisation=0.5))
        replies = Replies(link, lambda event: sent.append(event.sentence))
        requests = Requests(services, free, link, replies, {}, batch=False)
        requests.in_flight.add(7)
        packer = SimpleNamespace(pack=no_memory if k == 0 else lambda *_: wire.Packet((), 0))
        opened: Any = SimpleNamespace(
            checked=SimpleNamespace(kind=None, header=wire.Infer(1, ())), outputs=[], packer=packer
        )
        frame = wire.Frame(int(Kind.INFER), 0, 7, None, 0.0, 0)
        frame.held = 5
        InferRequest(requests.account, None, 0.0, True, requests, frame, opened, opened.checked).answer(
            {}, RunMarks(0.0, 0.0, 0.0, 0.0, 0.0)
        )
    assert sent == [
        "request 7 of p0 failed: MemoryError()",
        "abort",
        "request 7 of p0 has no answer: MemoryError()",
        "free 5, internal",
        "sent p1",
        "free 5",
    ]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def test_queueing_is_told_from_computing(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    results: dict[int, Result] = {}
    with Server([model], engine=gate, port=0) as server:
        edges = [Edge(server.address, at="input", cache=cache) for _ in range(2)]
        x = inputs()[0]
        threads = [
            threading.Thread(target=lambda k=k, e=e: results.update({k: e.infer(x)})) for k, e in enumerate(edges)
        ]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)  # one runs, and holds the only worker's place
        threads[1].start()
        assert until(lambda: server.runner.compute.waiting == 1)
        time.sleep(0.05)  # the time that the second is to be seen waiting
        gate.open.set()
        for t in threads:
            t.join()
        for e in edges:
            e.close()
    first, second = results[0], results[1]
    assert first.trace.ms("tail") > max(50, first.trace.ms("queue"))
    assert second.trace.ms("queue") > max(50, second.trace.ms("tail"))
    assert second.times.load_queue_s > 0


def test_an_engine_that_fails_fails_one_request(model: Model, cache: Path) -> None:
    told: list[Event] = []
    gate = Gate(fails=ValueError("secret path /etc"))
    with (
        Server([model], engine=gate, port=0, on_event=told.append) as server,
        Edge(server.address, at="input", cache=cache) as edge,
    ):
        with pytest.raises(EngineError, match="the engine failed") as caught:
            edge.infer(inputs()[0])
        assert "secret" not in str(caught.value)
        assert any("secret" in str(e) for e in told if e.kind == "failed")
        gate.fails = EngineError("out of memory")
        with pytest.raises(EngineError, match="out of memory"):
            edge.infer(inputs()[0])
        gate.fails = None
        edge.infer(inputs()[0])


def test_a_full_queue_says_busy_and_when_to_come_back(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    outcomes: list[object] = []

    def ask(edge: Edge) -> None:
        try:
            outcomes.append(edge.infer(inputs()[0]))
        except BusyError as exc:
            outcomes.append(exc)

    with Server([model], engine=gate, port=0, limits=Limits(queue=2)) as server:
        edges = [Edge(server.address, at="input", cache=cache) for _ in range(5)]
        threads = [threading.Thread(target=ask, args=(e,)) for e in edges]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)
        for t in threads[1:]:
            t.start()
        assert until(lambda: len(outcomes) == 2)  # one runs, two wait, two are turned away
        assert all(isinstance(o, BusyError) and o.retry_after_s > 0 for o in outcomes)
        gate.open.set()
        for t in threads:
            t.join()
        assert sum(isinstance(o, Result) for o in outcomes) == 3
        edges[-1].infer(inputs()[0])
        for e in edges:
            e.close()


def test_a_deadline_that_has_passed_is_not_computed(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    with Server([model], engine=gate, port=0) as server:
        one, two = (Edge(server.address, at="input", cache=cache) for _ in range(2))
        thread = threading.Thread(target=one.infer, args=(inputs()[0],))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        late: list[Exception] = []

        def ask() -> None:
            try:
                two.infer(inputs()[0], deadline_s=0.01)
            except ServerError as exc:
                late.append(exc)

        second = threading.Thread(target=ask)
        second.start()
        assert until(lambda: server.runner.compute.waiting == 1)
        time.sleep(0.02)  # the deadline passes
        gate.open.set()
        second.join()
        thread.join()
        assert "deadline" in str(late[0])
        assert not gate.entered.acquire(blocking=False)
        one.close()
        two.close()
