"""What is minimised."""

from __future__ import annotations

import pytest
from planning_cases import LENET, WATTS, pair, planned
from plans import FOUR_G, profiles

from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.planning.cost_model import HopWork, HostWork, RequestWork
from splitpoint.planning.hosts import Host
from splitpoint.planning.objectives import ObjectiveWeights, weights_of
from splitpoint.planning.planner import Planner, plan


def test_energy_without_watts_and_unknown_objectives_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="--edge-watts"):
        plan(None, profiles(LENET, 3, 0.2), FOUR_G, objective="energy")
    with pytest.raises(UsageError, match="no objective is called speed"):
        planned(objective="speed")


def test_weights_are_those_of_each_host_and_hop() -> None:
    hosts = Planner(None, pair()).hosts
    assert weights_of("latency", hosts) == ObjectiveWeights((1, 1), (1,), (1,))
    assert weights_of("energy", hosts) == ObjectiveWeights((WATTS.compute, WATTS.idle), (WATTS.tx,), (WATTS.idle,))
    assert weights_of("bytes", hosts) == ObjectiveWeights((0, 0), (0,), (0,), byte=1)
    assert weights_of("server-time", hosts) == ObjectiveWeights((0, 1), (0,), (0,))
    mixed = weights_of("bytes", hosts).plus(weights_of("latency", hosts), 0.25)
    assert mixed == ObjectiveWeights((0.25, 0.25), (0.25,), (0.25,), byte=1)


def test_the_same_formulas_take_a_third_host() -> None:
    """Lists, not pairs: one host more is one weight and one sum more."""
    hosts = (*Planner(None, pair()).hosts, Host("cloud", pair()[1]))
    links, nothing = (Link(8, 8, 10), Link(80, 80, 2)), 0.0
    work = RequestWork(
        tuple(HostWork(ms, nothing, nothing, nothing, nothing) for ms in (30.0, 5.0, 1.0)),
        (HopWork(1.0, 1000.0, nothing, 100.0), HopWork(1.0, 500.0, nothing, 100.0)),
    )
    assert work.value(links, weights_of("latency", hosts)) == pytest.approx(36 + 10 + 1.1 + 2 + 0.06)
    assert work.value(links, weights_of("bytes", hosts)) == 1700
    assert work.value(links, weights_of("server-time", hosts)) == 6
    assert work.busy(links) == pytest.approx([30, 5, 1, 1.1, 0.06])
