"""The policies by which a queue can be ordered, by name: the command line and the runs read this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from splitpoint.errors import UsageError, nearest
from splitpoint.tasks.joint_search import joint
from splitpoint.tasks.schedule import DecideOrder, edf, fifo, sjf


class QueuePolicy(NamedTuple):
    """What decides the order, in words who goes first, and whether it chooses the cuts too. One that does not leaves
    each request the plan that is best for it alone."""

    decide: DecideOrder
    first: str
    chooses_cuts: bool = False


POLICIES: Mapping[str, QueuePolicy] = {
    "fifo": QueuePolicy(fifo, "who came first"),
    "edf": QueuePolicy(edf, "who has the earliest deadline"),
    "sjf": QueuePolicy(sjf, "who takes least"),
    "joint": QueuePolicy(joint, "order and cuts together; the others take each its own best plan", chooses_cuts=True),
}


def policy(name: str) -> QueuePolicy:
    """The policy of that name; UsageError if there is none."""
    if name not in POLICIES:
        raise UsageError(f"no policy is called {name}{nearest(name, POLICIES)}: there are {', '.join(POLICIES)}")
    return POLICIES[name]
