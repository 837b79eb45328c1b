"""The pool over real sockets: floods, batches, and who is told what of the load."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper
from serving import Gate, affine, evaluate, until

from splitpoint import wire
from splitpoint.cli.serve import command
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, EngineError, UsageError
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.batching import Asker, Gain
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.run_limits import Like
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.tail_pool import BatchRunner, Queued, RunKind
from splitpoint.tensors import Array, TensorSpec
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import PIPELINED, Kind, Limits


def one_op(tmp_path: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[object], out: Sequence[object]) -> Model:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out))],
        [onnx.numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return load(path)


def segment(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Segment:
    return Segment("f", tuple(inputs), tuple(outputs), ModelProto(), None)  # type: ignore[arg-type]


MIXING = {
    "a mean over the batch": [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ],
    "a scale found at run time": [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ],
    "a softmax over the batch": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
}


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


class Raw:
    """A client that sends requests for the whole of a model without waiting for answers."""

    def __init__(self, server: Server, model: Model, source: str = "127.0.0.1") -> None:
        host, _, port = server.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), source_address=(source, 0))
        self.connection = TcpConnection(sock, server.address, Limits())
        self.send(wire.encode(Kind.HELLO, 1, wire.Hello()))
        assert self.receive().kind == Kind.WELCOME
        whole = model.whole()
        names = [tuple(t.name for t in side) for side in (whole.inputs, whole.outputs)]
        self.send(wire.encode(Kind.OPEN, 2, wire.OpenRequest(model.fingerprint, *names)))
        opened = self.receive().header
        assert isinstance(opened, wire.Opened)
        self.packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        self.id = 100

    def send(self, packet: wire.Packet) -> None:
        self.connection.send(packet)

    def receive(self) -> wire.Frame:
        return self.connection.receive(timeout_s=10)

    def ask(self, x: Array) -> int:
        self.id += 1
        self.send(self.packer.pack(self.id, [x], flags=PIPELINED))
        return self.id

    def close(self) -> None:
        self.connection.close()


class Slow(Gate):
    """A gate whose runs take 2 ms more, so that what waits shows; `seen` is told the first number of each."""

    seen: Callable[[float], object] = float

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        session = super().compile(segment)
        run = session.run
        session.run = lambda inputs: (self.seen(inputs["x"][0, 0]), time.sleep(0.002), run(inputs))[2]  # type: ignore[method-assign]
        return session


def test_a_flood_does_not_hold_up_the_others(model: Model) -> None:
    """Fifty requests of one client wait when another's ten come: these are not the last to be served."""
    engine, order = Slow(is_open=False), list[float]()
    engine.seen = order.append
    with Server([model], engine=engine, port=0, max_batch=1) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        for _ in range(50):
            flood.ask(np.full((1, 1024), 1, np.float32))
        assert until(lambda: server.services.runner.compute.waiting == 49)
        for _ in range(10):
            modest.ask(np.full((1, 1024), 2, np.float32))
        assert until(lambda: server.services.runner.compute.waiting == 59)
        engine.open.set()
        assert [modest.receive().kind for _ in range(10)] == [Kind.RESULT] * 10
        assert [flood.receive().kind for _ in range(50)] == [Kind.RESULT] * 50
        flood.close()
        modest.close()
    # The one that was held up, and at most as many as the slack of six mean jobs and a job's noise allow.
    assert order.index(2.0) <= 8, "who has had nothing is soon next"
    assert len(order) - order[::-1].index(2.0) <= 50, "in order of arrival they would have been the last ten of sixty"


def test_what_a_client_that_left_had_waiting_is_not_computed(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, max_batch=1) as server:
        gone, modest = Raw(server, model), Raw(server, model)
        modest.ask(x)
        assert gate.entered.acquire(timeout=5)
        for _ in range(20):
            gone.ask(x)
        assert until(lambda: server.services.runner.compute.waiting == 20)
        gone.close()
        assert until(lambda: server.services.runner.compute.waiting == 0)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        modest.close()
        assert until(lambda: not server._peers)
        assert server.ledger.held_nbytes == 0, "it gave its room back"
    assert not gate.entered.acquire(blocking=False)


