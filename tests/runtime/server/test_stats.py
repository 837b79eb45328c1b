"""A server's numbers add up, whatever became of its requests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from runners import Here
from serving import Gate, affine, until

from splitpoint import wire
from splitpoint.errors import BusyError, EngineError, InputError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import OnEvent
from splitpoint.runtime.histogram import BOUNDS_S
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.stats import STAGES, RunnerStats, ServerStats
from splitpoint.wire import BatchRun

X = np.ones((1, 1024), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def check(stats: ServerStats) -> None:
    """What always holds."""
    over = stats.answered + sum(stats.refused.values()) + stats.failed + stats.dropped
    assert stats.received == over + stats.in_flight
    assert sum(size * count for size, count in stats.batches.items()) <= stats.answered
    assert set(stats.stages) == set(STAGES)
    assert all(histogram.count == stats.answered for histogram in stats.stages.values())


def test_answers_refusals_and_failures_are_each_counted_once(model: Model) -> None:
    made: list[Here] = []

    def runner(tell: OnEvent) -> Here:
        made.append(Here(Gate(), tell, took_s=(1e-3, 2e-3, 4e-3)))
        return made[-1]

    server = Server([model], engine=Gate(), port=0, runner=runner)
    with pytest.raises(UsageError, match="not started"):
        server.stats()
    with server:
        assert server.stats() == ServerStats(
            0, 0, {}, 0, 0, 0, {}, server.stats().stages, runner=RunnerStats(workers=1, utilisation=0.25)
        )
        with Edge(server.address, model, at="input") as edge:
            for _ in range(3):
                edge.infer(X)
            made[0].has_room = False
            with pytest.raises(BusyError):
                edge.infer(X)
            made[0].has_room = True
            made[0].fails = RuntimeError("no kernel")
            for _ in range(2):
                with pytest.raises(EngineError):
                    edge.infer(X)
            made[0].fails = InputError("not to its liking")
            with pytest.raises(InputError):
                edge.infer(X)
            made[0].fails = None
            assert until(lambda: server.stats().received == 7 and not server.stats().in_flight)
            stats = server.stats()
            check(stats)
            assert (stats.answered, stats.failed, stats.dropped) == (3, 2, 0)
            assert stats.refused == {"busy": 1, "input": 1}
            assert stats.batches == {1: 3}
            assert stats.request_bytes == 0
            assert (stats.connections, stats.runner.tails, stats.opening) == (1, 1, 0)
            assert 7 * X.nbytes < stats.bytes_in < 8 * X.nbytes
            assert 3 * X.nbytes < stats.bytes_out < 4 * X.nbytes
            compute = stats.stages["compute"]
            assert compute.total_s == pytest.approx(3 * 4e-3)
            assert compute.quantile(0.5) == next(bound for bound in BOUNDS_S if bound > 4e-3)
            assert stats.stages["queue"].total_s == pytest.approx(3 * 2e-3)
        assert until(lambda: not server.stats().connections)
        after = server.stats()
        assert after.bytes_in >= stats.bytes_in
        assert after.bytes_out >= stats.bytes_out
    assert server.stats().answered == 3, "they are counted since it was made"


def test_what_is_computed_as_one_is_counted_as_one(model: Model) -> None:
    runner = partial(Here, Gate(), run=BatchRun(9, 2))
    with (
        Server([model], engine=Gate(), port=0, runner=runner) as server,
        Edge(server.address, model, at="input") as edge,
    ):
        for _ in range(4):
            edge.infer(X)
        assert until(lambda: server.stats().answered == 4)
        assert server.stats().batches == {2: 2}
        check(server.stats())


def test_what_a_client_leaves_behind_is_dropped(model: Model) -> None:
    gate = Gate()
    with Server([model], engine=gate, port=0, max_batch=1) as server:
        with Edge(server.address, model, at="input", engine=Gate()) as edge:
            edge.infer(X)
            gate.entered.acquire()
            gate.open.clear()
            channel, packer = edge._channel, wire.Packer(wire.Kind.INFER, lambda t: wire.Infer(1, t))
            for _ in range(3):
                id = channel.reserve()
                channel.send(id, packer.pack(id, [X], (), (), wire.PIPELINED))
            assert until(lambda: server.stats().in_flight == 3)
            gate.entered.acquire()  # one runs, two wait
            waiting = server.stats()
            check(waiting)
            assert waiting.runner.waiting == 2
            assert waiting.request_bytes > 3 * X.nbytes
            channel.abort("gave up")
            assert until(lambda: server.stats().dropped == 2)
            gate.open.set()
        assert until(lambda: not server.stats().in_flight)
        stats = server.stats()
        check(stats)
        assert (stats.received, stats.answered, stats.dropped) == (4, 2, 2)
        assert stats.runner.compiled - stats.runner.evicted == stats.runner.tails
