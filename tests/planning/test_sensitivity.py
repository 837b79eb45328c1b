"""The plan as a function of the bandwidth."""

from __future__ import annotations

from itertools import pairwise

import pytest
from planning_cases import pair, planned
from plans import FOUR_G

from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.sensitivity import ranges


@pytest.mark.parametrize("objective", ["latency", "energy"])
def test_the_ranges_cover_every_rate_and_change_where_the_answer_does(objective: str) -> None:
    planner = Planner(None, pair(), objective=objective, constraints=Constraints(codecs=("int8",)))
    found = planner.plan(FOUR_G).sensitivity
    assert len(found) >= 3
    assert found[0].up_mbps_from == pytest.approx(0.05)
    assert found[-1].up_mbps_to == pytest.approx(2000)
    for one, after in pairwise(found):
        assert one.up_mbps_to == after.up_mbps_from
        assert (one.kind, one.cut, one.codecs) != (after.kind, after.cut, after.codecs)
    for stretch in found:
        for rate in (stretch.up_mbps_from * 1.02, stretch.up_mbps_to / 1.02):
            best = planner.best(Link(rate, FOUR_G.down_mbps, FOUR_G.rtt_ms, FOUR_G.jitter_ms))
            assert best is not None
            assert (best.kind, best.cut, best.codecs) == (stretch.kind, stretch.cut, stretch.codecs)


@pytest.mark.parametrize("rate", [0.01, 0.05, 5.43, 2000.0, 19862.0])
@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_the_range_that_holds_the_link_says_what_the_plan_says(objective: str, rate: float) -> None:
    planner = Planner(None, pair(), objective=objective, constraints=Constraints(codecs=("int4",)))
    found = planner.plan(Link(rate, 20, 40))
    assert found.sensitivity[0].up_mbps_from <= min(rate, 0.05)
    assert found.sensitivity[-1].up_mbps_to >= max(rate, 2000)
    own = [r for r in found.sensitivity if r.up_mbps_from <= rate <= r.up_mbps_to]
    best = found.best
    assert (best.kind, best.cut, best.codecs) in [(r.kind, r.cut, r.codecs) for r in own]


def test_an_answer_for_one_rate_alone_is_a_range_of_its_own() -> None:
    device, server = (planned(objective="bytes").option(kind) for kind in ("device", "server"))
    assert device is not None
    assert server is not None
    found = ranges(lambda link: device, Link(7, 7, 1), server)
    assert [r.kind for r in found] == ["device", "server", "device"]
    assert found[1].up_mbps_from < 7 < found[1].up_mbps_to


def test_rates_at_which_nothing_is_allowed_are_a_range_too() -> None:
    limits = Constraints(keep_input_local=True, deadline_ms=80.0)
    found = Planner(None, pair(), constraints=limits).plan(Link(200, 200, 5)).sensitivity
    assert found[0].kind == "none"
    assert found[-1].kind == "split"
