"""More edges than a server can serve: they take work back, and nothing collapses. In virtual time, seeded."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import virtual
from virtual import Network, Runner, World, always

from splitpoint import wire
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.batch_runner import BatchRunner, Queued, RunKind, _feed
from splitpoint.runtime.server.batching import Gain
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.requests import InferRequest, Requests
from splitpoint.runtime.server.run_limits import Like
from splitpoint.wire import Kind

#: Answers a second of a server and of a device.
SERVER, DEVICE = 20.0, 2.5
SECONDS, FROM_S = 20.0, 10.0


def crowd(count: int, period_s: float) -> tuple[float, float]:
    """Answers a second of `count` edges that adapt, once they have settled; and those that the server computed."""
    world = World(count)
    plan = virtual.planner(1000 / DEVICE, 1000 / SERVER)
    edges = [Runner(world, Network(always(50)), plan, seed=k, period_s=period_s) for k in range(count)]
    world.run(SECONDS)
    done = [d for e in edges for d in e.done if FROM_S <= d.began_s + d.ms * 1e-3 < SECONDS]
    there = [d for d in done if d.label.startswith("all on the server") and not d.late]
    return len(done) / (SECONDS - FROM_S), len(there) / (SECONDS - FROM_S)


@pytest.mark.parametrize(("period_s", "counts"), [(0.0, (2, 6, 16)), (0.5, (10, 24))])
def test_edges_beyond_what_saturates_a_server_take_work_back_and_no_fewer_are_answered(
    period_s: float, counts: tuple[int, ...]
) -> None:
    """Back to back, two edges are as much as the server can do; with a camera's two requests a second, ten."""
    rates = [crowd(count, period_s) for count in counts]
    peak = 0.0
    for rate, _ in rates:
        peak = max(peak, rate)
        assert rate >= 0.9 * peak
    total, there = rates[-1]
    assert total > 1.2 * there > 0, "some is taken back, not all"


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
        feed=lambda: {"x": np.zeros((1, 3), np.float32)},
        answer=lambda outputs, marks: clocks.append(marks),
    )
    gain = Gain(4)
    gain.judge("equal", "")
    tail: Any = None
    queued = Queued(request, tail, RunKind([], Like(0.0), gain))
    began = time.perf_counter()
    BatchRunner(tails, watch, told.append)([WaitingJob(Client(), lambda waited: None, gain, queued) for _ in range(4)])
    wall_s = time.perf_counter() - began
    assert len(clocks) == 4
    started, waited_s, ready, decoded, computed, ran = clocks[0]
    assert ran.run > 0
    assert ran.size == 4
    assert waited_s == 0.0
    assert 0.01 <= computed - decoded <= wall_s / 4, "a quarter of the batch"
    assert ready - started >= 0.03, "the rest is waiting"
    assert clocks[1:] == clocks[:1] * 3


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
