"""What is closed, forgotten or used afterwards: one clear error, and no thread, socket or warning too many."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Gate, affine, evaluate
from serving import until as until_in

from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.server.server import Server
from splitpoint.survey import survey
from splitpoint.tasks.fleet import Fleet
from splitpoint.tensors import Array

FALLBACKS = ["error", "wait", "local"]
PATIENT = Patience(first_s=20.0, least_s=20.0, pause_s=0.01, longest_pause_s=0.02)
X: Array = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def ort() -> Any:
    return open_engine(threads=1)


def until(condition: object) -> bool:
    return until_in(condition, 20.0)


# --- after close ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("at", ["input", "add1", "output"])
def test_use_after_close_is_one_error_whatever_the_fallback(model: Model, fallback: str, at: str) -> None:
    with Server([model], engine=ort(), port=0) as server:
        edge = Edge(server.address, model, at=at, fallback=fallback, engine=ort())
        edge.infer(X)
        known = survey(edge, ort(), budget_s=0.1)
        begun = edge.stream([X] * 3)
        edge.close()
        edge.close()
        uses: list[Callable[[], object]] = [
            lambda: edge.infer(X),
            lambda: edge.infer(X, at="add0"),
            lambda: edge.stream([X]),
            lambda: list(begun),
            lambda: edge.switch("add2"),
            lambda: edge.warm("add2"),
            lambda: edge.forget(),
            lambda: edge.ping(),
            lambda: edge.pull(),
            lambda: edge.shadow(X, "add1"),
            lambda: edge.measure_link(0.3),
            lambda: edge.profile_server(0.1),
            lambda: edge.glimpse(1000, 1.0),
            lambda: edge.adapt(known.planner(model.graph), known.link),
        ]
        for use in uses:
            with pytest.raises(ServerError, match=r"^this Edge is closed$"):
                use()
    with Local(model, ort()) as whole:
        whole.infer({"x": X})
    for use in (lambda: whole.infer({"x": X}), lambda: whole.stream([])):
        with pytest.raises(UsageError, match=r"^this Local is closed$"):
            use()


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_closing_ends_requests_that_are_under_way(model: Model, fallback: str) -> None:
    gate, said = Gate(), []
    with Server([model], engine=gate, port=0, workers=4) as server:
        edge = Edge(server.address, model, at="add1", fallback=fallback, engine=ort(), patience=PATIENT)
        edge.infer(X)
        gate.entered.acquire(timeout=10)
        gate.open.clear()

        def ask() -> None:
            try:
                while True:
                    edge.infer(X)
            except ServerError as exc:
                said.append(str(exc))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert gate.entered.acquire(timeout=10)  # one is at the server, which does not answer
        closers = [threading.Thread(target=edge.close) for _ in range(2)]
        for closer in closers:
            closer.start()
        for thread in (*threads, *closers):
            thread.join(10)
            assert not thread.is_alive()
        assert said == ["this Edge is closed"] * 4
        gate.open.set()


# --- forgotten --------------------------------------------------------------------------------------------------------


def forget(make: Callable[[], object], many: int = 3) -> list[str]:
    """What is warned of when nothing refers to what `make` makes, once all of it has ended."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(many):
            make()
        gc.collect()
    return [str(w.message) for w in told if w.category is ResourceWarning]


@pytest.mark.parametrize("how", [*FALLBACKS, "adapting", "early"])
def test_a_forgotten_edge_ends_its_threads_and_its_connection(model: Model, how: str) -> None:
    with Server([model], engine=ort(), port=0) as server:
        before = set(threading.enumerate())
        fallback = how if how in FALLBACKS else "local"

        def make() -> None:
            address = "127.0.0.1:1" if how == "early" else server.address
            edge = Edge(address, model, at="add1", fallback=fallback, engine=ort())
            edge.infer(X)
            if how == "adapting":
                known = survey(edge, ort(), budget_s=0.1)
                edge.adapt(known.planner(model.graph), known.link)
                edge.infer(X)

        assert forget(make) == ["unclosed Edge: call close(), or use it in a with statement"] * 3
        assert until(lambda: not server._peers), "the server has noticed"
        own = ("peer", "compile", "profile")
        assert until(lambda: not [t for t in threading.enumerate() if t not in before and not t.name.startswith(own)])


