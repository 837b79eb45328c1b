"""What options cost under conditions: against the planner that is asked directly."""

from __future__ import annotations

import pytest
import virtual

from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.adapt.option_costs import OptionCosts

FAST = Link(50, 200, 10)


@pytest.fixture(scope="module")
def plan() -> Planner:
    return virtual.planner()


def test_under_no_conditions_an_option_costs_what_the_planner_says(plan: Planner) -> None:
    view = OptionCosts(plan).view(Conditions(link=FAST))
    best = plan.best(FAST)
    assert best is not None
    assert view.best() == best
    assert view.price(best).total.ms == pytest.approx(best.total.ms)
    assert view.planner.local(view.link) == plan.local(FAST)


def test_queues_failures_and_what_is_beside_the_plan_make_remote_options_dearer_and_no_others(plan: Planner) -> None:
    costs = OptionCosts(plan)
    view, calm = costs.view(Conditions(link=FAST, queue_ms=30, overhead_ms=5)), costs.view(Conditions(link=FAST))
    remote = calm.remote()
    assert remote is not None
    assert view.price(remote).total.ms == pytest.approx(remote.total.ms + 35)
    assert view.planner.local(view.link).total.ms == pytest.approx(calm.planner.local(calm.link).total.ms)
    failing = costs.view(Conditions(link=FAST, failing=0.5)).price(remote).total.ms
    assert failing == pytest.approx(remote.total.ms + 0.5 * calm.planner.local(calm.link).total.ms)


def test_a_slowdown_is_planned_for_in_steps_and_a_small_change_makes_no_new_planner(plan: Planner) -> None:
    costs = OptionCosts(plan)
    twice = costs.view(Conditions(link=FAST, device=2.0))
    assert twice.planner.local(twice.link).total.ms == pytest.approx(2 * plan.local(FAST).total.ms, rel=0.06)
    assert costs.view(Conditions(link=FAST, device=2.1)).planner is twice.planner
    assert costs.view(Conditions(link=FAST, device=2.6)).planner is not twice.planner


def test_the_last_best_option_is_priced_anew_while_conditions_are_alike(
    plan: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = OptionCosts(plan)
    first = costs.best(costs.view(Conditions(link=FAST)))
    assert first is not None
    searched: list[Link] = []
    best = Planner.best
    monkeypatch.setattr(Planner, "best", lambda self, link: searched.append(link) or best(self, link))
    again = costs.best(costs.view(Conditions(link=Link(50.5, 200, 10))))
    assert again is not None
    assert (again.on_edge, searched) == (first.on_edge, [])
    costs.best(costs.view(Conditions(link=Link(25, 100, 10))))
    assert len(searched) == 1


def test_without_a_server_a_deadline_is_no_reason_to_compute_nothing(plan: Planner) -> None:
    hasty = plan.relaxed(Constraints(deadline_ms=1.0), "latency")
    view = OptionCosts(hasty).view(Conditions(link=FAST, reachable=False))
    alone, best = view.alone(), view.best()
    assert alone is not None
    assert alone.kind == "device"
    assert best is not None, "the fastest, where none keeps it"
