"""From segments to nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_cases import Machinery, measured, quantised

import nets
from nets import load
from splitpoint.models.model import Model
from splitpoint.profile.costs import fit, monotone
from splitpoint.profile.kernel_times import estimated


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40))
def test_monotone_is_the_nearest_non_decreasing_sequence(values: list[float]) -> None:
    from scipy.optimize import isotonic_regression

    expected = isotonic_regression(values, weights=[1 / v**2 for v in values]).x
    np.testing.assert_allclose(monotone(values), expected, rtol=1e-6)


def test_costs_are_exact_at_measured_prefixes_and_zero_for_copied_nodes() -> None:
    model = load(nets.flattening())
    profile = measured(model, Machinery(model))
    costs = profile.costs()
    graph = model.graph
    assert (costs.head >= 0).all()
    assert (costs.tail >= 0).all()
    copied = [i for i, n in enumerate(graph.nodes) if not n.placed]
    assert copied
    assert not costs.head[copied].any()
    assert not costs.tail[copied].any()
    for s in profile.segments:
        cut = graph.prefixes()[s.prefix]
        if s.head:
            assert costs.head_fixed + costs.head[list(cut.nodes)].sum() == pytest.approx(s.head.median, rel=1e-6)
        if s.tail:
            rest = [i for i in graph.placed if i not in cut.nodes]
            assert costs.tail_fixed + costs.tail[rest].sum() == pytest.approx(s.tail.median, rel=1e-6)


def test_a_head_that_gets_cheaper_never_makes_a_node_cost_less_than_nothing(lenet: Model) -> None:
    heads = {5: 2.0, 6: 1.0, 16: 4.0}
    costs = fit(lenet.graph, heads, {}, 4.0, estimated(lenet.graph), {}, {})
    assert (costs.head >= 0).all()
    assert costs.head[5] == pytest.approx(0)
    assert 1.0 < costs.head_fixed + costs.head[:5].sum() < 2.0
    assert costs.head_fixed + costs.head.sum() == pytest.approx(4.0)


def test_the_fit_believes_what_is_measured_closely() -> None:
    close, far = monotone([10.0, 8.0], [0.0, 0.3]), monotone([10.0, 8.0], [0.3, 0.0])
    assert close[0] == close[1] > 9.9
    assert far[0] == far[1] < 8.1
    assert monotone([10.0, 8.0], [0.001, 0.01]).tolist() == monotone([10.0, 8.0]).tolist()


def test_groups_share_what_they_cost_together() -> None:
    model = quantised()
    machinery = Machinery(model)
    costs = measured(model, machinery).costs()
    groups = [list(step) for step in model.graph.order if len(step) > 1]
    assert groups
    for step in groups:
        own = sum(machinery.costs[model.graph.nodes[i].name] for i in step)
        # With them go the copied DequantizeLinear before them, which are nobody's own.
        assert own - 1e-6 <= costs.head[step].sum() <= own + 10
        assert (costs.head[step] > 0).all()
