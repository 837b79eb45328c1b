"""Measuring with what requests leave: rests in virtual time, and the scheduling class of a real thread."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from splitpoint.engines import open_engine
from splitpoint.models import load
from splitpoint.profile.measure import profile_model
from splitpoint.profile.spare import Enough, Spare, aside, longest_s


class Waits(threading.Event):
    """An event whose waits pass at once, in virtual seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now_s += timeout or 0.0
        return self.is_set()


def test_it_works_for_a_tenth_of_the_time_while_requests_come() -> None:
    closed, asked = Waits(), 0
    spare = Spare(lambda: asked, closed, lambda: closed.now_s)
    closed.now_s += 2.0
    spare.proceed()
    assert closed.now_s == 2.0, "nobody asked"
    closed.now_s += 1.0
    asked = 1
    spare.proceed()
    assert closed.now_s == 12.0
    assert spare.clock() == 3.0, "rest is no work"
    closed.now_s += 1.0
    spare.proceed()
    assert closed.now_s == 13.0, "nobody asked since"


def test_a_wait_for_a_core_is_not_rested_for(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, asked, waited_s = Waits(), 0, 0.0
    monkeypatch.setattr(Spare, "_waited_s", lambda spare: waited_s)
    spare = Spare(lambda: asked, closed, lambda: closed.now_s)
    closed.now_s, waited_s, asked = 5.0, 4.0, 1
    spare.proceed()
    assert closed.now_s == 14.0, "one second of work"


def test_under_requests_without_end_it_ends() -> None:
    closed, asked = Waits(), 0
    spare = Spare(lambda: asked, closed, lambda: closed.now_s)
    spare.begin(10.0)
    with pytest.raises(Enough):  # noqa: PT012 - until it does
        while True:
            closed.now_s += 1.0
            asked += 1
            assert not spare.over
            spare.proceed()
    assert spare.over
    assert longest_s(10.0) <= closed.now_s <= longest_s(10.0) + 10.0
    spare.begin(10.0)
    assert not spare.over, "the next work"


def test_what_is_not_waited_for_any_more_ends() -> None:
    closed = threading.Event()
    spare = Spare(lambda: 0, closed)
    spare.proceed()
    closed.set()
    assert spare.over
    for step in (spare.proceed, lambda: spare.pause(60.0)):
        with pytest.raises(Enough):
            step()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_the_thread_steps_back_and_its_waits_for_a_core_are_left_out() -> None:
    seen: list[float] = []

    def work() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with Spare(lambda: 0, threading.Event(), lambda: 100.0) as spare:
            seen.append(os.sched_getscheduler(threading.get_native_id()))
            inner = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(threading.get_native_id())))
            inner.start()
            inner.join()
            with open("/proc/thread-self/schedstat") as file:
                waited_s = int(file.read().split()[1]) * 1e-9
            seen.append(100.0 - waited_s - spare.clock())
        seen.append(len(os.listdir("/proc/self/fd")) - before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    policy, inherited, later_s, files = seen
    assert policy == inherited == os.SCHED_IDLE
    assert later_s >= 0.0, "it counts all that the kernel does"
    assert files == 0
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER, "no other thread does"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_what_is_done_aside_leaves_the_caller_its_priority() -> None:
    def work(spare: Spare) -> int:
        return os.sched_getscheduler(threading.get_native_id())

    assert aside(work, Spare(lambda: 0, threading.Event())) == os.SCHED_IDLE
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER
    closed = threading.Event()
    closed.set()
    with pytest.raises(Enough):
        aside(Spare.proceed, Spare(lambda: 0, closed))


def test_a_core_that_is_lost_while_the_clock_is_read_does_not_turn_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time and the waits are two readings: a wait between them is in both, or in neither."""
    now_s, waited_s, readings, lost_at = 10.0, 0.0, 0, {0}

    def read(what: str) -> float:
        nonlocal now_s, waited_s, readings
        if readings in lost_at:  # for 5 ms, before this reading
            now_s, waited_s = now_s + 0.005, waited_s + 0.005
        readings += 1
        return now_s if what == "now" else waited_s

    monkeypatch.setattr(Spare, "_waited_s", lambda spare: read("waited"))
    spare = Spare(lambda: 0, threading.Event(), lambda: read("now"))
    worked = []
    for first in range(8):  # the clock is read in three readings, in five where a core is lost between them
        lost_at = {readings + first}
        worked.append(spare.clock())
    assert worked == pytest.approx([10.0] * 8), "none of it was worked"
    assert worked == sorted(worked)


@pytest.mark.parametrize("steps", [0, 3])
def test_what_was_measured_by_then_is_the_profile(steps: int) -> None:
    """`Enough` before anything is measured ends it; afterwards it gives the profile so far."""
    left = steps

    def proceed() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Enough

    if not steps:
        with pytest.raises(Enough):
            profile_model(load("zoo:lenet5"), open_engine(threads=1), budget_s=60, proceed=proceed)
        return
    profile = profile_model(load("zoo:lenet5"), open_engine(threads=1), budget_s=60, proceed=proceed)
    assert profile.whole.median > 0
    assert not profile.complete
