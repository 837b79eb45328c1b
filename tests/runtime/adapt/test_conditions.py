"""What requests, probes and silence make an observer believe: in virtual time, one observation after the other."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import virtual

from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.runtime.adapt.conditions import Conditions, Observer, Ran
from splitpoint.runtime.adapt.link_belief import FrameTime
from splitpoint.runtime.probe.link_probe import Glimpse

FAST, SLOW = Link(50, 200, 10), Link(2, 8, 10)


@pytest.fixture(scope="module")
def plan() -> Planner:
    return virtual.planner()


def observer(plan: Planner, link: Link = FAST) -> Observer:
    return Observer(link)


def answer(seen: Observer, plan: Planner, now_s: float, mbps: float, nbytes: int = 150_000, **more: float) -> None:
    """A request to ``input`` over a link of `mbps` and 10 ms, to a server as profiled."""
    times = {"tail_ms": plan.hosts[1].profile.whole.median, "queue_ms": 0.0, "rtt_ms": 10.0} | more
    tail = ran_there(plan, plan.graph.cut("input"), times.pop("tail_ms"))
    up = FrameTime(nbytes, 5 + nbytes * 8e-3 / mbps)
    seen.answered(now_s, up, FrameTime(4000, 5 + 4000 * 8e-3 / (4 * mbps)), tail, **times)


def ran_there(plan: Planner, cut: Cut, tail_ms: float) -> Ran:
    cloud = plan.hosts[1].profile
    return Ran(tail_ms, cloud.tail(cut).median, cloud.whole.median)


def ran_here(plan: Planner, cut: Cut, head_ms: float) -> Ran:
    edge = plan.hosts[0].profile
    return Ran(head_ms, edge.head(cut).median, edge.whole.median)


def believed(seen: Observer, now_s: float) -> float:
    return seen.conditions(now_s).link.up_mbps


def test_before_anything_is_seen_the_profiles_and_the_link_are_believed(plan: Planner) -> None:
    assert observer(plan).conditions(5.0) == Conditions(link=FAST)


def test_a_request_that_is_overdue_bounds_the_uplink_at_once(plan: Planner) -> None:
    seen = observer(plan)
    for k in range(10):
        answer(seen, plan, 0.1 * k, 50)
    seen.overdue(1.24, 150_000, 240)
    # At best 150 kB took 240 ms, 5 Mbit/s; what has lasted so long may last as long again.
    assert 2 < believed(seen, 1.24) < 3
    # The longer it is silent, the slower the link must be.
    assert believed(seen, 2.0) == pytest.approx(150_000 * 8e-3 / (1000 - 18) / 2, rel=0.05)
    # The answer says it all: a link of 1 Mbit/s, at once and not after three.
    answer(seen, plan, 2.215, 1, remote_ms=1219)
    assert believed(seen, 2.215) == pytest.approx(1, rel=0.1)


def test_a_late_answer_that_was_not_the_links_fault_leaves_the_link_as_it_was(plan: Planner) -> None:
    seen = observer(plan)
    for k in range(10):
        answer(seen, plan, 0.1 * k, 50)
    seen.overdue(1.24, 150_000, 240)
    answer(seen, plan, 1.5, 50, queue_ms=450)
    assert believed(seen, 1.5) == pytest.approx(50, rel=0.1)


@pytest.mark.parametrize("what", ["failed", "gone"])
def test_nobody_waits_for_an_answer_that_will_not_come(plan: Planner, what: str) -> None:
    seen = observer(plan)
    seen.overdue(1.0, 150_000, 240)
    assert believed(seen, 1.0) < 6
    if what == "failed":
        seen.failed(1.1)
    else:
        seen.reachable(1.1, False)
    assert believed(seen, 1.1) == 50


def test_one_slow_frame_is_no_slow_link(plan: Planner) -> None:
    seen = observer(plan)
    for k in range(10):
        answer(seen, plan, 0.1 * k, 50)
    answer(seen, plan, 1.1, 8)
    assert believed(seen, 1.1) > 40
    for k in range(3):
        answer(seen, plan, 1.3 + 0.2 * k, 8)
    assert believed(seen, 2.0) == pytest.approx(8, rel=0.2)


def test_one_fast_frame_is_a_fast_link(plan: Planner) -> None:
    """What is early cannot be otherwise. A small probe shows less than a large request."""
    seen = observer(plan, SLOW)
    for k in range(10):
        answer(seen, plan, k, 2)
    seen.probed(10, Glimpse(10.0, 2500, 5 + 0.4, 60, 5.0))
    assert 8 < believed(seen, 10) < 50
    answer(seen, plan, 11, 50)
    assert believed(seen, 11) == pytest.approx(50, rel=0.25)


def test_a_shorter_round_trip_is_not_taken_for_a_fast_link(plan: Planner) -> None:
    """From 60 to 10 ms: the frames seem to have been there before they were sent."""
    seen = observer(plan, Link(10, 40, 60))
    for k in range(5):
        seen.probed(0.1 * k, Glimpse(60.0, 0, 30.0, 0, 30.0))
    seen.answered(1.0, FrameTime(2500, 5 + 2), FrameTime(60, 5), ran_there(plan, plan.graph.cut("input"), 8.0), 0.0)
    assert believed(seen, 1.0) < 20


def test_a_pipelined_stream_is_not_a_slow_link(plan: Planner) -> None:
    """Each request waits for the one before it on the uplink: four are always on their way."""
    seen, cut = observer(plan), plan.graph.cut("input")
    on_link_s = 150_000 * 8e-6 / 50
    for k in range(4, 60):
        arrived_s = k * on_link_s + 0.005
        handed_s = (k - 3) * on_link_s
        now_s = arrived_s + 0.008 + 0.005
        seen.answered(
            now_s, FrameTime(150_000, (arrived_s - handed_s) * 1e3), FrameTime(60, 5), ran_there(plan, cut, 8.0), 0.0,
            rtt_ms=10, remote_ms=(now_s - handed_s) * 1e3,
        )  # fmt: skip
    assert believed(seen, 2.0) == pytest.approx(50, rel=0.1)


def test_slowdowns_are_medians_and_drift_back_to_the_profile(plan: Planner) -> None:
    seen, whole = observer(plan), plan.graph.cut("output")
    times = plan.hosts[0].profile.whole.median, plan.hosts[1].profile.whole.median
    for k, outlier in enumerate((1, 1, 30, 1, 1)):
        seen.computed(k, ran_here(plan, whole, 1.8 * times[0] * outlier))
        answer(seen, plan, k, 50, tail_ms=3 * times[1] * outlier)
    found = seen.conditions(4)
    assert found.device == pytest.approx(1.8)
    assert found.server == pytest.approx(3)
    later = [seen.conditions(4 + s) for s in (5, 25, 60, 600)]
    assert later[0].device == pytest.approx(1.8)
    assert all(a.device >= b.device and a.server > b.server for a, b in pairwise(later))
    assert later[-1].device == pytest.approx(1, abs=0.01)
    assert later[-1].server == pytest.approx(1, abs=0.01)


def test_one_slow_run_is_not_a_slow_machine(plan: Planner) -> None:
    """The first run of a session allocates: it is believed when a second one says the like."""
    seen, whole = observer(plan), plan.graph.cut("output")
    time_ms = plan.hosts[0].profile.whole.median
    seen.computed(0.0, ran_here(plan, whole, 5 * time_ms))
    assert seen.conditions(0.0).device == 1.0
    seen.computed(0.1, ran_here(plan, whole, 2 * time_ms))
    assert seen.conditions(0.1).device == pytest.approx(2)
    for k in (20, 40, 60):  # a request takes long there, and they are far apart
        seen.computed(k, ran_here(plan, whole, 30 * time_ms))
    assert seen.conditions(60).device == pytest.approx(30)


def test_a_short_segment_says_little_of_a_machine(plan: Planner) -> None:
    """Half a millisecond of waking up beside half a millisecond of computing is not a server of half the speed."""
    seen, cloud = observer(plan), plan.hosts[1].profile
    last = plan.graph.prefixes()[-2]
    for k in range(5):
        answerless = 2 * cloud.tail(last).median
        tail = ran_there(plan, last, answerless)
        seen.answered(k, FrameTime(20_000, 8.2), FrameTime(4000, 5.2), tail, 0.0, rtt_ms=10)
    assert cloud.tail(last).median < 0.1 * cloud.whole.median
    assert seen.conditions(4).server < 1.4


def test_the_queue_is_that_of_the_server_and_ones_own_and_is_forgotten_soon(plan: Planner) -> None:
    seen = observer(plan)
    for k in range(5):
        answer(seen, plan, k, 50, queue_ms=60, load_queue_ms=20)
    assert seen.conditions(4).queue_ms == 40
    assert seen.conditions(30).queue_ms < 1


def test_what_a_request_costs_beyond_the_plan_is_measured(plan: Planner) -> None:
    seen = observer(plan)
    stages = 5 + 24 + 8 + 5 + 4000 * 8e-3 / 200
    for k in range(10):
        answer(seen, plan, k, 50, remote_ms=stages + 7.0, decode_ms=2.0)
    assert seen.conditions(10).overhead_ms == pytest.approx(5, abs=0.7)


def test_a_server_that_mostly_fails_is_said_to_and_forgiven(plan: Planner) -> None:
    seen = observer(plan)
    answer(seen, plan, 0, 50)
    seen.failed(1)
    assert seen.conditions(1).failing < 1
    seen.failed(2)
    seen.failed(3)
    assert seen.conditions(3).failing == 1
    assert seen.conditions(60).failing < 0.01


def test_a_loaded_server_is_the_likelier_reason_for_silence(plan: Planner) -> None:
    """Its queue is longer than the upload: the link is not blamed, but the answer is looked at as closely."""
    seen = observer(plan)
    for k in range(10):
        answer(seen, plan, 0.1 * k, 50, queue_ms=80)
    seen.overdue(1.4, 150_000, 400)
    assert believed(seen, 1.4) == pytest.approx(50, rel=0.1)
    answer(seen, plan, 2.0, 2, remote_ms=1000)
    assert believed(seen, 2.0) == pytest.approx(2, rel=0.1)


def test_a_noisy_link_is_believed_to_be_its_usual_self(plan: Planner) -> None:
    """One frame in six is 1.6 times as fast, or as slow: none of them is news."""
    seen, random = observer(plan, Link(20, 80, 10)), Random(4)
    rates = []
    for k in range(400):
        answer(seen, plan, k / 20, 20 * random.lognormvariate(0, 0.5), nbytes=32_000)
        rates.append(believed(seen, k / 20))
    usual = sorted(rates[50:])
    assert 12 < usual[len(usual) // 10] < usual[-len(usual) // 10] < 33


def test_those_that_ran_as_one_say_nothing_of_the_servers_speed() -> None:
    seen = Observer(FAST, measured=True, hasty=False)

    def answered(now_s: float, ratio: float, alone: bool = True) -> None:
        tail = Ran(ratio * 10.0, 10.0, 10.0, alone)
        seen.answered(now_s, FrameTime(1000, 1.0), FrameTime(100, 1.0), tail, queue_ms=0.0)

    for _ in range(3):
        answered(1.0, 0.2, alone=False)
    for now_s, ratio in ((2.0, 3.0), (3.0, 2.0)):
        answered(now_s, ratio)
    assert seen.conditions(3.0).server == 1.0, "two are too few"
    answered(4.0, 5.0)
    assert seen.conditions(4.0).server == pytest.approx(3.0)
