"""Who goes first by which policy."""

from __future__ import annotations

import pytest
from queues import score

from splitpoint.errors import UsageError
from splitpoint.tasks.policies import POLICIES, policy
from splitpoint.tasks.schedule import (
    DecideOrder,
    QueuedJob,
    StageTimes,
    rehearse,
)


def orders_of(p: DecideOrder, jobs: list[QueuedJob]) -> list[int]:
    return [s.turn.job for s in rehearse(jobs, p)[0]]


def test_policies_order_the_queue() -> None:
    jobs = [
        QueuedJob((StageTimes(30),)),
        QueuedJob((StageTimes(5), StageTimes(20)), due=100),
        QueuedJob((StageTimes(10),), due=50),
        QueuedJob((StageTimes(40),), priority=1),
    ]
    assert orders_of(POLICIES["fifo"].decide, jobs) == [3, 0, 1, 2]
    assert orders_of(POLICIES["edf"].decide, jobs) == [3, 2, 1, 0]
    assert orders_of(POLICIES["sjf"].decide, jobs) == [3, 1, 2, 0]
    assert orders_of(POLICIES["joint"].decide, jobs)[0] == 3
    with pytest.raises(UsageError, match="did you mean fifo"):
        policy("fifos")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_knows_only_what_has_arrived(name: str) -> None:
    long, short = (StageTimes(100),), (StageTimes(1),)
    jobs = [QueuedJob(long), QueuedJob(long), QueuedJob(short, release=10, priority=5), QueuedJob(short, release=900)]
    slots = {s.turn.job: s for s in rehearse(jobs, policy(name).decide)[0]}
    assert slots[2].started == 100, "it came while one ran, and goes before the other"
    assert slots[3].started == 900
    assert score(jobs, list(slots.values())).makespan == 901
