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
from splitpoint.profile.costs import Growing, fit, likely, monotone, step_costs
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


def test_cuts_that_are_not_as_modelled_make_the_others_unsure() -> None:
    """Each measured one is compared with what those beside it say of it."""
    kernels = np.ones(20)

    def width(times: dict[int, float]) -> float:
        growing = Growing(np.arange(21.0), kernels, {**times, 20: 20.0})
        low, high = likely(growing.errors())
        below, above = growing.doubts(low, high)
        return float((below + above)[11])

    as_said = {k: float(k) for k in range(2, 20, 2)}
    off = {k: ms * (1.3 if k % 4 else 0.7) for k, ms in as_said.items()}
    assert width({10: 10.0, 12: 12.0}) < width({10: 10.0}) < width({})
    assert width(as_said) < 0.8 * width({10: 10.0, 12: 12.0})
    assert width(off) > 3 * width(as_said)


def test_a_prediction_is_compared_with_nothing() -> None:
    growing = Growing(np.arange(5.0), np.ones(4), dict.fromkeys(range(1, 5)))
    assert growing.errors().tolist() == []
    assert likely(growing.errors()) == pytest.approx((-1.5, 2.25))


def test_a_segment_without_steps_is_no_doubt() -> None:
    below, above = Growing(np.zeros(1), np.zeros(0), {}).doubts(-1.0, 1.0)
    assert below.tolist() == above.tolist() == [0.0]


@pytest.mark.parametrize(("measured_cuts", "spread"), [(0, 0.2), (1, 0.2), (3, 0.2), (12, 0.2), (12, 0.4), (12, 0.8)])
def test_four_of_five_measurements_lie_within_the_band(measured_cuts: int, spread: float) -> None:
    """Machines drawn at random, whose kernels are not what the profiler says: with few cuts as far off as those of real
    networks are, with many, which show it, however far off.
    """
    rng, inside, drawn = np.random.default_rng(7), 0, 0
    for _ in range(60):
        kernels = rng.lognormal(0, 1, 40)
        true = np.cumsum([0.0, *(kernels * rng.lognormal(0, spread, 40))]) * rng.lognormal(0, 0.03, 41)
        places = {round(40 * (k + 1) / (measured_cuts + 1)) for k in range(measured_cuts)} | {40}
        known = {k: float(true[k]) for k in places}
        steps, fixed = step_costs(known, kernels, {})
        growing = Growing(fixed + np.cumsum([0.0, *steps]), kernels, known)
        below, above = growing.doubts(*likely(growing.errors()))
        for k in set(range(1, 40)) - places:
            inside += bool(growing.ms[k] - below[k] <= true[k] <= growing.ms[k] + above[k])
            drawn += 1
    assert inside >= 0.8 * drawn
