"""What may be chosen for each model, and what it costs under other conditions."""

from __future__ import annotations

import msgspec
import pytest
import virtual

from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.tasks.choices import Menu, same, slow_together, stages_of
from splitpoint.tasks.task import Task

SOURCE = ("net", "")
LINK = Link(10, 40, 20)
USUAL = Conditions(link=LINK)


@pytest.fixture(scope="module")
def plan() -> Planner:
    return virtual.planner()


def test_an_option_keeps_each_thing_busy_for_as_long_as_the_plan_says(plan: Planner) -> None:
    best = plan.remote(LINK)
    assert best is not None
    stages = stages_of(best, USUAL)
    assert stages.total == pytest.approx(best.total.ms, rel=0.02)
    slower = stages_of(best, Conditions(link=LINK, device=2.0, server=3.0, queue_ms=7.0))
    assert slower.server == pytest.approx(3 * best.stages["server"].ms + 7)
    assert slower.device == pytest.approx(2 * best.stages["edge"].ms + best.stages["encode"].ms)
    local = stages_of(plan.local(LINK), USUAL)
    assert not local.crosses
    assert local.total == pytest.approx(plan.local(LINK).total.ms)


def test_the_individual_plan_is_first_and_alone_where_the_policy_chooses_no_cuts(plan: Planner) -> None:
    several, one = (Menu({SOURCE: plan}, USUAL, several=s) for s in (True, False))
    best = plan.best(LINK)
    assert best is not None
    assert same(several.options[SOURCE][0], best)
    assert [same(o, best) for o in one.options[SOURCE]] == [True]
    assert len(several.options[SOURCE]) > 1


def test_what_is_ready_is_the_menu(plan: Planner) -> None:
    menu = Menu({SOURCE: plan}, USUAL, several=True)
    second = menu.options[SOURCE][1]
    menu.only({SOURCE: [second]})
    assert [same(o, second) for o in menu.options[SOURCE]] == [True]
    local = plan.local(LINK)
    menu.only({SOURCE: [local]})
    assert menu.options[SOURCE][0].kind == "device", "nothing else is ready"


def test_all_ways_of_some_models_are_left(plan: Planner) -> None:
    menu = Menu({SOURCE: plan}, USUAL, several=True)
    all_of_them = list(menu.options[SOURCE])
    menu.only({SOURCE: [all_of_them[1]]}, but=[SOURCE])
    assert menu.options[SOURCE] == all_of_them


def test_what_is_lost_beside_each_other_is_a_condition(plan: Planner) -> None:
    menu = Menu({SOURCE: plan}, USUAL, several=False, shared=1.5)
    assert not menu.differs(USUAL, 1.6)
    assert menu.differs(USUAL, 2.0)
    assert menu.differs(msgspec.structs.replace(USUAL, device=2.0), 1.5)
    usual = slow_together(msgspec.structs.replace(USUAL, device=1.4, server=1.5), 1.5)
    assert usual == (USUAL, 1.5), "what was expected is nothing new"
    worse = slow_together(msgspec.structs.replace(USUAL, device=2.2, server=4.4), 1.0)
    assert worse == (msgspec.structs.replace(USUAL, server=2.0), 2.2)
    fast = slow_together(msgspec.structs.replace(USUAL, device=0.5, server=3.0), 1.5)
    assert fast == (msgspec.structs.replace(USUAL, device=0.5, server=2.0), 1.5)


def test_costs_follow_the_conditions_and_jobs_have_what_tasks_say(plan: Planner) -> None:
    menu = Menu({SOURCE: plan}, USUAL, several=False)
    slow = menu.at(msgspec.structs.replace(USUAL, device=2.0), 1.0)
    task = Task(name="a", model="net", arrival_s=1.0, deadline_s=0.5, priority=3)
    (usual,), (later,) = menu.jobs([task]), slow.jobs([task])
    assert (usual.release, usual.due, usual.priority) == (1000.0, 1500.0, 3)
    assert later.ways[0].device >= usual.ways[0].device
    assert menu.conditions is USUAL


def test_a_way_that_gains_in_batches_says_what_a_further_one_takes(plan: Planner) -> None:
    remote = plan.remote(LINK)
    assert remote is not None
    menu = Menu({SOURCE: plan}, USUAL, several=False, shares={SOURCE: [(remote, 0.25)]})
    stages = menu.stages(SOURCE, remote)
    assert stages.more == pytest.approx(0.25 * stages.server)
    assert stages.tail
    assert not menu.stages(SOURCE, plan.local(LINK)).tail
