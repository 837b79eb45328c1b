"""Whose turn it is, and what may run together: in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest

from splitpoint.runtime.server.fair_queue import Client, FairQueue, WaitingJob


def nothing(_waited: float) -> None:
    """A job that nobody runs."""


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values))


# --- whose turn it is -----------------------------------------------------------------------------------------------


class World:
    """A queue, workers and clients that keep `window` requests waiting or running, in virtual time."""

    def __init__(
        self, costs: Sequence[Callable[[], float]], windows: Sequence[int], workers: int = 1, *, fair: bool = True
    ) -> None:
        self.queue = FairQueue(10_000)
        # One client's requests keep their order: with one for all, it is first come, first served.
        self.clients = [Client() for _ in costs] if fair else [Client()] * len(costs)
        self.costs, self.workers = costs, workers
        self.served_s = [0.0] * len(costs)
        self.answers = [0] * len(costs)
        self.running: list[tuple[float, int, WaitingJob, float]] = []
        self.now = 0.0
        for k, window in enumerate(windows):
            for _ in range(window):
                self.ask(k)

    def ask(self, k: int) -> None:
        assert self.queue.push(self.now, WaitingJob(self.clients[k], nothing, what=k))

    def run(self, until_s: float) -> None:
        while self.now < until_s:
            while len(self.running) < self.workers and self.queue.waiting:
                job = self.queue.take(self.now)
                k = cast(int, job.what)
                cost = self.costs[k]()
                self.running.append((self.now + cost, k, job, cost))
            self.running.sort(key=lambda r: r[0])
            self.now, k, job, cost = self.running.pop(0)
            self.queue.end(job.client, cost, job.charged_s)
            self.served_s[k] += cost
            self.answers[k] += 1
            self.ask(k)


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_demands_get_equal_time_whatever_the_windows(workers: int) -> None:
    world = World([lambda: 0.01] * 8, [1 + workers, 2 + workers, 60, 8, 16, 5, 5, 30], workers)
    world.run(40.0)
    assert jain(world.served_s) > 0.999
    assert jain(world.answers) > 0.999


def test_a_first_come_first_served_queue_would_not_have_been_fair() -> None:
    """What the test above is worth: the same world, served in order of arrival."""
    world = World([lambda: 0.01] * 8, [1, 2, 60, 8, 16, 5, 5, 30], fair=False)
    world.run(40.0)
    assert jain(world.served_s) < 0.5


def test_heavy_tails_get_no_more_time_than_light_ones() -> None:
    rng = np.random.default_rng(0)
    costs = [lambda: 0.05, lambda: 0.002, lambda: float(rng.exponential(0.01)), lambda: 0.02]
    world = World(costs, [8] * 4)
    world.run(60.0)
    assert jain(world.served_s) > 0.999
    assert world.answers[1] > 20 * world.answers[0]


def test_one_large_request_at_a_time_is_charged_too() -> None:
    """The account outlives an empty queue: with one request under way the queue is empty each time it is served."""
    world = World([lambda: 0.05, lambda: 0.005], [1, 20])
    asked = world.ask
    late: list[int] = []
    world.ask = lambda k: late.append(k) if k == 0 else asked(k)  # type: ignore[method-assign]

    def step() -> None:  # the first client asks again one light job later
        world.run(world.now + 1e-9)
        while late:
            late.pop()
            asked(0)

    while world.now < 30.0:
        step()
    assert world.served_s[0] / world.served_s[1] == pytest.approx(1.0, rel=0.1)


def test_who_was_away_does_not_save_up_and_who_comes_is_served_soon() -> None:
    world = World([lambda: 0.01] * 3, [20, 20, 0])
    world.run(10.0)
    for _ in range(50):
        world.ask(2)
    before = list(world.answers)
    world.run(10.9)
    late = [b - a for a, b in zip(before, world.answers, strict=True)]
    assert max(late) - min(late) <= 8, (
        "but for the slack of a few jobs, a third each, not all for the one that had nothing for ten seconds"
    )


def test_a_client_s_own_requests_stay_in_order() -> None:
    queue, a, b = FairQueue(100), Client(), Client()
    for k in range(10):
        queue.push(k * 1.0, WaitingJob(a, nothing, what=("a", k)))
        queue.push(k * 1.0, WaitingJob(b, nothing, what=("b", k)))
    taken = []
    for k in range(20):
        job = queue.take(20.0)
        queue.end(job.client, 0.1 * (k % 3), job.charged_s)
        taken.append(job.what)
    assert [w for w in taken if w[0] == "a"] == [("a", k) for k in range(10)]
    assert [w for w in taken if w[0] == "b"] == [("b", k) for k in range(10)]


def test_among_equals_who_came_first_is_first() -> None:
    queue = FairQueue(100)
    clients = [Client() for _ in range(5)]
    for k in (3, 1, 4, 0, 2):
        queue.push(float(k), WaitingJob(clients[k], nothing, what=k))
    assert [queue.take(9.0).what for _ in range(5)] == [0, 1, 2, 3, 4]


def test_an_idle_server_makes_all_accounts_even() -> None:
    queue, a, b = FairQueue(100), Client(), Client()
    queue.begin(a)
    queue.end(a, 10.0)
    queue.rest()
    queue.push(20.0, WaitingJob(a, nothing, what="a"))
    queue.push(21.0, WaitingJob(b, nothing, what="b"))
    assert [queue.take(22.0).what for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("costs", "load"), [([0.01], 0.7), ([0.001, 0.005, 0.01, 0.015], 0.7), ([0.01], 0.9)]
)  # fmt: skip
def test_fairness_costs_little_of_the_longest_waits(costs: Sequence[float], load: float) -> None:
    """32 clients with Poisson arrivals, against the same arrivals first come first served."""
    rng = np.random.default_rng(1)
    each = [costs[k % len(costs)] for k in range(32)]
    arrivals = np.cumsum(rng.exponential(float(np.mean(each)) / load, 20_000))
    who = rng.integers(0, 32, len(arrivals))
    queue, clients = FairQueue(10_000), [Client() for _ in each]
    free_s, fair, plain = 0.0, [], []
    for due_s, k in zip(arrivals, who, strict=True):
        free_s = max(free_s, due_s) + each[k]
        plain.append(free_s - due_s)
    now, given = 0.0, 0
    while given < len(arrivals) or queue.waiting:
        if not queue.waiting:
            queue.rest()
            now = max(now, float(arrivals[given]))
        while given < len(arrivals) and arrivals[given] <= now:
            k = int(who[given])
            queue.push(float(arrivals[given]), WaitingJob(clients[k], nothing, what=k))
            given += 1
        job = queue.take(now)
        now += each[cast(int, job.what)]
        queue.end(job.client, each[cast(int, job.what)], job.charged_s)
        fair.append(now - job.queued_s)
    assert np.mean(fair) < 1.05 * np.mean(plain)
    assert np.percentile(fair, 99) < 1.2 * np.percentile(plain, 99)


def test_no_client_can_fill_the_queue_for_all() -> None:
    queue, flood, others = FairQueue(64), Client(), [Client() for _ in range(3)]
    assert sum(queue.push(0.0, WaitingJob(flood, nothing)) for _ in range(1000)) == 32
    counts = [sum(queue.push(0.0, WaitingJob(other, nothing)) for _ in range(1000)) for other in others]
    assert counts == [16, 8, 4]
    assert queue.room(Client())
    assert [queue.push(0.0, WaitingJob(Client(), nothing)) for _ in range(5)] == [True] * 4 + [False]
    assert queue.waiting == 64


def test_retry_after_is_from_the_client_s_own_backlog_and_about_right() -> None:
    for light_alone in (True, False):
        world = World([lambda: 0.01, lambda: 0.01], [0, 0])
        world.queue.limit = 64
        light, heavy = world.clients
        while world.queue.room(heavy):
            world.ask(1)
        if not light_alone:
            while world.queue.room(light):
                world.ask(0)
        asked = heavy if light_alone else light
        world.ask = lambda k: None  # type: ignore[method-assign]
        for _ in range(4):
            world.run(world.now + 1e-9)
        own = len(asked.jobs)
        retry_s = world.queue.retry_after_s(asked, 1)
        world.run(world.now + retry_s)
        assert world.queue.room(asked)
        done = own - len(asked.jobs)
        assert own // 4 - 1 <= done <= own // 4 + 2, "not much later than it said either"


def test_one_without_a_backlog_is_not_told_to_wait_for_the_flood() -> None:
    queue, flood = FairQueue(100), Client()
    flood.mean_s = queue._mean_s = 0.1
    for _ in range(50):
        queue.push(0.0, WaitingJob(flood, nothing))
    assert queue.retry_after_s(flood, 1) == pytest.approx(1.2)
    assert queue.retry_after_s(flood, 4) == pytest.approx(0.3)


def test_the_jobs_of_one_that_left_are_not_run() -> None:
    queue, a, b = FairQueue(10), Client(), Client()
    for client in (a, b, a):
        queue.push(0.0, WaitingJob(client, nothing))
    assert len(queue.drop(a)) == 2
    assert queue.waiting == 1
    assert queue.take(0.0).client is b
    assert queue.drop(a) == []


# --- what may run together ------------------------------------------------------------------------------------------


class Key:
    """Jobs of one kind; `most` of them run as one."""

    def __init__(self, most: int) -> None:
        self.most = most

    def size(self, waiting: int) -> int:
        return min(self.most, waiting)

    def wanted(self) -> int:
        return self.most

    def company(self, waiting: int, now_s: float) -> tuple[int, float]:
        return waiting, now_s

    def seconds(self, size: int) -> float:
        return 0.0


def test_jobs_of_one_key_are_taken_together_and_others_are_not_passed_by_their_own_client() -> None:
    queue, key, other = FairQueue(100), Key(8), Key(8)
    a, b, c = (Client() for _ in range(3))
    for client, k, name in ((a, key, "a0"), (b, other, "b0"), (b, key, "b1"), (c, key, "c0"), (a, key, "a1")):
        queue.push(0.0, WaitingJob(client, nothing, k, name))
    first = queue.take(0.0)
    assert first.what == "a0"
    assert len(list(queue.like(key))) == 2
    assert [j.what for j in queue.take_like(0.0, key, 99)] == ["a1", "c0"], "b1 waits behind b0"
    assert [queue.take(0.0).what for _ in range(2)] == ["b0", "b1"]
