"""INFER on one connection: what is refused, and what becomes of answers that cannot be given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint import wire
from splitpoint.errors import ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.batch_runner import _feed
from splitpoint.runtime.server.replies import Replies
from splitpoint.runtime.server.requests import InferRequest, Requests
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind


def test_who_does_not_read_its_answers_is_in_no_batch() -> None:
    """Run by itself it is told so; in a batch one answer more would wait to be read."""
    connection: Any = SimpleNamespace(behind=True)
    none: Any = None
    requests = Requests(none, none, connection, none, {}, batch=False)
    frame = wire.Frame(int(Kind.INFER), 0, 7, None, tensors=[np.zeros((1, 3), np.float32)])
    checked = SimpleNamespace(kind=None, header=wire.Infer(1, ()))
    opened: Any = SimpleNamespace(checked=checked, feed=lambda checked, tensors: {"x": tensors[0]})
    request = InferRequest(requests, frame, opened)
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
        InferRequest(requests, frame, opened).answer({}, RunMarks(0.0, 0.0, 0.0, 0.0, 0.0))
    assert sent == [
        "request 7 of p0 failed: MemoryError()",
        "abort",
        "request 7 of p0 has no answer: MemoryError()",
        "free 5, internal",
        "sent p1",
        "free 5",
    ]
