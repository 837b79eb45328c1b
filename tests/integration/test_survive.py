"""A server that is late, gone, busy or wrong: every request gets one answer, the whole model's; the edge comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from places import SUPPORT
from relays import ThreadRelay
from serving import Gate, affine, evaluate
from serving import until as until_in

import nets
from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import EngineError, RefusedError, ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.transports import connect, memory
from splitpoint.transports.tcp import TcpListener
from splitpoint.wire import Kind, Limits

FAST = Link(1000.0, 1000.0, 0.2)
#: So that a server is late, given up and tried again within a test's time.
QUICK = Patience(first_s=0.3, least_s=0.1, pong_s=0.2, pause_s=0.02, longest_pause_s=0.1, greet_s=0.5, seed=1)
#: For tests in which nothing is late, however busy this machine is.
PATIENT = Patience(first_s=20.0, least_s=20.0, pause_s=0.02, longest_pause_s=0.1, seed=1)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def wide(tmp_path: Path) -> Model:
    return affine(tmp_path, name="wide", size=1 << 18)  # 1 MiB crosses


def until(condition: object, seconds: float = 20.0) -> bool:
    """`serving.until`, with time for a machine that has other things to do."""
    return until_in(condition, seconds)


def xs(count: int, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def right(model: Model, x: Array, result: Result) -> None:
    np.testing.assert_allclose(result.outputs["y3"], evaluate(model, x), rtol=1e-4, atol=1e-5)
    assert sum(result.trace.stages().values()) == pytest.approx(result.total_ms, abs=1e-6)
    for before, after in zip(result.trace.spans, result.trace.spans[1:], strict=False):
        assert after.start == pytest.approx(before.end)
        assert after.ms >= 0


def ort() -> Any:
    return open_engine(threads=1)


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.answers: list[tuple[Result, float]] = []
        self.heads: list[str] = []
        self.overdues: list[tuple[int, float]] = []
        self.failures: list[str] = []
        self.states: list[str] = []

    def answered(self, result: Result, remote_ms: float) -> None:
        self.answers.append((result, remote_ms))

    def delivered(self, request: Request, result: Result) -> None: ...

    def computed(self, cut: Cut, head_ms: float) -> None:
        self.heads.append(cut.name)

    def overdue(self, up_nbytes: int, age_ms: float) -> None:
        self.overdues.append((up_nbytes, age_ms))

    def failed(self, why: str) -> None:
        self.failures.append(why)

    def state(self, state: str) -> None:
        self.states.append(state)


class Process:
    """A server of `affine(folder)` in a process of its own."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        script = folder / "serve.py"
        script.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(SUPPORT)!r})\n"
            "from pathlib import Path\n"
            "from serving import affine\n"
            "from splitpoint.engines import open_engine\n"
            "from splitpoint.runtime.server.server import Server\n"
            f"model = affine(Path({str(folder)!r}))\n"
            "with Server([model], engine=open_engine(threads=1), port=int(sys.argv[1])) as server:\n"
            "    print(server.address, flush=True)\n"
            "    server.serve_forever()\n"
        )
        self._child = subprocess.Popen([sys.executable, str(script), str(port)], stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self.address = self._child.stdout.readline().strip()
        self.port = int(self.address.rpartition(":")[2])

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitpid(self._child.pid, os.WUNTRACED)  # until it has stopped

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()


@contextmanager
def served(folder: Path) -> Iterator[list[Process]]:
    """A list with one server process; whatever is in it at the end is killed."""
    processes = [Process(folder)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def comes_back(edge: Edge, model: Model, seconds: float = 20.0) -> None:
    """Asks until the server answers again; every answer on the way is right."""
    x = xs(1, seed=99)[0]

    def answered() -> bool:
        result = edge.infer(x)
        right(model, x, result)
        return not result.fallback

    assert until(answered, seconds)
    assert edge.link_state == "up"


# --- processes that end, stop and start again -----------------------------------------------------------------------


def test_a_killed_server_costs_a_stream_nothing_and_is_used_again_when_it_is_back(tmp_path: Path, model: Model) -> None:
    items, results = xs(20), []
    back = threading.Event()
    pause = threading.Event()
    with served(tmp_path) as processes:
        edge = Edge(processes[0].address, model, at="add1", fallback="local", engine=ort(), patience=PATIENT)

        def frames() -> Iterator[Request]:
            for k in range(100_000):
                if k == 60:
                    processes[0].send(signal.SIGKILL)
                if k == 200:
                    processes.append(Process(tmp_path, processes[0].port))
                if back.is_set():
                    return
                if k > 200:
                    pause.wait(0.002)  # until the other process is seen to be there
                yield Request(items[k % 20], tag=k)

        with edge:
            for result in edge.stream(frames(), window=4):
                results.append(result)
                if result.tag > 200 and not result.fallback:
                    back.set()
        assert back.is_set()
    assert [r.tag for r in results] == list(range(len(results)))
    for result in results:
        right(model, items[result.tag % 20], result)
    fallen = [r for r in results if r.fallback]
    assert len(fallen) > 50
    assert all(r.fallback.startswith("the server is gone") for r in fallen), {r.fallback for r in fallen}
    assert not any(r.fallback for r in results[:50])


def test_waiting_asks_again_when_the_server_is_back(tmp_path: Path, model: Model) -> None:
    x = xs(1)[0]
    results: list[Result] = []
    with served(tmp_path) as processes:
        edge = Edge(processes[0].address, model, at="add1", fallback="wait", engine=ort(), patience=QUICK)
        with edge:
            right(model, x, edge.infer(x))
            processes[0].send(signal.SIGSTOP)  # so that the request is under way when it ends
            thread = threading.Thread(target=lambda: results.append(edge.infer(x)))
            thread.start()
            assert until(lambda: edge._channel.in_flight > 0)
            processes[0].send(signal.SIGKILL)
            assert until(lambda: edge.link_state == "down")
            assert not results
            processes.append(Process(tmp_path, processes[0].port))
            thread.join(20)
            (result,) = results
            right(model, x, result)
            assert (result.fallback, result.cut) == ("", "add1")
            assert result.attempts == 2
            assert list(result.trace.stages())[:3] == ["head", "wait", "encode"]


def test_a_stopped_server_is_late_then_gone_and_then_well(tmp_path: Path, model: Model) -> None:
    with served(tmp_path) as processes:
        heard = Heard()
        edge = Edge(processes[0].address, model, at="add1", fallback="local", engine=ort(), patience=QUICK)
        with edge:
            edge.watchers.append(heard)
            for x in xs(3):
                right(model, x, edge.infer(x))
            processes[0].send(signal.SIGSTOP)
            try:
                for x in xs(20, seed=1):
                    result = edge.infer(x)
                    right(model, x, result)
                    assert result.fallback
                assert until(lambda: edge._remote.ended), "a connection that nothing comes over is given up"
                assert heard.states[0] == "down"
                assert 3 <= len(heard.overdues) <= 5, "then the server is not asked any more"
            finally:
                processes[0].send(signal.SIGCONT)
            comes_back(edge, model)
            assert heard.states[-2:] == ["trying", "up"]


def test_a_process_that_ends_without_closing_says_nothing(tmp_path: Path, model: Model) -> None:
    with served(tmp_path) as processes:
        script = tmp_path / "edge.py"
        script.write_text(
            "import sys, numpy as np\n"
            "from splitpoint.models import load\n"
            "from splitpoint.runtime.client.edge import Edge\n"
            "from splitpoint.runtime.client.timeouts import Patience\n"
            f"edge = Edge({processes[0].address!r}, load({str(tmp_path / 'affine.onnx')!r}), at='add1',\n"
            "            fallback='local', patience=Patience(first_s=1e-4, least_s=1e-4))\n"
            "for _ in range(20):\n"
            "    edge.infer(np.zeros((1, 1024), np.float32))\n"
            "print('answered')\n"
        )
        ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "answered\n", "")


# --- links that break, stall and crawl ------------------------------------------------------------------------------


def test_a_link_cut_in_the_middle_of_a_request(wide: Model) -> None:
    items = xs(12, 1 << 18)
    heard = Heard()
    with (
        Server([wide], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, wide, at="add1", fallback="local", engine=ort(), patience=PATIENT) as edge,
    ):
        edge.watchers.append(heard)
        right(wide, items[0], edge.infer(items[0]))
        relay.cut(after_nbytes=300_000)
        for x, result in zip(items, edge.stream(items, window=3), strict=True):
            right(wide, x, result)
        assert any("the server is gone" in why for why in heard.failures)
        assert until(lambda: edge.link_state != "down")
        assert until(lambda: not edge.infer(items[0]).fallback)


def test_a_stalled_link_is_answered_for_in_time_and_its_late_reply_is_told_once(model: Model) -> None:
    heard = Heard()
    one, two = xs(2)
    with (
        Server([model], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, model, at="add1", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        edge.watchers.append(heard)
        for _ in range(3):
            edge.infer(one)
        relay.stall(1.0)
        result = edge.infer(two)
        right(model, two, result)
        assert result.fallback == "the server was late"
        assert list(result.trace.stages()) == ["head", "wait", "local"]
        assert result.total_ms < 900
        assert (result.up_nbytes, result.attempts) == (0, 1)
        assert len(heard.answers) == 3
        ((nbytes, age_ms),) = heard.overdues
        assert nbytes > 4096
        assert 100 <= age_ms <= 900
        assert until(lambda: len(heard.answers) == 4), "the late reply is news"
        late, remote_ms = heard.answers[-1]
        assert (late.outputs, late.up_nbytes) == ({}, nbytes)
        assert remote_ms > 500
        comes_back(edge, model)
        assert len(heard.answers) >= 5


def test_an_answer_that_crawls_does_not_hold_the_caller(wide: Model) -> None:
    """In the middle of a frame, where a receiver cannot be interrupted."""
    heard = Heard()
    x = xs(1, 1 << 18)[0]
    with (
        Server([wide], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, wide, at="add1", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        edge.watchers.append(heard)
        relay.set_link(Link(1000.0, 5.0, 0.2))  # 1 MiB in 1.7 s
        result = edge.infer(x)
        right(wide, x, result)
        assert result.fallback == "the server was late"
        assert result.total_ms < 1300
        assert until(lambda: len(heard.answers) == 1, 10)
        assert heard.answers[0][1] > 1300


def test_a_link_that_takes_nothing_does_not_hold_the_caller(wide: Model) -> None:
    x = xs(1, 1 << 18)[0]
    with (
        Server([wide], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, wide, at="add1", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        right(wide, x, edge.infer(x))
        relay.set_link(Link(0.5, 1000.0, 0.2))  # 17 s for one tensor
        for _ in range(4):
            began = time.perf_counter()
            result = edge.infer(x)
            assert time.perf_counter() - began < 5
            right(wide, x, result)
            assert result.fallback
        old = edge._remote
        assert until(lambda: old.ended), "megabytes under way must not delay what comes after"
        relay.set_link(FAST)
        assert until(lambda: not edge.infer(x).fallback, 20)


def test_waiting_gives_up_a_dead_link_and_not_a_slow_one(wide: Model) -> None:
    x = xs(1, 1 << 18)[0]
    with (
        Server([wide], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, wide, at="add1", fallback="wait", engine=ort(), patience=QUICK) as edge,
    ):
        relay.set_link(Link(8.0, 1000.0, 0.2))  # a second: more than late, more than a ping may take
        result = edge.infer(x)
        right(wide, x, result)
        assert (result.fallback, result.attempts) == ("", 1)
        relay.set_link(FAST)
        relay.stall(1.5)
        result = edge.infer(x)
        right(wide, x, result)
        assert result.fallback == ""


# --- servers that are busy, or wrong --------------------------------------------------------------------------------


def test_a_busy_server_is_not_waited_for(model: Model) -> None:
    gate = Gate(is_open=False)
    x = xs(1)[0]
    with Server([model], engine=gate, port=0, limits=Limits(queue=1)) as server:
        held = [Edge(server.address, model, at="input") for _ in range(2)]
        threads = [threading.Thread(target=e.infer, args=(x,)) for e in held]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)
        threads[1].start()
        assert until(lambda: server.stats().runner.waiting == 1)
        waited: list[Result] = []
        with (
            Edge(server.address, model, at="input", fallback="local", patience=PATIENT, engine=ort()) as edge,
            Edge(server.address, model, at="input", fallback="wait", patience=PATIENT) as other,
        ):
            heard = Heard()
            edge.watchers.append(heard)
            ping, channel = edge.ping(), edge._channel
            assert ping is not None
            assert 0 < ping < 2
            for _ in range(3):
                result = edge.infer(x)
                right(model, x, result)
                assert result.fallback == "the server was busy"
            assert 1 <= len(heard.failures) <= 3
            # Late, if the deadline passes while it has been asked again: how soon BUSY comes is the machine's doing.
            with pytest.raises(ServerError, match=r"no answer within 50 ms: the server was (busy|late)"):
                other.infer(x, deadline_s=0.05)
            thread = threading.Thread(target=lambda: waited.append(other.infer(x)))
            thread.start()
            gate.open.set()
            thread.join(10)
            assert waited[0].fallback == ""
            np.testing.assert_array_equal(waited[0].outputs["y3"], x)  # what this engine answers
            assert until(lambda: not edge.infer(x).fallback, 10)
            assert edge._channel is channel, "a busy server is no lost connection"
        for thread in threads:
            thread.join()
        for one in held:
            one.close()


class Fake:
    """Speaks the protocol, opens what it is asked to, and answers INFER with `answer`."""

    def __init__(self, model: Model, at: str, answer: Callable[[int], wire.Packet]) -> None:
        self._tail = model.tail(model.graph.cut(at))
        self._info = wire.ModelInfo(model.name, model.fingerprint)
        self._answer = answer
        self._listener = TcpListener("127.0.0.1", 0, Limits())
        self.address = self._listener.address
        self.infers = 0
        self._threads: list[threading.Thread] = []
        self._connections: list[Any] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while (connection := self._listener.accept()) is not None:
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: Any) -> None:
        tensors = [tuple(map(wire.TensorInfo.of, specs)) for specs in (self._tail.inputs, self._tail.outputs)]
        try:
            while True:
                frame = connection.receive()
                if frame.kind == Kind.HELLO:
                    reply = wire.encode(Kind.WELCOME, frame.id, wire.Welcome(models=(self._info,)))
                elif frame.kind == Kind.PING:
                    reply = wire.encode(Kind.PONG, frame.id, wire.Pong(frame.header.clock_s))
                elif frame.kind == Kind.OPEN:
                    reply = wire.encode(Kind.OPENED, frame.id, wire.Opened(1, *tensors))
                elif frame.kind == Kind.INFER:
                    self.infers += 1
                    reply = self._answer(frame.id)
                else:
                    continue
                connection.send(reply)
        except ServerError:
            connection.close()

    def close(self) -> None:
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join()


def _result(id: int, array: Array) -> wire.Packet:
    return wire.Packer(Kind.RESULT, wire.ResultData).pack(id, [array], (), wire.Times())


WRONG: dict[str, Callable[[int], wire.Packet]] = {
    "shape": lambda id: _result(id, np.zeros((1, 3), np.float32)),
    "dtype": lambda id: _result(id, np.zeros((1, 1024), np.float64)),
    "number": lambda id: wire.Packer(Kind.RESULT, wire.ResultData).pack(id, [], (), wire.Times()),
    "kind": lambda id: wire.encode(Kind.PONG, id, wire.Pong()),
    "noise": lambda id: wire.Packet((b"\x00" * 64,), 64),
    "engine": lambda id: wire.encode(Kind.ERROR, id, wire.Error("engine", "out of memory")),
    "input": lambda id: wire.encode(Kind.ERROR, id, wire.Error("input", "tensor add1 must be something else")),
    "everything": lambda id: wire.encode(Kind.ERROR, 0, wire.Error("protocol", "I have lost track")),
    "hangs up": lambda id: wire.Packet((b"\xf5SP",), 3),
}


WRONG_WORDS = {
    "shape": r"answer y3 must be float32\[1,1024\], but float32\[1,3\] came",
    "dtype": "but float64",
    "number": "answered with 0 tensors instead of 1",
    "kind": "answered INFER with PONG",
    "noise": "not a splitpoint frame",
    "engine": "out of memory",
    "input": "must be something else",
    "everything": "I have lost track",
    "hangs up": "ended in the middle of a frame|did not answer in time",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_answer_is_nobodys_answer(model: Model, how: str) -> None:
    heard = Heard()
    fake = Fake(model, "add1", WRONG[how])
    try:
        with Edge(fake.address, model, at="add1", fallback="local", engine=ort(), patience=QUICK) as edge:
            edge.watchers.append(heard)
            for x in xs(6):
                result = edge.infer(x)
                right(model, x, result)
                assert result.fallback
            assert heard.failures or heard.overdues
            assert not heard.answers or how in ("shape", "dtype", "number")
        with Edge(
            fake.address, model, at="add1", fallback="error", engine=ort(), patience=Patience(answer_s=0.5)
        ) as edge:
            edge.watchers.append(heard)
            with pytest.raises(SplitpointError) as caught:
                edge.infer(xs(1)[0])
            assert re.search(WRONG_WORDS[how], str(caught.value))
    finally:
        fake.close()


def test_waiting_does_not_ask_for_ever_what_is_always_refused(model: Model) -> None:
    fake = Fake(model, "add1", WRONG["engine"])
    try:
        with Edge(fake.address, model, at="add1", fallback="wait", engine=ort(), patience=QUICK) as edge:
            with pytest.raises(Exception, match="out of memory"):
                edge.infer(xs(1)[0])
            assert fake.infers == 3
    finally:
        fake.close()


def test_a_client_that_does_not_read_holds_up_nobody_else(wide: Model) -> None:
    x = xs(1, 1 << 18)[0]
    with Server([wide], engine=ort(), port=0) as server:
        slow = connect(server.address)
        slow.send(wire.encode(Kind.HELLO, 0, wire.Hello()))
        slow.receive(timeout_s=5)
        slow.send(wire.encode(Kind.OPEN, 1, wire.OpenRequest(wide.fingerprint, ("x",), ("y3",))))
        opened = slow.receive(timeout_s=30).header
        assert isinstance(opened, wire.Opened)
        packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        for id in range(2, 22):  # 20 MiB of answers: more than the kernel keeps
            slow.send(packer.pack(id, [x], (), (), wire.PIPELINED))
        with Edge(server.address, wide, at="add1", fallback="local", patience=PATIENT, engine=ort()) as edge:
            for _ in range(5):
                result = edge.infer(x)
                right(wide, x, result)
                assert result.fallback == ""
        ids = []
        for _ in range(20):
            frame = slow.receive(timeout_s=10)
            np.testing.assert_allclose(frame.tensors[0], evaluate(wide, x), rtol=1e-4, atol=1e-5)
            ids.append(frame.id)
        assert sorted(ids) == list(range(2, 22)), "and it gets what it asked for when it does read"
        slow.close()


# --- one answer, once -----------------------------------------------------------------------------------------------


def test_the_first_answer_wins_and_the_other_is_dropped(model: Model) -> None:
    gate = Gate(is_open=False)
    heard = Heard()
    items = xs(4)
    with (
        Server([model], engine=gate, port=0) as server,
        Edge(server.address, model, at="input", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        edge.watchers.append(heard)
        first = edge.infer(items[0])
        right(model, items[0], first)  # this server's would be the input itself
        assert first.fallback == "the server was late"
        assert not heard.answers
        gate.open.set()
        assert until(lambda: len(heard.answers) == 1)
        assert heard.answers[0][0].outputs == {}
        results = list(edge.stream(Request(x, tag=k) for k, x in enumerate(items)))
        assert [r.tag for r in results] == [0, 1, 2, 3]
        for x, result in zip(items, results, strict=True):
            np.testing.assert_array_equal(result.outputs["y3"], x)
        assert edge._channel.in_flight == 0


def test_a_server_that_is_late_but_first_is_no_failure(model: Model) -> None:
    """Where finishing here takes longer than the server is late, it is the server's answer that counts."""
    there, here = Gate(is_open=False), Gate()
    x = xs(1)[0]
    results: list[Result] = []
    with (
        Server([model], engine=there, port=0) as server,
        Edge(server.address, model, at="input", fallback="local", engine=here, patience=QUICK) as edge,
    ):
        here.open.clear()
        while here.entered.acquire(blocking=False):
            pass  # what compiling the tail has run
        for _ in range(4):
            there.open.clear()
            thread = threading.Thread(target=lambda: results.append(edge.infer(x)))
            thread.start()
            assert here.entered.acquire(timeout=5), "it was late, and the finish here has begun"
            there.open.set()
            thread.join(5)
            assert results[-1].fallback == ""
            here.open.set()
            assert until(lambda: edge._binding.local._jobs.empty())
            here.open.clear()
        here.open.set()
        assert edge.link_state == "up"


# --- deadlines ------------------------------------------------------------------------------------------------------


def test_what_the_server_refuses_because_the_deadline_has_passed_was_late(model: Model) -> None:
    there, here, heard = Gate(is_open=False), Gate(), Heard()
    results: list[Result] = []
    with (
        Server([model], engine=there, port=0, max_batch=1) as server,
        Edge(server.address, model, at="input", fallback="local", engine=here, patience=PATIENT) as edge,
    ):
        edge.watchers.append(heard)
        here.open.clear()
        thread = threading.Thread(target=lambda: results.extend(edge.stream(xs(2), window=2, deadline_s=0.3)))
        thread.start()
        assert until(lambda: server.services.runner.compute.waiting == 1)
        time.sleep(0.35)  # the deadline passes
        there.open.set()
        assert until(lambda: heard.failures)
        here.open.set()
        thread.join(20)
        assert heard.failures[0].startswith("the server was late: the deadline passed")
        assert [r.fallback.partition(":")[0] for r in results] == ["", "the server was late"]


def test_a_deadline_is_met_here_when_the_server_cannot(model: Model) -> None:
    gate = Gate(is_open=False)
    x = xs(1)[0]
    with (
        Server([model], engine=gate, port=0) as server,
        Edge(server.address, model, at="input", fallback="local", engine=ort(), patience=PATIENT) as edge,
        Edge(server.address, model, at="input", fallback="wait", patience=PATIENT, deadline_s=0.3) as waiting,
    ):
        result = edge.infer(x, deadline_s=0.5)
        right(model, x, result)
        assert result.fallback == "the server was late"
        assert result.deadline_s == 0.5
        assert result.total_ms > 300, "there was time to wait for the server"
        assert result.missed_ms == pytest.approx(max(0.0, result.total_ms - 500), abs=1e-6)
        (streamed,) = edge.stream([x], deadline_s=0.2)
        assert streamed.deadline_s == 0.2
        with pytest.raises(ServerError, match="no answer within 300 ms: the server was late"):
            waiting.infer(x)
        gate.open.set()


@pytest.mark.parametrize("deadline_s", [-1.0, float("nan")])
def test_a_deadline_that_is_none_is_refused(model: Model, deadline_s: float) -> None:
    with Server([model], engine=Gate(), port=0) as server:
        with pytest.raises(UsageError, match="a deadline is"):
            Edge(server.address, model, deadline_s=deadline_s)
        with Edge(server.address, model, at="input") as edge:
            with pytest.raises(UsageError, match="a deadline is"):
                edge.infer(xs(1)[0], deadline_s=deadline_s)
            with pytest.raises(UsageError, match="a deadline is"):
                edge.stream([], deadline_s=deadline_s)


# --- what can be finished here --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "words"), [("head:add1", "only a head"), ("none", "no models")])
def test_a_server_that_keeps_its_model_leaves_no_fallback(tmp_path: Path, model: Model, share: str, words: str) -> None:
    with Server([model], engine=ort(), port=0, share=share) as server:
        with pytest.raises(RefusedError, match=f"hands out {words}, so no request can be finished here.*own file"):
            Edge(server.address, cache=tmp_path / "cache", fallback="local")
        with Edge(server.address, model, at="add1", fallback="local", engine=ort(), patience=PATIENT) as edge:
            assert edge.local_ready
            right(model, xs(1)[0], edge.infer(xs(1)[0]))
    one, two = memory.pair()
    with pytest.raises(UsageError, match="give an address, not a connection"):
        Edge(one, model, fallback="wait")
    one.close()
    two.close()


def test_the_rest_of_the_weights_comes_in_the_background_and_slowly(tmp_path: Path, model: Model) -> None:
    told: list[Event] = []
    x = xs(1)[0]
    mbps = 4.0
    with Server([model], engine=ort(), port=0) as server, ThreadRelay(server.address, FAST) as relay:
        edge = Edge(
            relay.address,
            cache=tmp_path / "cache",
            at="input",
            fallback="local",
            engine=ort(),
            on_event=told.append,
            patience=PATIENT,
        )
        with edge:
            assert not edge.local_ready
            (notice,) = [e.sentence for e in told if e.kind == "notice"]
            assert notice.startswith("no local fallback yet (0 B of 32.8 kB here)"), notice
            assert edge._binding.background is not None
            assert edge._binding.background._thread.ident is None, "not before the first answer"
            relay.set_link(Link(mbps, mbps, 0.2))
            began = time.perf_counter()
            right(model, x, edge.infer(x))
            while not edge.local_ready:  # one request after the other: there is one under way, or it has just begun
                right(model, x, edge.infer(x))
            spent = time.perf_counter() - began
            total = sum(b.nbytes for b in model.blobs.values())
            assert spent > 0.8 * total * 8e-6 / (0.1 * mbps), "a tenth of the link at most"
            assert all(h in BlobCache(tmp_path / "cache") for h in model.blobs)
            relay.cut(refuse_s=30.0)
            result = edge.infer(x)
            right(model, x, result)
            assert result.fallback.startswith("the server is gone")
            assert len([e for e in told if "no local fallback" in e.sentence]) == 1


def test_until_the_weights_are_here_a_request_waits(tmp_path: Path, model: Model) -> None:
    x = xs(1)[0]
    with Server([model], engine=ort(), port=0) as server, ThreadRelay(server.address, FAST) as relay:
        edge = Edge(relay.address, cache=tmp_path / "cache", at="input", fallback="local", engine=ort(), patience=QUICK)
        with edge:
            relay.cut(refuse_s=1.0)
            with pytest.raises(ServerError, match=r"no answer within 200 ms: .*there is no local fallback yet"):
                edge.infer(x, deadline_s=0.2)
            result = edge.infer(x)
            right(model, x, result)
            assert result.fallback == ""
            assert until(lambda: edge.local_ready, 60)


def test_what_is_refused_again_and_again_is_raised_where_there_is_no_fallback_yet(tmp_path: Path, model: Model) -> None:
    x = xs(1)[0]
    with Server([model], engine=Gate(fails=EngineError("out of memory")), port=0) as server:
        edge = Edge(
            server.address, cache=tmp_path / "cache", at="input", fallback="local", patience=PATIENT, engine=ort()
        )
        with edge:
            with pytest.raises(EngineError, match="out of memory"):
                edge.infer(x)
            assert until(lambda: edge.local_ready, 60)
            result = edge.infer(x)
            right(model, x, result)
            assert result.fallback == "the server failed: out of memory"


def test_another_cut_finishes_what_this_one_cannot_yet(model: Model) -> None:
    """Right after a switch this cut's tail is not compiled here: the one before it can do it all."""
    here = Gate()
    x = xs(1)[0]
    with Server([model], engine=ort(), port=0) as server, ThreadRelay(server.address, FAST) as relay:
        engine = ort()
        with Edge(relay.address, model, at="add1", fallback="local", engine=engine, patience=QUICK) as edge:
            compiled: list[str] = []
            compile = engine.compile
            hold = threading.Event()

            def counted(segment: Any) -> Any:
                compiled.append(segment.key)
                if segment.key == model.tail(model.graph.cut("add2")).key:
                    hold.wait(5)
                return compile(segment)

            engine.compile = counted
            edge.switch("add2")
            assert until(lambda: len(compiled) == 2)
            relay.cut(refuse_s=30.0)
            assert until(lambda: edge.link_state == "down")
            assert edge.local_ready
            result = edge.infer(x)
            right(model, x, result)
            assert result.fallback
            assert result.cut == "add2"
            hold.set()
            assert until(lambda: edge._cuts.current.placement.tail is not None)
            edge.forget()
            right(model, x, edge.infer(x))
    assert not here.compiled


@pytest.mark.parametrize("net", [nets.wide_shapes, nets.measured, nets.passing])
def test_every_cut_is_finished_here_as_the_whole_model_would(net: Callable[[], Any], tmp_path: Path) -> None:
    whole, engine = nets.load(net(), folder=tmp_path), ort()
    session = engine.compile(whole.whole())
    samples = samples_for(whole, 2)
    expected = [{**sample, **session.run(sample)} for sample in samples]
    session.close()
    finished = vectors = 0
    with (
        Server([whole], engine=Gate(fails=EngineError("no")), port=0) as server,
        Edge(server.address, whole, at="input", fallback="local", patience=PATIENT, engine=engine) as edge,
    ):
        for cut in whole.graph.prefixes():
            edge.switch(cut)
            vectors += len(cut.shapes)
            for sample, want in zip(samples, expected, strict=True):
                result = edge.infer(sample)
                assert bool(result.fallback) == bool(edge._cuts.current.placement.remote)
                finished += bool(result.fallback)
                for spec in whole.outputs:
                    np.testing.assert_allclose(result.outputs[spec.name], want[spec.name], rtol=1e-4, atol=1e-5)
    assert finished
    assert vectors or net is not nets.wide_shapes


# --- the connection -------------------------------------------------------------------------------------------------


def test_all_cuts_are_open_again_after_a_reconnect_and_none_is_compiled_twice_here(model: Model) -> None:
    heard = Heard()
    x = xs(1)[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, model, at="add0", fallback="local", engine=ort(), patience=PATIENT) as edge,
    ):
        edge.watchers.append(heard)
        edge.warm("add2")
        heads = {k: p.head for k, p in edge._cuts._placements.items()}
        old = edge._remote
        relay.cut()
        assert until(lambda: edge._remote is not old and edge.link_state == "trying"), "without being asked"
        assert until(lambda: all(p.is_open_at(edge._remote) for p in edge._cuts.all()))
        for at in ("add0", "add2", "add0"):
            edge.switch(at)
            result = edge.infer(x)
            right(model, x, result)
            assert (result.fallback, result.cut) == ("", at)
        assert {k: p.head for k, p in edge._cuts._placements.items()} == heads
        assert heard.states == ["down", "trying", "up"]


def test_while_the_server_is_gone_any_cut_can_be_taken_where_the_model_is_here(model: Model) -> None:
    x = xs(1)[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, model, at="add0", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        relay.cut(refuse_s=30.0)
        assert until(lambda: edge.link_state == "down")
        edge.switch("add2")
        result = edge.infer(x)
        right(model, x, result)
        assert result.fallback
        assert result.cut == "add2"
        right(model, x, edge.infer(x, at="add1"))
        edge.switch("output")
        result = edge.infer(x)
        right(model, x, result)
        assert (result.fallback, result.cut) == ("", "output")
        assert edge.ping() is None


def test_without_a_fallback_a_lost_connection_stays_lost_and_watchers_hear_of_it(model: Model) -> None:
    heard = Heard()
    x = xs(1)[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, model, at="add0", engine=ort()) as edge,
    ):
        ping = edge.ping()
        assert ping is not None
        assert 0 < ping < 2
        edge.infer(x)
        edge.watchers.append(heard)
        result = edge.infer(x)
        right(model, x, result)
        assert heard.heads == ["add0"]
        ((told, remote_ms),) = heard.answers
        assert 0 < remote_ms <= result.total_ms
        assert told.up_nbytes == result.up_nbytes
        relay.cut()
        with pytest.raises(ServerError):
            edge.infer(x)
        assert edge.link_state == "down"
        edge.watchers.clear()
        with pytest.raises(ServerError):
            edge.infer(x)


def test_a_shadow_is_heard_by_watchers_alone(model: Model) -> None:
    heard = Heard()
    x = xs(1)[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        Edge(server.address, model, at="output", fallback="local", patience=PATIENT, engine=ort()) as edge,
    ):
        edge.watchers.append(heard)
        with pytest.raises(UsageError, match="is not warm"):
            edge.shadow(x, "add1")
        edge.warm("add1")
        for k in range(3):
            edge.shadow(x, "add1")
            assert until(lambda: len(heard.answers) == k + 1)  # noqa: B023
        result = edge.infer(x)
        right(model, x, result)
        assert (result.cut, result.up_nbytes) == ("output", 0)
        assert len(heard.answers) == 3
        assert all(r.outputs == {} and r.cut == "add1" and r.up_nbytes > 4096 for r, _ in heard.answers)


def test_a_request_on_a_cut_that_is_forgotten_is_answered(model: Model) -> None:
    gate = Gate(is_open=False)
    x = xs(1)[0]
    results: list[Result] = []
    with (
        Server([model], engine=gate, port=0) as server,
        Edge(server.address, model, at="add0", fallback="local", engine=ort(), patience=QUICK) as edge,
    ):
        thread = threading.Thread(target=lambda: results.append(edge.infer(x)))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        edge.switch("output")
        edge.forget()
        thread.join(5)
        right(model, x, results[0])
        assert results[0].fallback == "the server was late"
        gate.open.set()


@pytest.mark.parametrize("fallback", ["local", "wait"])
def test_closing_ends_it_at_once_whatever_it_is_doing(model: Model, fallback: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never greets
        with Server([model], engine=ort(), port=0) as server:
            edge = Edge(server.address, model, at="add0", fallback=fallback, engine=ort(), patience=Patience(seed=1))
            elsewhere = structs.replace(edge._means.provider, server=f"127.0.0.1:{silent.getsockname()[1]}")
            edge._binding.means = structs.replace(edge._means, provider=elsewhere)
        assert until(lambda: edge.link_state == "down")
        assert until(lambda: edge._line._greeting is not None), "it greets a server that says nothing"
        errors: list[Exception] = []

        def ask() -> None:
            try:
                edge.infer(xs(1)[0])
            except ServerError as exc:
                errors.append(exc)

        thread = threading.Thread(target=ask)
        thread.start()
        if fallback == "local":
            thread.join(5)
        began = time.perf_counter()
        edge.close()
        thread.join(5)
        assert time.perf_counter() - began < 2
        assert bool(errors) == (fallback == "wait")
        with pytest.raises(ServerError, match="closed"):
            edge.infer(xs(1)[0])
