"""What a plan must keep to."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest
import virtual
from planning_cases import EFFICIENT, calibrated, planned
from plans import model_of, profiles
from split_cases import (
    graph_of,
    split_of,
)

from nets import load, proto, value, weight
from nets import node as onnx_node
from splitpoint.calibration.calibrations import Quality
from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints, input_like, over_budget
from splitpoint.planning.planner import Planner
from splitpoint.planning.solve.min_cut import least
from splitpoint.planning.solve.problem import stages
from splitpoint.units import size


def test_the_input_stays_local_and_what_only_rearranges_it_does_too() -> None:
    found = planned(Link(1000, 1000, 0.3), keep_input_local=True)
    telling = input_like(model_of(EFFICIENT).graph)
    assert not {c.name for c in found.best.crossing} & telling
    server = found.option("server")
    assert server is not None
    assert server.refused == "the input would leave the edge"
    assert planned(Link(1000, 1000, 0.3)).best.kind == "server"


def test_only_codecs_that_are_allowed_cross() -> None:
    assert {c for o in planned().options if o.kind == "split" for c in o.codecs} == {"raw"}
    assert {c for o in planned(codecs=("fp16",)).options if o.kind == "split" for c in o.codecs} <= {"raw", "fp16"}


@pytest.mark.parametrize(
    "limits",
    [{"max_drop": -0.1}, {"max_drop": 1.0}, {"max_drop": float("nan")}, {"deadline_ms": 0.0}, {"max_bytes": 0.0},
     {"deadline_ms": float("nan")}, {"max_bytes": inf}, {"max_edge_memory": -1.0}, {"codecs": ("int9",)}],
)  # fmt: skip
def test_constraints_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Constraints(**limits)


def test_a_budget_needs_a_calibration_of_a_classifier() -> None:
    with pytest.raises(UsageError, match="needs a calibration: splitpoint calibrate-codecs"):
        planned(max_drop=0.01)
    known = msgspec.structs.replace(calibrated({}), classifier=False)
    with pytest.raises(UsageError, match="no classifier's output"):
        planned(max_drop=0.01, calibration=known)


def test_the_input_stays_and_so_does_what_still_shows_it() -> None:
    """EfficientNet's image, transposed, cast and normalised; what its first convolution made may go."""
    graph = graph_of("zoo:efficientnet_lite0")
    assert input_like(graph) == {
        "image", "normalize.transpose", "normalize.cast", "normalize.sub", graph.prefixes()[4].crossing[0].name,
    }  # fmt: skip
    split = split_of(graph, keep_input_local=True)
    fast = Link(1e6, 1e6, 0)
    problem = split.problem(fast)
    totals = [stages(problem, split.costs.steps.on_edge(c.nodes)).total for c in graph.prefixes()]
    assert [t == inf for t in totals] == [k < 5 for k in range(len(totals))]
    assert least(problem).value == min(totals)
    assert not least(split_of(graph).problem(fast)).on_edge.any()


def test_what_is_mixed_with_another_tensor_shows_only_if_that_does() -> None:
    net = proto(
        [
            onnx_node("Relu", ["x"], ["r"], name="relu"),
            onnx_node("MatMul", ["x", "w"], ["m"], name="mix"),
            onnx_node("Add", ["r", "x"], ["still"], name="both"),
            onnx_node("Concat", ["still", "m"], ["half"], name="half", axis=1),
        ],
        [value("x", [1, 4])],
        [value("half", [1, 8])],
        [weight("w", np.eye(4, dtype=np.float32) + 1)],
    )
    assert input_like(load(net).graph) == {"x", "r", "still"}


@pytest.mark.parametrize(
    ("same", "of", "max_drop", "shown"),
    [
        (300, 300, 0.01, True),
        (299, 299, 0.01, False),  # no label changed, but 3/299 is more than 1 %
        (24, 24, 0.01, False),
        (24, 24, 0.125, True),
        (999, 1000, 0.01, True),
        (995, 1000, 0.01, False),  # half a percent seen, 1.05 % possible
        (988, 1000, 0.01, False),
        (23, 24, 0.01, False),
    ],
)
def test_a_budget_must_be_shown_to_be_kept(same: int, of: int, max_drop: float, shown: bool) -> None:
    assert (over_budget(Quality(of, same / of, 1.0, 0.0), max_drop) == "") == shown
    assert over_budget(Quality(of, None, 1.0, 0.0), max_drop).startswith("its accuracy is not measured")


def test_what_chooses_unseen_is_held_to_the_lower_end() -> None:
    assert Constraints(agreement=0.98).bounded == Constraints(max_drop=0.02)
    assert Constraints(agreement=0.98, max_drop=0.01).bounded == Constraints(max_drop=0.01)
    assert Constraints(agreement=0.9, max_drop=0.5).bounded.max_drop == 0.1
    assert Constraints(max_drop=0.03, deadline_ms=5).bounded == Constraints(max_drop=0.03, deadline_ms=5)


@pytest.mark.parametrize(
    ("max_bytes", "codec"), [(3000, None), (3300, "klt:36"), (6500, "klt:60"), (9000, "klt:72"), (17_000, "int8")]
)
def test_bytes_alone_mean_the_most_answers_within_them(max_bytes: float, codec: str | None) -> None:
    pair = profiles("zoo:efficientnet_lite0", 100.0, 8.0)
    planner = Planner(None, pair, constraints=Constraints(max_bytes=max_bytes), calibration=virtual.front())
    cut = planner.graph.cut("blocks.5.project.norm")
    options = {
        name: planner.price(cut, [name], Link(1, 4, 10)) for name in ("raw", "int8", "klt:36", "klt:60", "klt:72")
    }
    assert [name for name, option in options.items() if not option.refused] == ([codec] if codec else [])
    assert options["raw"].refused.endswith("its request has up to 62.8 kB")
    plan = planner.plan(Link(1, 4, 10))
    assert plan.best.up_nbytes <= max_bytes
    assert f"at most {size(round(max_bytes))} up" in plan.constraints
    for rate in (0.5, 2.0, 20.0, 200.0):
        best = planner.best(Link(rate, 4 * rate, 10))
        assert best is not None
        assert best.up_nbytes <= max_bytes


def test_with_an_agreement_bytes_are_a_limit_and_the_fewest_milliseconds_win() -> None:
    pair = profiles("zoo:efficientnet_lite0", 100.0, 8.0)
    limits = Constraints(agreement=0.96, max_bytes=5000)
    planner = Planner(None, pair, constraints=limits, calibration=virtual.front())
    best = planner.best(Link(2, 8, 10))
    assert best is not None
    assert (best.cut, best.codecs) == ("blocks.5.project.norm", ("klt:48",))
