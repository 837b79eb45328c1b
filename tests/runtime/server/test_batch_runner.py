"""More edges than a server can serve: they take work back, and nothing collapses. In virtual time, seeded."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from splitpoint.runtime.events import Event
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.batch_runner import BatchRunner, Queued, RunKind
from splitpoint.runtime.server.batching import Gain
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.run_limits import Like


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
    started, waited_s, ready, decoded, computed, ran = msgspec.structs.astuple(clocks[0])
    assert ran.run > 0
    assert ran.size == 4
    assert waited_s == 0.0
    assert 0.01 <= computed - decoded <= wall_s / 4, "a quarter of the batch"
    assert ready - started >= 0.03, "the rest is waiting"
    assert clocks[1:] == clocks[:1] * 3