def test_busy_says_how_many_of_ones_own_wait_and_leaves_room_for_others(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(queue=8)) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        flood.ask(x)
        assert gate.entered.acquire(timeout=5)
        for _ in range(10):
            flood.ask(x)
        frames = [flood.receive() for _ in range(6)]
        assert {f.kind for f in frames} == {Kind.BUSY}
        busy = frames[0].header
        assert isinstance(busy, wire.Busy)
        assert "4 of yours wait" in busy.message
        assert busy.retry_after_s > 0
        modest.ask(x)
        assert until(lambda: server.services.runner.compute.waiting == 5)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        assert [flood.receive().kind for _ in range(5)] == [Kind.RESULT] * 5
        flood.close()
        modest.close()


def test_one_client_cannot_take_all_the_memory_for_requests(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((64, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(memory_bytes=10 * x.nbytes)) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        for _ in range(8):
            flood.ask(x)
        assert [flood.receive().kind for _ in range(3)] == [Kind.BUSY] * 3
        modest.ask(x)
        assert until(lambda: server.ledger.held_nbytes > 6 * x.nbytes)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        assert [flood.receive().kind for _ in range(5)] == [Kind.RESULT] * 5
        flood.close()
        modest.close()


class Batching(Gate):
    """An engine for `affine` models that notes the batches it runs; one costs as much as a request alone."""

    def __init__(self) -> None:
        super().__init__()
        self.real = open_engine(threads=1)
        self.batches: list[int] = []
        self.fails_at = 0.0

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        session, inner = super().compile(segment), self.real.compile(segment)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            x = inputs["x"]
            self.entered.release()
            assert self.open.wait(10)
            self.batches.append(len(x))
            time.sleep(0.003)
            if self.fails_at and self.fails_at in x:
                raise EngineError("this one cannot be computed")
            return inner.run(inputs)

        session.run = run  # type: ignore[method-assign]
        return session


def test_what_waits_at_the_same_time_runs_as_a_batch_and_every_answer_is_its_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Gain.add  # what a run has waited for the others to come is none of its time
    monkeypatch.setattr(Gain, "add", lambda gain, size, _seconds: add(gain, size, 0.003))
    engine, told = Batching(), list[Event]()
    rng = np.random.default_rng(0)
    with Server([model], engine=engine, port=0, max_batch=4, on_event=told.append) as server:
        raws = [Raw(server, model) for _ in range(4)]
        for _ in range(30):  # until it is known that batches help
            asked = []
            engine.open.clear()
            for raw in raws:
                x = rng.normal(size=(1, 1024)).astype(np.float32)
                for _ in range(3):
                    raw.ask(x)
                asked.append(x)
            assert until(lambda: sum(p.account.unanswered for p in server._peers) == 12), "they meet, all of them"
            engine.open.set()
            for raw, x in zip(raws, asked, strict=True):
                for _ in range(3):
                    np.testing.assert_allclose(raw.receive().tensors[0], evaluate(model, x), rtol=1e-4, atol=1e-4)
        assert max(engine.batches) == 4
        assert any(e.kind == "batched" and "may be run together" in e.sentence for e in told)
        assert Counter(engine.batches)[4] > 10

        engine.fails_at = 77.0
        engine.open.clear()
        wrong = np.full((1, 1024), 77, np.float32)
        right = [rng.normal(size=(1, 1024)).astype(np.float32) for _ in raws]
        for raw, x in zip(raws, right, strict=True):
            raw.ask(x)
        raws[0].ask(wrong)
        assert until(lambda: sum(p.account.unanswered for p in server._peers) == 5)
        engine.open.set()
        for raw, x in zip(raws, right, strict=True):
            np.testing.assert_allclose(raw.receive().tensors[0], evaluate(model, x), rtol=1e-4, atol=1e-4)
        error = raws[0].receive()
        assert error.kind == Kind.ERROR, "the one that cannot be computed, and no other"
        for raw in raws:
            raw.close()
        assert until(lambda: not server._peers)
        assert server.ledger.held_nbytes == 0


def test_a_tail_that_mixes_is_served_one_by_one(tmp_path: Path) -> None:
    model = one_op(tmp_path, MIXING["a softmax over the batch"], ["batch", 64], ["batch", 64])
    told: list[Event] = []
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    with Server([model], engine=open_engine(threads=1), port=0, max_wait_s=60.0, on_event=told.append) as server:
        raws = [Raw(server, model) for _ in range(3)]
        assert [
            e.sentence for e in told if e.kind == "batched" and "one by one: Softmax_0 (Softmax) normal" in e.sentence
        ]
        for k, raw in enumerate(raws):
            raw.ask(x * (k + 1))
            raw.ask(x * (k + 1))
        for raw in raws:
            for _ in range(2):
                assert (raw.receive().tensors[0] == 1).all(), "one request has all the weight"
            raw.close()


def test_an_edge_that_asks_once_is_not_slowed_by_batching(model: Model, tmp_path: Path) -> None:
    with (
        Server([model], engine=Gate(), port=0) as server,
        Edge(server.address, at="input", cache=tmp_path / "cache") as edge,
    ):
        result = edge.infer(np.ones((1, 1024), np.float32))
        assert result.times.load_queue_s == 0.0, "it was run by the thread that received it"
        assert not server.services.runner.compute.waiting


@pytest.mark.parametrize(("batch", "wait"), [(0, 0.0), (-1, 0.0), (8, -1.0), (8, float("nan")), (8, float("inf"))])
def test_batches_of_nothing_and_endless_waits_are_refused(model: Model, batch: int, wait: float) -> None:
    with pytest.raises(UsageError):
        Server([model], engine=Gate(), port=0, max_batch=batch, max_wait_s=wait)


@pytest.mark.parametrize("arguments", [["--max-wait", "soon"], ["--max-wait", "-1ms"], ["--max-batch", "0"]])
def test_nonsense_on_the_command_line_is_refused_in_one_sentence(arguments: list[str]) -> None:
    said = CliRunner().invoke(command, ["zoo:lenet5", "--port", "0", *arguments])
    assert said.exit_code != 0
    assert arguments[0] in f"{said.exception} {said.output}"


def test_load_in_replies_is_the_client_s_own(model: Model, tmp_path: Path) -> None:
    """A busy server says so to the client that waits, and a quiet minute later no more."""
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=Slow(), port=0, max_batch=1) as server:
        flood = Raw(server, model)
        for _ in range(60):
            flood.ask(x)
        times = [wire.Times(*np.frombuffer(flood.receive().times, "<f8")) for _ in range(60)]
        assert times[-1].queue_s > 0.05
        assert times[-1].load_queue_s > 0.02
        assert times[-1].utilisation > 0.05
        assert times[0].utilisation < times[-1].utilisation <= 1
        with Edge(server.address, at="input", cache=tmp_path / "cache") as edge:
            assert edge.infer(x).times.load_queue_s < times[-1].load_queue_s / 2, "the flood's wait is not its own"
        flood.close()


def test_a_busy_answer_to_an_edge_carries_the_time(model: Model, tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(queue=1)) as server:
        edges = [Edge(server.address, at="input", cache=tmp_path / "cache") for _ in range(3)]
        threads = [threading.Thread(target=e.infer, args=(x,)) for e in edges[:2]]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)
        threads[1].start()
        assert until(lambda: server.stats().runner.waiting == 1)
        with pytest.raises(BusyError) as caught:
            edges[2].infer(x)
        assert caught.value.retry_after_s >= 0.01
        gate.open.set()
        for thread in threads:
            thread.join()
        for edge in edges:
            edge.close()


