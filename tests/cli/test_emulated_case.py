"""The demo's emulated cases: which of them are run, and what is told of them. They run in test_demo.py."""

from __future__ import annotations

import re

import pytest

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.emulated_case import GAIN, NO_GAIN, band, inside, planner_for, slowdown, ways
from splitpoint.cli.options.codecs import calibration_for
from splitpoint.engines import open_engine
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.planning.planner import Planner
from splitpoint.survey import Survey, by_flops

NAME = "zoo:efficientnet_lite0"
#: What this machine takes for the whole network, ms: fast, like ours, slow or busy.
MACHINES = (4.0, 10.0, 30.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def calibration(model: Model) -> Calibration | None:
    return calibration_for(NAME, None, model)


def known(model: Model, whole_ms: float) -> Survey:
    """A machine as profiles say it, by FLOPs: nothing is measured."""
    engine = open_engine(threads=1)
    here = by_flops(model, engine, whole_ms / by_flops(model, engine).whole.median)
    return Survey(here, here, Link(10_000, 10_000, 0.03, software_ms=0.4))


@pytest.mark.parametrize("whole_ms", MACHINES)
def test_on_fast_and_slow_machines_the_first_case_gains_and_the_second_does_not(
    model: Model, calibration: Calibration, whole_ms: float
) -> None:
    machine = known(model, whole_ms)
    gain, no_gain = (planner_for(machine, model, calibration).plan(link) for link in (GAIN, NO_GAIN))
    assert gain.best.kind == "split"
    others = [o.total.ms for o in gain.options if o.kind != "split"]
    assert gain.best.total.ms < 0.9 * min(others), "not only just, and not for what splitpoint does not send"
    assert no_gain.best.kind == "jpeg"
    for plan in (gain, no_gain):
        assert all(o.exact or (o.quality and (o.quality.agreement or 0) >= 0.95) for o in ways(plan, model.graph))


@pytest.mark.parametrize(("whole_ms", "factor"), [(4.0, 40), (10.0, 16), (30.0, 5), (500.0, 1)])
def test_the_device_takes_as_long_on_any_machine(model: Model, whole_ms: float, factor: int) -> None:
    assert slowdown(known(model, whole_ms).edge) == factor


def test_what_is_run_is_what_one_would_try(model: Model, calibration: Calibration) -> None:
    for link in (GAIN, NO_GAIN):
        plan = planner_for(known(model, 10.0), model, calibration).plan(link)
        options = ways(plan, model.graph)
        assert [o.kind for o in options] == ["device", "server", "jpeg", "split"]
        assert plan.best in options
        assert inside(options[-1], model.graph)


def test_without_a_calibration_nothing_lossy_is_run(model: Model) -> None:
    plan = planner_for(known(model, 10.0), model, None).plan(GAIN)
    assert [o.kind for o in ways(plan, model.graph)] == ["device", "server", "split"]
    assert all(o.exact for o in ways(plan, model.graph))


def test_the_band_where_it_pays_is_told(model: Model, calibration: Calibration) -> None:
    told = band(planner_for(known(model, 10.0), model, calibration).plan(GAIN)).split(", ")
    kinds = [re.sub("up to [0-9.]+$", "up to", text) for text in told]
    assert kinds == ["all on the edge up to", "a split up to", "a JPEG up to", "the raw input above"]
    limits = [float(text.rpartition(" ")[2]) for text in told[:-1]]
    assert limits == sorted(limits)
    assert limits[0] < GAIN.up_mbps < limits[1]


def test_one_answer_for_all_links_is_told_as_such(model: Model, calibration: Calibration) -> None:
    told = Planner(model.graph, (known(model, 1.0).edge,) * 2, calibration=calibration).plan(NO_GAIN)
    assert band(told) == "all on the edge at any rate"
