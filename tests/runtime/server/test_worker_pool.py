"""A few workers and a queue: what they run together, how long they wait for company, what they say of their load."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from serving import until

from splitpoint.runtime.events import Event
from splitpoint.runtime.server.fair_queue import Client, Gauge, RecentWait, WaitingJob
from splitpoint.runtime.server.worker_pool import Compute


def test_what_clients_are_told_of_the_load() -> None:
    gauge = Gauge(2, 0.0)
    assert gauge.at(100.0) == 0.0
    gauge.change(100.0, 1)
    assert gauge.at(110.0) == pytest.approx(0.5, abs=1e-3)
    gauge.change(110.0, 1)
    assert gauge.at(120.0) == pytest.approx(1.0, abs=1e-3)
    gauge.change(120.0, -2)
    assert gauge.at(120.7) == pytest.approx(0.5, abs=0.01), "it fades while nobody asks, too"
    for k in range(1000):  # three quarters of the time one of two
        gauge.change(130.0 + k * 0.02, 1)
        gauge.change(130.0 + k * 0.02 + 0.015, -1)
    assert gauge.at(150.0) == pytest.approx(0.375, abs=0.01)

    light, heavy = RecentWait(), RecentWait()
    for k in range(100):
        light.add(k * 0.1, 0.005)
        heavy.add(k * 0.1, 2.0)
    assert light.queue_s == pytest.approx(0.005)
    assert heavy.queue_s == pytest.approx(2.0)
    heavy.add(30.0, 0.0)  # after a quiet time what was before it says nothing
    assert heavy.queue_s == pytest.approx(0.0, abs=1e-6)


class Key:
    """Jobs of one kind; `most` of them run as one. Until `until_s` it pays to wait for `expected` of them."""

    def __init__(self, most: int, expected: int = 1, until_s: float = 0.0) -> None:
        self.most, self.expected, self.until_s = most, expected, until_s

    def size(self, waiting: int) -> int:
        return min(self.most, waiting)

    def wanted(self) -> int:
        return self.most

    def company(self, waiting: int, now_s: float) -> tuple[int, float]:
        return max(waiting, self.expected), self.until_s

    def seconds(self, size: int) -> float:
        return 0.01


def test_the_pool_runs_what_waits_together_and_charges_each_its_share() -> None:
    key, ran, done, gate = Key(3), [], threading.Semaphore(0), threading.Event()

    def together(jobs: Sequence[WaitingJob]) -> None:
        ran.append([j.what for j in jobs])
        time.sleep(0.03)
        done.release()

    def alone(_: float) -> None:
        ran.append("alone")
        done.release()

    pool = Compute(1, 100, together)
    a, b = Client(), Client()
    try:
        assert pool.submit(WaitingJob(Client(), lambda _: gate.wait(5) and None))
        assert until(lambda: not pool.waiting)
        for k in range(2):
            pool.submit(WaitingJob(a, alone, key, f"a{k}"))
            pool.submit(WaitingJob(b, alone, key, f"b{k}"))
        began = time.perf_counter()
        gate.set()
        for _ in range(2):
            assert done.acquire(timeout=5)
        assert ran == [["a0", "b0", "a1"], "alone"]
        assert until(lambda: pool.begin(a))
        wall_s = time.perf_counter() - began
        assert 0.02 <= a.turn_s < wall_s, "two thirds of the batch, not twice all of it"
    finally:
        gate.set()
        pool.close()


@pytest.mark.parametrize("companion", [True, False])
def test_a_wait_for_company_ends_with_the_company_or_the_time(companion: bool) -> None:
    key, ran, done = Key(2), [], threading.Semaphore(0)

    def together(jobs: Sequence[WaitingJob]) -> None:
        ran.append(len(jobs))
        done.release()

    def alone(waited: float) -> None:
        ran.append(waited)
        done.release()

    pool = Compute(1, 100, together, max_wait_s=30.0 if companion else 0.05)
    try:
        pool.submit(WaitingJob(Client(), alone, key))
        if companion:
            assert until(lambda: bool(pool._gathering))
            pool.submit(WaitingJob(Client(), alone, key))
        assert done.acquire(timeout=5)
        assert ran == [2] if companion else ran[0] >= 0.05
    finally:
        pool.close()


def test_nobody_else_waits_for_a_batch_to_fill() -> None:
    key, done = Key(8), threading.Semaphore(0)
    pool = Compute(1, 100, lambda jobs: None, max_wait_s=30.0)
    try:
        pool.submit(WaitingJob(Client(), lambda _: done.release(), key))
        assert until(lambda: bool(pool._gathering))
        pool.submit(WaitingJob(Client(), lambda _: done.release()))
        assert done.acquire(timeout=5)
        assert done.acquire(timeout=5)
    finally:
        pool.close()


def test_a_worker_waits_for_those_that_are_expected_and_no_longer_than_that() -> None:
    ran, done = [], threading.Semaphore(0)

    def together(jobs: Sequence[WaitingJob]) -> None:
        ran.append(len(jobs))
        done.release()

    def alone(waited_s: float) -> None:
        ran.append(1)
        done.release()

    pool = Compute(1, 100, together)
    try:
        key = Key(8, expected=3, until_s=time.perf_counter() + 3600)
        assert not pool.begin(Client(), key), "its thread does not compute it: others are expected"
        for _ in range(3):
            pool.submit(WaitingJob(Client(), alone, key))
        assert done.acquire(timeout=30)
        key.until_s = 0.0
        pool.submit(WaitingJob(Client(), alone, key))
        assert done.acquire(timeout=30)
        nobody = Client()
        assert until(lambda: pool.begin(nobody, Key(8)))
        pool.end(nobody, 0.0)
    finally:
        pool.close()
    assert ran == [3, 1]


@pytest.mark.parametrize("max_wait_s", [None, 3600.0])
def test_who_has_a_deadline_is_not_made_to_miss_it(max_wait_s: float | None) -> None:
    """A run takes 0.01 s, says the key: what must have begun before that is over does not wait."""
    done = threading.Semaphore(0)
    pool = Compute(1, 100, lambda jobs: None, max_wait_s)
    try:
        now = time.perf_counter()
        key = Key(8, expected=8, until_s=now + 3600)
        pool.submit(WaitingJob(Client(), lambda _: done.release(), key, latest_s=now + 0.01))
        assert done.acquire(timeout=30)
    finally:
        pool.close()


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_job_that_fails_leaves_its_worker_alive() -> None:
    told: list[Event] = []
    pool = Compute(1, 10, on_event=told.append)
    done = threading.Event()

    def fail(waited_s: float) -> None:
        raise MemoryError

    try:
        assert pool.submit(WaitingJob(Client(), fail))
        assert pool.submit(WaitingJob(Client(), lambda waited_s: done.set()))
        assert done.wait(30)
    finally:
        pool.close()
    assert [e.sentence for e in told] == ["computing failed and goes on: MemoryError()"]


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
    assert pool.waiting == 3
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
