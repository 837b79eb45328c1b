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
from serving import Gate, affine, until
from tabled import TENSOR, calibration, lenet, tables_for

from splitpoint import wire
from splitpoint.codecs import open_codec
from splitpoint.codecs.klt import Klt
from splitpoint.codecs.klt_tables import sent_with
from splitpoint.errors import (
    BusyError,
    EngineError,
    InputError,
    ServerError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.result import Result
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.requests import InferRequest, OpenedTail, Requests
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.services import Replies
from splitpoint.runtime.server.tail_pool import _feed
from splitpoint.tensors import Array, TensorSpec
from splitpoint.wire import Kind, Limits


def test_who_does_not_read_its_answers_is_in_no_batch() -> None:
    """Run by itself it is told so; in a batch one answer more would wait to be read."""
    connection: Any = SimpleNamespace(behind=True)
    none: Any = None
    replies: Any = SimpleNamespace(connection=connection)
    requests = Requests(none, none, replies, batch=False)
    frame = wire.Frame(int(Kind.INFER), 0, 7, None, tensors=[np.zeros((1, 3), np.float32)])
    checked = SimpleNamespace(kind=None, header=wire.Infer(1, ()))
    opened: Any = SimpleNamespace(checked=checked, feed=lambda checked, tensors, decoded: {"x": tensors[0]})
    request = InferRequest(requests.account, None, 0.0, True, requests, frame, opened, opened.checked)
    assert _feed(request, 0.0) is None
    connection.behind = False
    assert _feed(request, 0.0) is not None


X = np.ones((1, 1024), np.float32)


pytestmark = pytest.mark.usefixtures("no_leaks")


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
        requests = Requests(services, free, replies, batch=False)
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
        assert until(lambda: server.services.runner.compute.waiting == 1)
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
        assert until(lambda: server.services.runner.compute.waiting == 1)
        time.sleep(0.02)  # the deadline passes
        gate.open.set()
        second.join()
        thread.join()
        assert "deadline" in str(late[0])
        assert not gate.entered.acquire(blocking=False)
        one.close()
        two.close()


@pytest.fixture
def opened(tmp_path: Path) -> OpenedTail:
    tail: Any = SimpleNamespace(
        segment=affine(tmp_path).whole(), kind_of=lambda dtypes, shapes, *, vectors: (dtypes, shapes, vectors)
    )
    return OpenedTail(tail, (), Limits(), batch=False)


def infer(*tensors: wire.Tensor, vectors: tuple[tuple[int, ...], ...] = ()) -> wire.Infer:
    return wire.Infer(1, tensors, vectors)


RAW = wire.Tensor("float32", (2, 1024), 8192)


def test_what_fits_is_remembered_with_what_its_runner_says(opened: OpenedTail) -> None:
    header = infer(RAW)
    assert opened.check(header) == 0
    assert opened.checked.header is header
    assert opened.checked.kind == (["float32"], [(2, 1024)], False)
    x = np.ones((2, 1024), np.float32)
    assert opened.feed(opened.checked, [x]) == {"x": x}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (infer(), "needs 1 tensors and 0 shape vectors, but 0 and 0 came"),
        (infer(RAW, vectors=((1,),)), "but 1 and 1 came"),
        (infer(wire.Tensor("float32", (1, 1023), 4092)), r"must be .*1024\], but float32\[1,1023\] came"),
        (infer(wire.Tensor("int8", (1, 1024), 1024)), "but int8"),
        (infer(wire.Tensor("float32", (1, 1024), 10, "zip-bomb")), "the codec zip-bomb, which is not known here"),
        (infer(wire.Tensor("float32", (1, 1024), 1 << 20, "fp16")), "takes at most 2048"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_received(opened: OpenedTail, header: wire.Infer, words: str) -> None:
    opened.check(infer(RAW))
    before = opened.checked
    with pytest.raises(InputError, match=words):
        opened.check(header)
    assert opened.checked is before


def test_encoded_tensors_are_decoded_with_the_header_they_came_with(opened: OpenedTail) -> None:
    spec = TensorSpec("x", "float32", (1, 1024))
    x = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(1, 1024)
    data = open_codec("fp16").encode(x)
    assert opened.check(infer(wire.Tensor("float32", (1, 1024), data.nbytes, "fp16"))) == spec.nbytes
    checked = opened.checked
    opened.check(infer(RAW))  # another one is received meanwhile
    np.testing.assert_allclose(opened.feed(checked, [data])["x"], x, atol=1e-3)


def test_a_codec_that_decodes_to_something_else_is_our_failure(
    opened: OpenedTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.check(infer(wire.Tensor("float32", (1, 1024), 2048, "fp16")))
    ((codec, _),) = [decoder for decoder in opened.checked.decoders if decoder is not None]
    monkeypatch.setattr(type(codec), "decode", lambda self, data, spec: np.zeros(3, np.float32))
    with pytest.raises(EngineError, match="decoded tensor x to something else"):
        opened.feed(opened.checked, [np.zeros(2048, np.uint8)])


def test_a_shape_vector_is_bounded_by_what_it_could_allocate() -> None:
    sizes = TensorSpec("sizes", "int64", (2,))
    count = TensorSpec("count", "int64", ())
    segment = SimpleNamespace(inputs=(sizes, count), outputs=(TensorSpec("y", "float32", (1,)),))
    tail: Any = SimpleNamespace(segment=segment, kind_of=lambda dtypes, shapes, *, vectors: (shapes, vectors))
    opened = OpenedTail(tail, ("sizes", "count"), Limits(tensor_bytes=1 << 20), batch=False)
    opened.check(infer(vectors=((3, -1), (5,))))
    assert opened.checked.kind == ([(2,), ()], True)
    fed = opened.feed(opened.checked, [])
    np.testing.assert_array_equal(fed["sizes"], [3, -1])
    assert fed["count"].shape == ()
    with pytest.raises(InputError, match="must have 2 numbers, but 3 came"):
        opened.check(infer(vectors=((1, 2, 3), (5,))))
    with pytest.raises(InputError, match="asks for a tensor over the limit"):
        opened.check(infer(vectors=((1 << 20, 1 << 20), (5,))))


def test_a_cut_that_cannot_even_be_refused_ends_its_connection(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(exc: Exception) -> wire.Error:
        raise MemoryError

    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        monkeypatch.setattr(Requests, "_build", lambda *_: no_memory(MemoryError()))
        monkeypatch.setattr(wire, "error_of", no_memory)
        with pytest.raises(ServerError, match="closed the connection"):
            Edge(server.address, model, at="input", patience=Patience(answer_s=60))
    assert any("has no answer: MemoryError" in e.sentence for e in told)


# --- tables of codecs ------------------------------------------------------------------------------------------------


def tabled_requests(opened: OpenedTail, bodies: list[Array]) -> list[InferRequest]:
    none: Any = None
    replies: Any = SimpleNamespace(connection=SimpleNamespace(behind=False))
    made = []
    for id, body in enumerate(bodies, 1):
        opened.check(infer(wire.Tensor("float32", (1, 6, 14, 14), body.nbytes, sent_with(tables_for(calibration())))))
        frame = wire.Frame(int(Kind.INFER), 0, id, None, tensors=[body])
        requests = Requests(none, none, replies, batch=False)
        made.append(InferRequest(requests.account, None, 0.0, False, requests, frame, opened, opened.checked))
    return made


@pytest.fixture
def tabled() -> OpenedTail:
    cut = lenet().graph.cut(TENSOR)
    tail: Any = SimpleNamespace(segment=lenet().tail(cut), kind_of=lambda dtypes, shapes, *, vectors: None)
    return OpenedTail(tail, (), Limits(), {TENSOR: tables_for(calibration())}, batch=False)


def test_requests_of_a_batch_that_came_with_the_same_tables_decode_together(
    tabled: OpenedTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    many = Klt.decode_many
    monkeypatch.setattr(Klt, "decode_many", lambda self, data, spec: counts.append(len(data)) or many(self, data, spec))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(1, 6, 14, 14)).astype(np.float32) for _ in range(4)]
    codec = Klt("klt:70", tables_for(calibration()))
    bodies = [codec.encode(v) for v in values]
    expected = [codec.decode(body, TensorSpec(TENSOR, "float32", (1, 6, 14, 14))) for body in bodies]
    counts.clear()
    first, *others = tabled_requests(tabled, bodies)
    first.decode_with(others)
    for request, wanted in zip((first, *others), expected, strict=True):
        np.testing.assert_allclose(request.feed()[TENSOR], wanted, atol=1e-5)
    assert counts == [4], "all at once, and none again"
    # One whose bytes are broken fails by itself, and no other does.
    first, *others = tabled_requests(tabled, [bodies[0], bodies[1][:-3], bodies[2]])
    first.decode_with(others)
    for request, wanted in ((first, expected[0]), (others[1], expected[2])):
        np.testing.assert_allclose(request.feed()[TENSOR], wanted, atol=1e-5)
    with pytest.raises(InputError, match="broken bytes of klt"):
        others[0].feed()


def test_requests_without_tables_are_not_even_looked_at(opened: OpenedTail) -> None:
    none: Any = None
    replies: Any = SimpleNamespace(connection=SimpleNamespace(behind=False))
    requests = Requests(none, none, replies, batch=False)
    opened.check(infer(RAW))
    frame = wire.Frame(int(Kind.INFER), 0, 1, None, tensors=[np.ones((2, 1024), np.float32)])
    request = InferRequest(none, None, 0.0, False, requests, frame, opened, opened.checked)

    def others() -> Iterator[InferRequest]:
        pytest.fail("raw requests do no more than before")
        yield request

    request.decode_with(others())
    assert request.feed()["x"].shape == (2, 1024)


def test_a_name_of_tables_is_only_compared_and_never_opened(tabled: OpenedTail) -> None:
    for codec in ("klt:50", "klt:", "klt", f"klt:{'0' * 16}"):
        with pytest.raises(InputError, match="and this server has those of klt:"):
            tabled.check(infer(wire.Tensor("float32", (1, 6, 14, 14), 100, codec)))
