"""A server: how it begins and ends, where it accepts from, and whose tails compute."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread

import certificates
import numpy as np
import pytest
from runners import Here
from serving import Gate, affine, evaluate, nothing_leaks, until

from splitpoint import wire
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import (
    BusyError,
    EngineError,
    ServerError,
    UnreachableError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.server import Server
from splitpoint.security import ServerSecurity
from splitpoint.tensors import Array
from splitpoint.transports import Listener, listen
from splitpoint.wire import BatchRun

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


# --- its end --------------------------------------------------------------------------------------------------------


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
    assert until(lambda: server.ledger.draining)
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


# --- listeners and runners ------------------------------------------------------------------------------------------


X = np.ones((1, 1024), np.float32)


def three(name: str) -> Sequence[Listener]:
    return (
        listen("127.0.0.1", 0),
        listen("127.0.0.1", 0, security=certificates.server()),
        listen(f"memory://{name}"),
    )


def test_one_server_answers_over_tcp_tls_and_memory_at_once(model: Model, tmp_path: Path) -> None:
    told: list[Event] = []
    with nothing_leaks():
        with Server([model], engine=Gate(), listeners=three(tmp_path.name), on_event=told.append) as server:
            plain, encrypted, here = server.addresses
            assert server.address == plain
            assert here == f"memory://{tmp_path.name}"
            edges = [
                Edge(plain, model, at="input", engine=Gate()),
                Edge(encrypted, model, at="input", engine=Gate(), security=certificates.client()),
                Edge(here, model, at="input", engine=Gate()),
            ]
            for edge in edges:
                np.testing.assert_array_equal(edge.infer(X).outputs["y3"], X)
            assert server.stats().connections == 3
            assert [e.fields["address"] for e in told if e.kind == "listening"] == [plain, encrypted, here]
            assert len({e.fields["peer"] for e in told if e.kind == "connected"}) == 3
            for edge in edges:
                edge.close()
            assert until(lambda: not server.stats().connections)
        with pytest.raises(UnreachableError):
            Edge(here, model, at="input", engine=Gate())


def test_memory_is_a_host_like_any_other(model: Model, tmp_path: Path) -> None:
    with nothing_leaks():
        server = Server([model], engine=Gate(), host=f"memory://{tmp_path.name}")
        for _ in range(2):  # and it can start again
            with server, Edge(server.address, model, at="input", engine=Gate(), fallback="local") as edge:
                np.testing.assert_array_equal(edge.infer(X).outputs["y3"], X)


def test_listeners_that_are_given_are_closed_with_it_and_are_good_for_one_start(model: Model, tmp_path: Path) -> None:
    server = Server([model], engine=Gate(), listeners=[listen(f"memory://{tmp_path.name}")])
    with server:
        pass
    listen(f"memory://{tmp_path.name}").close()
    with pytest.raises(UsageError, match="has closed its listeners"):
        server.start()


def test_one_that_strangers_can_reach_is_refused_and_all_are_closed(model: Model, tmp_path: Path) -> None:
    listeners = [listen(f"memory://{tmp_path.name}"), listen("0.0.0.0", 0)]
    with nothing_leaks():
        server = Server([model], engine=Gate(), listeners=listeners)
        with pytest.raises(UsageError, match="other machines could use this server, without encryption or a token"):
            server.start()
    listen(f"memory://{tmp_path.name}").close()


def test_a_token_is_asked_for_whatever_the_listener(model: Model, tmp_path: Path) -> None:
    told: list[Event] = []
    security = ServerSecurity(token=certificates.TOKEN)
    listener = listen(f"memory://{tmp_path.name}")
    with Server([model], engine=Gate(), listeners=[listener], security=security, on_event=told.append) as server:
        with pytest.raises(ServerError, match="wants a token"):
            Edge(server.address, model, at="input", engine=Gate())
        with Edge(
            server.address, model, at="input", engine=Gate(), security=certificates.Security(token=certificates.TOKEN)
        ) as edge:
            edge.infer(X)
        assert until(lambda: server.stats().turned_away == 1)
    assert [e.fields["why"] for e in told if e.kind == "refused"]


def ort() -> Engine:
    return open_engine(threads=1)


def test_another_runner_computes_what_is_asked_for(model: Model) -> None:
    made: list[Here] = []
    told: list[Event] = []

    def runner(tell: OnEvent) -> Here:
        made.append(Here(ort(), tell))
        return made[-1]

    with (
        nothing_leaks(),
        Server([model], engine=ort(), port=0, runner=runner, on_event=told.append) as server,
        Edge(server.address, model, at="add1", engine=ort()) as edge,
    ):
        result = edge.infer(X)
        np.testing.assert_allclose(result.outputs["y3"], evaluate(model, X), rtol=1e-5)
        assert result.times.utilisation == 0.25
        assert [tail.segment.key for tail in made[0].opened] == [model.tail(model.graph.cut("add1")).key]
        made[0].fails = RuntimeError("secret words")
        with pytest.raises(EngineError, match="the server's log says more"):
            edge.infer(X)
        made[0].fails, made[0].has_room = None, False
        with pytest.raises(BusyError, match="no room"):
            edge.infer(X)
        assert server.stats().runner.tails == 1
    assert until(lambda: made[0].opened[0].closed)
    assert made[0].closed == ["end", "close"]
    assert any("secret words" in event.sentence for event in told if event.kind == "failed")
    assert any(event.fields.get("peer") for event in told if event.kind == "notice"), "it tells through the server"


def test_each_start_has_a_runner_of_its_own(model: Model) -> None:
    made: list[Here] = []

    def runner(tell: OnEvent) -> Here:
        made.append(Here(Gate(), tell))
        return made[-1]

    server = Server([model], engine=Gate(), port=0, runner=runner)
    for count in (1, 2):
        with server, Edge(server.address, model, at="input", engine=Gate()) as edge:
            edge.infer(X)
        assert len(made) == count


def test_a_runner_that_cannot_be_made_is_the_servers_error_and_leaves_nothing(model: Model) -> None:
    def runner(tell: OnEvent) -> Here:
        raise ServerError("the other machine is not there")

    with nothing_leaks():
        server = Server([model], engine=Gate(), port=0, runner=runner)
        with pytest.raises(ServerError, match="other machine"):
            server.start()


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("run", [BatchRun(), BatchRun(7, 2), BatchRun(0xFFFFFFFF, 64)])
def test_a_reply_says_which_run_it_was_part_of(model: Model, run: BatchRun, checksum: bool) -> None:
    with (
        Server([model], engine=Gate(), port=0, runner=partial(Here, Gate(), run=run)) as server,
        Edge(server.address, model, at="input", engine=Gate(), wire=WireSettings(checksum=checksum)) as edge,
    ):
        for _ in range(3):
            result = edge.infer(X)
            assert result.batch == run
            assert result.outputs["y3"].shape == (1, 1024)


def older() -> tuple[str, ...]:
    """The features of a side of version 1.2."""
    return tuple(name for name in wire.features() if name != wire.BATCH)


@pytest.mark.parametrize("old", ["client", "server"])
def test_an_older_peer_neither_gets_nor_gives_it(model: Model, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    runner = partial(Here, Gate(), run=BatchRun(7, 2))
    features, before = wire.features, older()
    with Server([model], engine=Gate(), port=0, runner=runner) as server:
        if old == "server":
            # WELCOME is made in a thread of the server's, HELLO in this one.
            monkeypatch.setattr(wire, "features", lambda: features() if current_thread() is main_thread() else before)
        else:
            monkeypatch.setattr(wire, "features", lambda: before)
        with Edge(server.address, model, at="input", engine=Gate()) as edge:
            result = edge.infer(X)
            assert wire.BATCH not in edge._channel.welcome.features
        assert result.batch is None
        assert len(result.raw_times) == wire.times_bytes(())
        assert result.times.received_s > 0
        np.testing.assert_array_equal(result.outputs["y3"], X)


def test_a_request_that_runs_alone_in_our_pool_says_so(model: Model) -> None:
    with (
        Server([model], engine=Gate(), port=0) as server,
        Edge(server.address, model, at="input", engine=Gate()) as edge,
    ):
        assert edge.infer(X).batch == BatchRun(0, 1)
