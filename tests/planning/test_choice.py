"""Of options that nobody can tell apart the simpler one is chosen."""

from __future__ import annotations

from math import isclose

import pytest
from planning_cases import LENET, pair, planned

from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE, margin
from splitpoint.planning.choice import DOUBTFUL
from splitpoint.planning.planner import plan
from splitpoint.planning.plans import STAGES, value


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy", "bytes", "server-time"])
def test_no_option_of_the_table_beats_the_best_and_all_add_up(objective: str) -> None:
    found = planned(objective=objective, codecs=("int8", "fp16"))
    assert found.best in found.options
    for option in found.options:
        assert set(option.stages) == set(STAGES)
        assert isclose(sum(s.ms for s in option.stages.values()), option.total.ms)
        if not option.refused:
            assert value(found.best, objective) <= value(option, objective) * (1 + ALIKE)
    assert {o.kind for o in found.options} == {"device", "server", "jpeg", "split"}
    assert 0 <= found.gap < 0.05


def test_of_two_that_nobody_can_tell_apart_the_simpler_is_the_best() -> None:
    # 0.2 ms on the server: a split saves less than 2 % of that.
    found = plan(None, pair(LENET, 3.0, 0.2), Link(19862, 18000, 0.06), objective="throughput")
    assert found.best.kind == "server"
    split = found.split
    assert split is not None
    assert value(split, "throughput") < value(found.best, "throughput") <= value(split, "throughput") * (1 + ALIKE)
    assert "the best split, after normalize.mul, is better by less than 2 % (5012 requests a second)" in found.advice
    assert "the difference is below 2 %, and all on the server, raw input is simpler" in found.why
    assert 0 < found.gap < ALIKE
    assert found.bound <= value(split, "throughput") * (1 + 1e-9)


def test_a_split_that_gains_less_than_its_error_bars_is_not_worth_it() -> None:
    found = planned(codecs=("int4",))
    device, split = found.option("device"), found.split
    assert device is not None
    assert split is not None
    assert ALIKE < 1 - split.total.ms / device.total.ms < DOUBTFUL
    assert device.total.ms - split.total.ms < margin(split, device, "latency")
    assert found.best == device
    assert ", which is within the error bars" in found.advice
    assert "the difference is within the error bars, and all on the edge is simpler" in found.why