def test_what_else_is_forgotten(model: Model) -> None:
    def served() -> None:
        server = Server([model], engine=ort(), port=0)
        server.start()
        with Edge(server.address, model, at="add1", engine=ort()) as edge:
            edge.infer(X)
            threads = [peer.thread for peer in server._peers]
        for thread in threads:  # while a device is connected, the server is in use
            thread.join(10)

    (said,) = set(forget(served))
    assert said == "unclosed Server: call close(), or use it in a with statement"
    assert forget(lambda: Local(model, ort())) == ["unclosed Local: call close(), or use it in a with statement"] * 3
    with Server([model], engine=ort(), port=0) as server:

        def fleet() -> None:
            Fleet(server.address, engine=ort()).add(("affine", ""), model)

        assert "unclosed Fleet: call close(), or use it in a with statement" in forget(fleet)
        assert until(lambda: not server._peers)


def test_nothing_is_said_of_what_was_closed_or_never_begun(model: Model) -> None:
    def make() -> None:
        with Server([model], engine=ort(), port=0) as server, Edge(server.address, model, engine=ort()) as edge:
            edge.infer(X)
        Server([model], engine=ort(), port=0)
        with pytest.raises(UsageError):
            Edge("127.0.0.1:1", model, fallback="sometimes")
        with pytest.raises(ServerError):
            Edge("127.0.0.1:1", model)

    assert forget(make) == []


# --- a server that starts again ---------------------------------------------------------------------------------------


def test_a_server_that_was_closed_starts_again_at_its_port(model: Model) -> None:
    server = Server([model], engine=ort(), port=0)
    server.start()
    address = server.address
    with Edge(address, model, at="add1", fallback="wait", engine=ort(), patience=PATIENT) as edge:
        for _ in range(3):
            np.testing.assert_allclose(edge.infer(X).outputs["y3"], evaluate(model, X), rtol=1e-4, atol=1e-5)
            server.close()
            server.close()
            with pytest.raises(UsageError, match="not started"):
                server.address  # noqa: B018
            server.start()
            assert server.address == address
        forever = threading.Thread(target=server.serve_forever)
        forever.start()
        edge.infer(X)
        server.stop()
        forever.join(10)
        assert not forever.is_alive()
    server.close()


def test_a_server_is_started_and_closed_by_several_threads(model: Model) -> None:
    before = set(threading.enumerate())
    server = Server([model], engine=ort(), port=0)
    raised: list[Exception] = []

    def go() -> None:
        for _ in range(10):
            try:
                server.start()
                server.close()
            except Exception as exc:
                raised.append(exc)

    threads = [threading.Thread(target=go, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert raised == []
    assert set(threading.enumerate()) <= before
    with server, Edge(server.address, model, at="add1", engine=ort()) as edge:
        np.testing.assert_allclose(edge.infer(X).outputs["y3"], evaluate(model, X), rtol=1e-4, atol=1e-5)


# --- no thread is left ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 2])
def test_without_a_thread_there_is_one_error_and_nothing_is_left(
    model: Model, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, started = set(threading.enumerate()), threading.Thread.start
    left = [most]

    def start(thread: threading.Thread) -> None:
        if thread is not threading.current_thread() and left[0] <= 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        started(thread)

    server = Server([model], engine=ort(), port=0, workers=2)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(ServerError, match="may start no more threads"):
            server.start()
        server.close()
    assert set(threading.enumerate()) <= before
    with server:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", lambda thread: _only_the_server_s(thread, started))
            with pytest.raises(ServerError, match="may start no more threads"):
                Edge(server.address, model, at="add1", fallback="local", engine=ort())
        with Edge(server.address, model, at="add1", engine=ort()) as edge:
            np.testing.assert_allclose(edge.infer(X).outputs["y3"], evaluate(model, X), rtol=1e-4, atol=1e-5)


def _only_the_server_s(thread: threading.Thread, start: Callable[[threading.Thread], None]) -> None:
    if not thread.name.startswith(("peer", "compile")):
        raise RuntimeError("can't start new thread")
    start(thread)
