"""Where tails compute is a seam: a runner that is not our pool serves as well, and replies say how it ran them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
import pytest
from runners import Here
from serving import Gate, affine, evaluate, nothing_leaks, until

from splitpoint import wire
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import BusyError, EngineError, ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server.server import Server
from splitpoint.wire import BatchRun

X = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


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


# --- which requests ran as one ----------------------------------------------------------------------------------------


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
        assert len(result.raw_times) == wire.FIXED_BYTES
        assert result.times.received_s > 0
        np.testing.assert_array_equal(result.outputs["y3"], X)


def test_a_request_that_runs_alone_in_our_pool_says_so(model: Model) -> None:
    with (
        Server([model], engine=Gate(), port=0) as server,
        Edge(server.address, model, at="input", engine=Gate()) as edge,
    ):
        assert edge.infer(X).batch == BatchRun(0, 1)
