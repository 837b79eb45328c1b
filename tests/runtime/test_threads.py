"""A thread of ours that fails goes on, or ends loudly what it was for: nobody waits for ever for one that is dead."""

from __future__ import annotations

import ast
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import Gate, affine, evaluate, nothing_leaks, until

import splitpoint
from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.admission import Admission
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.opening import Opening
from splitpoint.runtime.server.replies import Replies
from splitpoint.runtime.server.requests import InferRequest, Requests
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.runtime.threads import persist
from splitpoint.transports.tcp import TcpConnection, TcpListener
from splitpoint.wire import Kind, Limits

X = np.ones((1, 1024), np.float32)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def test_a_failing_step_is_told_once_and_tried_again_with_longer_and_longer_pauses() -> None:
    outcomes: list[Exception | bool] = [ValueError("a"), ValueError("a"), OSError("b"), True, OSError("b"), False]
    told: list[Event] = []
    pauses: list[float] = []

    def step() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    persist(step, "counting", told.append, pauses.append)
    reasons = [e.sentence.removeprefix("counting failed and goes on: ") for e in told]
    assert reasons == ["ValueError('a')", "OSError('b')", "OSError('b')"]
    assert pauses == [0.01, 0.02, 0.04, 0.01]


def test_one_who_cannot_be_told_stops_nothing() -> None:
    outcomes: list[Exception | bool] = [ValueError("a"), False]

    def step() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def deaf(event: Event) -> None:
        raise BrokenPipeError

    persist(step, "counting", deaf, lambda s: None)
    assert not outcomes


@pytest.mark.parametrize("where", [(TcpListener, "_comes"), (Admission, "_begin")], ids=["waiting", "greeting"])
def test_a_server_whose_accepting_fails_accepts_again(
    model: Model, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str]
) -> None:
    kind, name = where
    real, fails = getattr(kind, name), [ValueError("filedescriptor out of range"), MemoryError()]

    def sometimes(self: Any, *arguments: Any) -> Any:
        if fails:
            failure = fails.pop()  # before the device can notice
            if name == "_begin":  # as if it were gone: what is accepted and not served is closed
                arguments[0].connection.close()
                self.gone(arguments[0])
            raise failure
        return real(self, *arguments)

    monkeypatch.setattr(kind, name, sometimes)
    told: list[Event] = []
    with Server([model], engine=open_engine(threads=1), port=0, on_event=told.append) as server:
        while fails:
            with pytest.raises(ServerError):
                Edge(
                    server.address, model, at="input", patience=Patience(connect_s=10)
                ) if name == "_begin" else until_gone(fails)
        with Edge(server.address, model, at="input", patience=Patience(connect_s=30)) as edge:
            np.testing.assert_allclose(edge.infer(X).outputs["y3"], evaluate(model, X), rtol=1e-5)
    failures = [e.sentence for e in told if "accepting connections failed" in e.sentence]
    assert len(failures) == 2
    assert "MemoryError" in failures[0]


def until_gone(fails: list[Exception]) -> None:
    assert until(lambda: not fails)
    raise ServerError("nothing to see")


def test_a_job_that_fails_leaves_its_worker_alive() -> None:
    told: list[Event] = []
    pool = Compute(1, 10, on_event=told.append)
    done = threading.Event()

    def fail(waited_s: float) -> None:
        raise MemoryError

    try:
        assert pool.submit(WaitingJob(Client(), fail))
        assert pool.submit(WaitingJob(Client(), lambda waited_s: done.set()))
        assert done.wait(30)
    finally:
        pool.close()
    assert [e.sentence for e in told] == ["computing failed and goes on: MemoryError()"]


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


def test_a_writer_that_fails_ends_its_connection() -> None:
    near, far = socket.socketpair()
    connection = TcpConnection.__new__(TcpConnection)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    connection = TcpConnection(accepted, "peer", Limits())
    real, calls = connection._sendmsg, []

    def fails_later(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > 1:
            raise MemoryError
        return real(*arguments)

    connection._sendmsg = fails_later
    big = np.zeros(64 << 20, np.uint8)
    try:
        connection.send(wire.Packet((big.data,), big.nbytes), wait=False)
        assert until(lambda: bool(connection._broken), 30)
        with pytest.raises(ServerError, match="sending to peer failed: MemoryError"):
            connection.send(wire.Packet((b"x",), 1))
    finally:
        connection.close()
        for sock in (client, listener, near, far):
            sock.close()


def test_a_stream_whose_abandoning_fails_ends_too() -> None:
    def abandon(value: Any) -> None:
        raise RuntimeError("it cannot be given up")

    def step(value: int) -> int:
        if value == 2:
            raise ValueError("two")
        return value

    out = stream(range(1, 9), [lambda v: v, step, lambda v: v], abandon, 4)
    assert next(out) == 1
    with pytest.raises((ValueError, RuntimeError)):
        list(out)


#: Threads that end by themselves, and who hears of what goes wrong in them.
ONCE = {
    ("server.py", "p.close"): "close() waits for it",
    ("admission.py", "self._serve"): "one connection's: whatever it raises is that connection's end",
    ("channel.py", "self._read"): "the same on the device",
    ("profile_jobs.py", "self._work"): "each profile's failure is its answer",
    ("held_weights.py", "self._run"): "a failure is told: there will be no local fallback",
    ("local_tail.py", "work"): "found again by whoever needs the tail",
    ("pacing.py", "self._watch"): "a failure is raised where the next frame is taken",
    ("pipeline.py", "read"): "a failure is raised where the result is taken",
    ("pipeline.py", "work"): "the same",
    ("server.py", "self._close"): "the end of a server that `on_event` closes: nobody waits for it",
    ("first_contact.py", "work"): "the first connection: raised where that is waited for",
    ("jobs.py", "run"): "what is done beside: its failure is told",
}


def test_every_thread_of_the_runtime_persists_or_is_known_to_end() -> None:
    found = set()
    for path in (Path(splitpoint.__file__).parent / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread":
                target = next(ast.unparse(k.value) for k in node.keywords if k.arg == "target")
                if target != "persist":
                    found.add((path.name, target))
    assert found <= set(ONCE), "a loop runs `persist`; say of others who hears of their failure"
    assert set(ONCE) <= found, "these are gone"


def test_a_cut_that_cannot_even_be_refused_ends_its_connection(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(exc: Exception) -> wire.Error:
        raise MemoryError

    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        monkeypatch.setattr(Opening, "_build", lambda *_: no_memory(MemoryError()))
        monkeypatch.setattr(wire, "error_of", no_memory)
        with pytest.raises(ServerError, match="closed the connection"):
            Edge(server.address, model, at="input", patience=Patience(answer_s=60))
    assert any("has no answer: MemoryError" in e.sentence for e in told)
