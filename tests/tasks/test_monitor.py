"""What a queue's answers show, and where their time went: in virtual time, without a server."""

from __future__ import annotations

import struct
from math import inf
from typing import Any

import pytest
import virtual

from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.probe.link_probe import Glimpse
from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.runtime.result import Marks, Result
from splitpoint.tasks.monitor import EVERY_S, QueueMonitor
from splitpoint.wire import BatchRun

LINK = Link(10, 40, 20)
ALONE = BatchRun()


class Edge:
    """Remembers with how many bytes it was asked to probe, and sees a link of 5 Mbit/s."""

    def __init__(self) -> None:
        self.probes: list[int] = []
        self.doubted = 0

    def doubt(self) -> None:
        self.doubted += 1

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse:
        self.probes.append(nbytes)
        return Glimpse(20.0, nbytes, nbytes * 8e-3 / 5 + 10, 60, 10.0)


@pytest.fixture(scope="module")
def plan() -> Planner:
    return virtual.planner()


class Queue:
    """A monitor on a clock that is the test's, and requests that go to the server whole."""

    def __init__(self, plan: Planner) -> None:
        self.plan, self.now_s, self.edge = plan, 100.0, Edge()
        self.monitor = QueueMonitor(LINK, clock=lambda: self.now_s)
        self.option: Option = plan.price(plan.graph.prefixes()[0], ["raw"], LINK)

    def began(self, id: int, due_s: float = inf) -> None:
        self.monitor.began(id, self.edge, self.option, due_s)  # type: ignore[arg-type]

    def answered(
        self, id: int, handed_s: float, arrived_s: float, server_s: float, run: BatchRun | None = ALONE
    ) -> Any:
        """The answer to a request that was there at `arrived_s`; the way back is half of the round trip. `run` is
        which of the server's computed it, None if it does not say."""
        times = struct.pack("<8d", arrived_s, 0, 0, 0, server_s, 0, 0, 0)
        if run is not None:
            times += struct.pack("<II", *run)
        ended_s = arrived_s + server_s + 0.01
        result = Result(
            {}, "input", Marks(handed_s, handed_s, handed_s, ended_s), up_nbytes=self.option.up_nbytes,
            down_nbytes=60, raw_times=times, offset=Offset(0.0, 0.01, handed_s),
        )  # fmt: skip
        whole_ms = tuple(host.profile.whole.median for host in self.plan.hosts)
        return self.monitor.answered(id, self.option, whole_ms, result)


def test_a_connection_is_tried_while_an_answer_is_late(plan: Planner) -> None:
    queue = Queue(plan)
    for id, due_s in ((1, 101.0), (2, 103.0), (3, 101.0)):
        queue.began(id, due_s)
    tried = []
    for now_s in (100.5, 101.5, 102.5):
        queue.now_s = now_s
        queue.monitor.look(queue.edge)  # type: ignore[arg-type]
        tried.append(queue.edge.doubted)
    assert tried == [0, 1, 2], "once for all of one edge"
    queue.answered(1, 100.0, 102.0, 0.01)
    queue.monitor.failed(3)
    queue.monitor.look(queue.edge)  # type: ignore[arg-type]
    assert queue.edge.doubted == 2


def test_a_request_behind_another_waits_and_the_link_is_not_slower_for_it(plan: Planner) -> None:
    queue = Queue(plan)
    on_link_s = LINK.up_ms(queue.option.up_nbytes) * 1e-3
    for id in range(3):
        queue.began(id)
    spent = [queue.answered(k, 100.0, 100.01 + (k + 1) * on_link_s, 0.01) for k in range(3)]
    for one in spent:
        assert one.transfer == pytest.approx(on_link_s * 1e3 + 20, rel=0.01), "what it waited for others is not its own"
    queue.now_s = 110.0
    assert queue.monitor.conditions.link.up_mbps == pytest.approx(10, rel=0.05)
    assert queue.monitor.link_busy_s == pytest.approx(3 * on_link_s, rel=0.01)


def test_a_server_slower_than_its_profile_is_believed_to_be_after_three_runs(plan: Planner) -> None:
    queue, server_s = Queue(plan), 3e-3 * plan.hosts[1].profile.whole.median
    seen = []
    for k in range(3):
        queue.began(k)
        queue.answered(k, 100.0 + k, 100.2 + k, server_s * (1 + 0.01 * k))
        queue.now_s = 101.0 + k
        seen.append(queue.monitor.conditions.server)
    assert seen[:2] == [1.0, 1.0]
    assert seen[2] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("run", [BatchRun(7, 2), None])
def test_runs_that_were_a_batch_or_may_have_been_say_nothing_of_the_server(plan: Planner, run: BatchRun | None) -> None:
    """None: an older server does not say which requests ran as one."""
    queue, server_s = Queue(plan), 3e-3 * plan.hosts[1].profile.whole.median
    for k in range(5):
        queue.began(k)
        queue.answered(k, 100.0 + k, 100.2 + k, server_s, run)
    assert queue.monitor.conditions.server == 1.0


def test_an_idle_link_is_probed_and_one_in_use_is_not(plan: Planner) -> None:
    queue = Queue(plan)
    queue.began(1)
    for _ in range(5):
        queue.now_s += EVERY_S
        queue.monitor.look(queue.edge)  # type: ignore[arg-type]
    assert queue.edge.probes == []
    queue.monitor.failed(1)
    for _ in range(12):
        queue.now_s += EVERY_S
        queue.monitor.look(queue.edge)  # type: ignore[arg-type]
    assert queue.edge.probes
    assert sum(queue.edge.probes) <= 0.01 * 10e6 / 8 * 17
    assert queue.monitor.conditions.link.up_mbps == pytest.approx(5, rel=0.3), "small messages show so much"


def test_what_others_cost_at_the_server_is_part_of_the_conditions(plan: Planner) -> None:
    queue = Queue(plan)
    queue.monitor.loaded(8.0)
    queue.monitor.loaded(3.0)
    assert queue.monitor.conditions.queue_ms == 8.0