def test_who_ran_in_a_batch_is_told_its_own_part_and_that_it_waited_for_the_others() -> None:
    """An edge that were told the whole batch's time would take a server with a full queue for a slow one."""
    clocks: list[RunMarks] = []
    told: list[Event] = []

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(0.04)
        return inputs

    tails: Any = SimpleNamespace(acquire=lambda tail: SimpleNamespace(run=run), release=lambda tail: None)
    watch: Any = SimpleNamespace(run=lambda session, feed, like, name, times: session.run(feed))
    request: Any = SimpleNamespace(
        account=SimpleNamespace(name="a client"),
        refusal=lambda now_s: None,
        decode_with=lambda others: None,
        feed=lambda: {"x": np.zeros((1, 3), np.float32)},
        answer=lambda outputs, marks: clocks.append(marks),
    )
    gain = Gain(4)
    gain.judge("equal", "")
    tail: Any = None
    queued = Queued(request, tail, RunKind([], Like(0.0), gain, Asker()))
    began = time.perf_counter()
    BatchRunner(tails, watch, told.append)([WaitingJob(Client(), lambda waited: None, gain, queued) for _ in range(4)])
    wall_s = time.perf_counter() - began
    assert len(clocks) == 4
    started, waited_s, ready, decoded, computed, ran = msgspec.structs.astuple(clocks[0])
    assert ran.run > 0
    assert ran.size == 4
    assert waited_s == 0.0
    assert 0.01 <= computed - decoded <= wall_s / 4, "a quarter of the batch"
    assert ready - started >= 0.03, "the rest is waiting"
    assert clocks[1:] == clocks[:1] * 3
