"""Server and Edge together, over real sockets: right answers, right errors, nothing lost, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import (
    BusyError,
    EngineError,
    ServerError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.probe.server_clock import ServerClock
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.compiled_tails import Tails
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.security import ServerSecurity
from splitpoint.tensors import Array
from splitpoint.wire import Limits

STAGES = ["head", "encode", "up", "decode", "queue", "tail", "reply", "down"]


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


# --- the main job ---------------------------------------------------------------------------------------------------


# --- models and versions --------------------------------------------------------------------------------------------


# --- where the time went --------------------------------------------------------------------------------------------


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


def test_the_clock_is_that_of_the_shortest_ping() -> None:
    clock = ServerClock()
    assert clock.error_s(0.0) == float("inf")
    clock.add(0.0, 100.5, 100.5, 1.0)
    assert (clock.offset_s, clock.error_s(1.0)) == (100.0, 0.5)
    clock.add(2.0, 102.01, 102.02, 2.05)  # 40 ms there and back, 10 ms at the server
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05) == pytest.approx(0.02)
    clock.add(3.0, 103.9, 103.9, 4.0)
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05 + 1000) == pytest.approx(0.02 + 0.03)  # quartz drifts
    clock.add(1002.0, 1102.1, 1102.1, 1002.1)  # better than an old one by now
    assert clock.error_s(1002.1) == pytest.approx(0.05)


# --- switching ------------------------------------------------------------------------------------------------------


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
        assert until(lambda: sum(p.opening.waiting for p in server._peers) == 4)
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
            assert server.runner.tails.nbytes <= 1000
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
        assert until(lambda: server.runner.tails.nbytes <= 1000)


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


# --- streams --------------------------------------------------------------------------------------------------------


# --- what goes wrong ------------------------------------------------------------------------------------------------


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


def test_the_server_ending_mid_request_loses_no_answer(model: Model, cache: Path) -> None:
    gate = Gate()
    server = Server([model], engine=gate, port=0)
    server.start()
    edge = Edge(server.address, at="input", cache=cache)
    results = edge.stream(iter(inputs(50)), window=2)
    done = [next(results) for _ in range(10)]
    gate.open.clear()
    closer = threading.Thread(target=server.close)
    closer.start()
    with pytest.raises(ServerError, match=r"after \d+ answers$|the server is ending"):
        done.extend(results)
    gate.open.set()
    closer.join()
    assert len(done) >= 10
    with pytest.raises(ServerError):
        edge.infer(inputs()[0])
    edge.close()


def test_closing_answers_what_is_in_flight(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    server = Server([model], engine=gate, port=0)
    server.start()
    edges = [Edge(server.address, at="input", cache=cache) for _ in range(3)]
    answers: list[Result] = []
    threads = [threading.Thread(target=lambda e=e: answers.append(e.infer(inputs()[0]))) for e in edges]
    for t in threads:
        t.start()
    assert until(lambda: sum(len(p.requests.in_flight) for p in server._peers) == 3)
    closer = threading.Thread(target=server.close, kwargs={"drain_s": 10.0})
    closer.start()
    assert until(lambda: server.draining)
    gate.open.set()
    closer.join()
    for t in threads:
        t.join()
    assert len(answers) == 3
    for e in edges:
        with pytest.raises(ServerError):
            e.infer(inputs()[0])
        e.close()


def test_closing_twice_and_never_starting_are_fine(model: Model) -> None:
    server = Server([model], engine=Gate(), port=0)
    server.close()
    with pytest.raises(UsageError, match="not started"):
        _ = server.address
    with Server([model], engine=Gate(), port=0) as server:
        server.close()
        server.close()


def test_ctrl_c_answers_what_is_in_flight_and_ends(tmp_path: Path, cache: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import signal\n"
        "from splitpoint.engines import open_engine\n"
        "from splitpoint.models import load\n"
        "from splitpoint.runtime.server.server import Server\n"
        "with Server([load('zoo:lenet5')], engine=open_engine(threads=1), port=0) as server:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: server.stop())\n"
        "    print(server.address, flush=True)\n"
        "    server.serve_forever()\n"
        "    server.close(drain_s=5)\n"
        "print('ended')\n"
    )
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        address = child.stdout.readline().strip()
        with Edge(address, cache=cache, at="pool1") as edge:
            edge.infer(np.zeros((1, 32, 32, 1), np.uint8))
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
            with pytest.raises(ServerError, match="after 1 answer"):
                edge.infer(np.zeros((1, 32, 32, 1), np.uint8))
        assert child.stdout.read() == "ended\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


# --- sharing --------------------------------------------------------------------------------------------------------


# --- the cache on disk ----------------------------------------------------------------------------------------------


_FULL = """
import hashlib, resource, sys
from dataclasses import replace
from pathlib import Path
from splitpoint.runtime.client.blob_cache import BlobCache
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
data, told = bytes(range(256)) * 4096, []
hash = hashlib.sha256(data).hexdigest()
store = BlobCache(Path(sys.argv[1]), told.append)
store.put(hash, (data[k : k + 65_536] for k in range(0, len(data), 65_536)))
assert hash in store and store.open(hash) == data
print(told)
"""


# --- greeting -------------------------------------------------------------------------------------------------------


def test_off_loopback_it_warns_and_a_used_port_is_an_error(model: Model) -> None:
    told: list[Event] = []
    insecure = ServerSecurity(insecure=True)
    with Server([model], engine=Gate(), host="0.0.0.0", port=0, security=insecure, on_event=told.append) as server:
        assert [e.kind for e in told] == ["listening", "warning"]
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ServerError, match=f"port {port} .*in use"):
            Server([model], engine=Gate(), host="0.0.0.0", port=port).start()
    told.clear()
    with Server([model], engine=Gate(), port=0, on_event=told.append):
        assert [e.kind for e in told] == ["listening"]


def test_a_connection_is_reported_when_it_comes_and_goes(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        with Edge(server.address, at="input", cache=cache) as edge:
            edge.infer(inputs()[0])
        assert until(lambda: told[-1].kind == "left")
    assert [e.kind for e in told] == ["listening", "connected", "opened", "left"]
    assert "left: 1 request, " in str(told[-1])


# --- parts ----------------------------------------------------------------------------------------------------------


def test_the_pool_runs_what_it_takes_and_measures_itself() -> None:
    pool = Compute(2, queue=3)
    gate, done = threading.Event(), threading.Semaphore(0)

    def job(waited: float) -> None:
        assert waited >= 0
        gate.wait(5)
        done.release()

    one = Client()
    assert pool.begin(one)
    assert pool.begin(one)
    assert not pool.begin(one)
    assert [pool.submit(WaitingJob(Client(), job)) for _ in range(4)] == [True, True, True, False]
    assert pool.full()
    pool.end(one, 0.5)
    pool.end(one, 0.5)
    gate.set()
    for _ in range(3):
        assert done.acquire(timeout=5)
    assert until(lambda: pool.begin(one))
    pool.end(one, 0.0)
    assert pool.retry_after_s(one) > 0
    pool.close()
    assert not pool.begin(one)
    assert not pool.submit(WaitingJob(one, job))
