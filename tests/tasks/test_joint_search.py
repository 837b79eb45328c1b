"""Ways and order chosen together, against brute force and against the individual plans."""

from __future__ import annotations

from itertools import permutations, product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import individual, jobs_of, random_jobs, score

from splitpoint.tasks.joint_search import _JointSearch, bound, joint
from splitpoint.tasks.schedule import (
    Batch,
    Free,
    JobTurn,
    QueuedJob,
    StageTimes,
    fifo,
    rehearse,
    timeline,
)


def brute_force(jobs: list[QueuedJob]) -> float:
    """The least makespan of all orders and ways."""
    return min(
        max(s.ended for s in timeline(jobs, [JobTurn(k, ways[k]) for k in order]))
        for ways in product(*(range(len(j.ways)) for j in jobs))
        for order in permutations(range(len(jobs)))
    )


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_joint_is_near_the_best_of_all_orders_and_ways(share: float) -> None:
    random, gaps = Random(5), []
    for _ in range(15):
        jobs = random_jobs(random, 4, share=share)
        slots, told = rehearse(jobs, joint)
        best, found = brute_force(jobs), score(jobs, slots).makespan
        assert told <= best + 1e-6, "the bound is one"
        assert found >= best - 1e-9
        gaps.append(found / best - 1)
    assert max(gaps) < 0.10
    assert float(np.mean(gaps)) < 0.01


def test_the_bound_is_reached_where_it_can_be() -> None:
    jobs = [QueuedJob((StageTimes(10.0),))] * 5
    assert bound([jobs[0].ways], [5], Free())[0] == pytest.approx(50)
    jobs = [QueuedJob((StageTimes(0, 10, 1, 0, 2),))] * 3
    assert bound([jobs[0].ways], [3], Free())[0] == pytest.approx(35, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(jobs_of)
def test_joint_is_never_worse_than_individual_plans(jobs: list[QueuedJob]) -> None:
    one, other = (score(jobs, rehearse(jobs, p)[0]) for p in (joint, fifo))
    assert (one.missed, one.makespan) <= (other.missed, other.makespan + 1e-6)


@settings(max_examples=30, deadline=None)
@given(jobs_of, st.sampled_from([1.2, 1.9, 3.0]))
def test_nor_where_device_and_server_share_cores(jobs: list[QueuedJob], shared: float) -> None:
    free = Free(shared=shared)
    everyone = range(len(jobs))
    one, other = (score(jobs, timeline(jobs, p(jobs, everyone, free).turns, free)) for p in (joint, fifo))
    assert (one.missed, one.makespan) <= (other.missed, other.makespan + 1e-6)


def test_what_shares_cores_is_kept_busy_together_only_where_that_gains() -> None:
    jobs = [QueuedJob((StageTimes(250), StageTimes(0, 1, 250, 0, 0.1)))] * 10
    spans = {}
    for shared in (1.0, 1.5, 2.0, 2.5):
        slots, told = rehearse(jobs, joint, Free(shared=shared))
        spans[shared] = score(jobs, slots).makespan
        assert told <= spans[shared] + 1e-6
        assert told == pytest.approx(spans[shared], rel=0.01)
    assert spans[1.0] == pytest.approx(1250, rel=0.01)
    assert spans[1.5] == pytest.approx(1875, rel=0.01)
    assert spans[2.0] == spans[2.5] == pytest.approx(2500, rel=1e-4), "one after the other, as fifo does"


@settings(max_examples=30, deadline=None)
@given(jobs_of, st.integers(0, 1000))
def test_neighbours_are_priced_as_the_timeline_says(jobs: list[QueuedJob], seed: int) -> None:
    random = np.random.default_rng(seed)
    tail = random.choice([s.tail for j in jobs for s in j.ways])
    free = Free(3.0, 20.0, 30.0, 5.0, Batch(str(tail), 25.0, 2, 4.0))
    search = _JointSearch(jobs, free)
    orders = np.array([random.permutation(len(jobs)) for _ in range(4)])
    chosen = np.array([[random.integers(len(j.ways)) for j in jobs] for _ in range(4)])
    first, mean = search._priced(chosen, orders)
    for row in range(4):
        turns = [JobTurn(int(k), int(chosen[row][k])) for k in orders[row]]
        expected = score(jobs, timeline(jobs, turns, free))
        assert first[row] == pytest.approx(expected.missed * 1e9 + expected.makespan)
        assert mean[row] == pytest.approx(expected.mean)


def test_joint_plans_a_large_queue_and_says_how_good_it_is() -> None:
    random = Random(1)
    jobs = random_jobs(random, 300, ways=4)
    slots, told = rehearse(jobs, joint)
    found = score(jobs, slots).makespan
    assert sorted(s.turn.job for s in slots) == list(range(300))
    assert told <= found <= 1.05 * told


def test_joint_takes_a_deadline_for_more_than_the_makespan() -> None:
    slow, quick = StageTimes(100), StageTimes(10)
    jobs = [QueuedJob((slow,)), QueuedJob((quick,), due=20)]
    assert [s.turn.job for s in rehearse(jobs, joint)[0]] == [1, 0]
    assert [s.turn.job for s in rehearse(jobs, fifo)[0]] == [0, 1]


def test_a_model_is_served_in_few_ways() -> None:
    """Each is a head and a tail in memory."""
    random = Random(3)
    ways = tuple(StageTimes(10.0 * k, 70.0 - 8 * k, 60.0 - 7 * k, 0, 1) for k in range(8))
    jobs = [individual(ways)] * 30 + random_jobs(random, 10)
    slots, _ = rehearse(jobs, joint)
    assert len({s.turn.way for s in slots if jobs[s.turn.job].ways == jobs[0].ways}) <= 3
