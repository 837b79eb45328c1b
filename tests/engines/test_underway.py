"""Runs that are under way, and how they are given up."""

from __future__ import annotations

from engines_for_tests import engine

from splitpoint.engines import underway
from splitpoint.models import load
from splitpoint.segments import samples_for


def test_nothing_is_under_way_when_nothing_runs() -> None:
    model = load("zoo:lenet5")
    session = engine().compile(model.whole())
    session.run(samples_for(model, 1)[0])
    assert not underway.noted
    assert underway.give_up() == 0
    session.close()
