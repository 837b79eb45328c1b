"""Sums of predictions with their errors, and what measurements change about them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from latencies import TERMS, kind_model
from plans import model_of
from predicted_nets import EFFICIENT, LENET, SLOW, net, width

from splitpoint.predict.learn.latency_model import cold
from splitpoint.predict.price.prediction import CODEC_COSTS, Prediction, predict_latency
from splitpoint.profile.profiles import SegmentCost, Stat


@pytest.mark.parametrize("name", [LENET, EFFICIENT])
def test_intervals_of_sums_hold_what_they_promise(name: str) -> None:
    """Errors are drawn as they are believed to be; four sums in five must lie in their intervals."""
    belief, rng = predict_latency(net(name), SLOW).belief, np.random.default_rng(0)
    draws, parts = 4000, len(belief.edge)
    factors = 1 + belief.overall * rng.standard_normal((draws, 1))
    factors = factors + belief.shared * rng.standard_normal((draws, belief.group.max() + 1))[:, belief.group]
    factors = factors + belief.own * rng.standard_normal((draws, parts))
    for place, head in enumerate(belief.heads()[1:], 1):
        inside = np.arange(parts) <= belief.counts[place]
        paid = np.where(np.arange(parts) > 0, 1.0, cold(belief.edge[1:][inside[1:]].sum(), belief.cold_ms))
        sums = (factors * belief.edge * paid)[:, inside].sum(axis=1)
        assert 0.75 < np.mean((sums >= head.p10) & (sums <= head.p90)) < 0.85


# --- corrections ------------------------------------------------------------------------------------------------------


def measured(found: Prediction, places: list[int], factor: float) -> list[SegmentCost]:
    """Heads and tails at `places` as a machine `factor` times as slow as predicted would have them, within 1 %."""
    heads, tails = found.belief.heads(), found.belief.tails()

    def stat(ms: float) -> Stat:
        return Stat(ms * factor, ms * factor * 0.99, ms * factor * 1.01, 9)

    return [SegmentCost(k, stat(heads[k].median), stat(tails[k].median)) for k in places]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 3.0])
@pytest.mark.parametrize("name", [LENET, EFFICIENT])
def test_measured_segments_move_the_prediction_towards_them(name: str, factor: float) -> None:
    model = net(name)
    plain, last = predict_latency(model, SLOW), len(model.graph.order)
    for places in ([last // 2], [last // 4, last // 2, 3 * last // 4]):
        found = predict_latency(model, SLOW, measured(plain, places, factor))
        assert found.whole.median / plain.whole.median == pytest.approx(factor, rel=0.15)
        assert found.measured == 2 * len(places)
        for k in range(1, last):  # prefixes that were not measured follow
            assert abs(found.belief.heads()[k].median - factor * plain.belief.heads()[k].median) < abs(
                plain.belief.heads()[k].median * (factor - 1)
            )
    profile = found.profile(CODEC_COSTS)
    assert profile.head(last // 2).median == pytest.approx(factor * plain.belief.heads()[last // 2].median, rel=0.05)
    assert "corrected by 6 measured times" in profile.note


def test_more_measurements_narrow_the_interval_and_surprises_widen_it() -> None:
    model = model_of(EFFICIENT)
    plain, last = predict_latency(model, SLOW), len(model.graph.order)
    widths = [width(predict_latency(model, SLOW, measured(plain, list(range(10, 10 + n)), 1.0))) for n in (0, 1, 3)]
    assert widths[0] > widths[1] > widths[2]
    agreed, odd = (predict_latency(model, SLOW, measured(plain, [last // 8], f)) for f in (1.0, 4.0))
    assert width(odd) > width(agreed)


def test_a_slow_kind_is_told_from_a_slow_machine() -> None:
    """Depthwise convolutions take twice as long as learned: the head and tail of every cut show it, and which."""
    model = model_of(EFFICIENT)
    kinds = {k: m for k, m in SLOW.kinds.items()}
    slow = {t: 2 * ms for t, ms in TERMS.items()}
    truth = predict_latency(
        model, msgspec.structs.replace(SLOW, kinds=kinds | {"dw_conv": kind_model("dw_conv", slow)})
    )
    places = list(range(5, len(model.graph.order), 8))
    plain, found = predict_latency(model, SLOW), predict_latency(model, SLOW, measured(truth, places, 1.0))
    now, before, real = (
        {kind: sum(k.ms.median for k in p.kernels if k.kind == kind) for kind in ("conv", "dw_conv")}
        for p in (found, plain, truth)
    )
    assert real["dw_conv"] == pytest.approx(2 * before["dw_conv"])
    assert now["dw_conv"] == pytest.approx(real["dw_conv"], rel=0.25)
    assert now["conv"] == pytest.approx(real["conv"], rel=0.1)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_what_was_measured_today_is_not_certain_tomorrow(factor: float) -> None:
    """However much of a model was measured, and however exactly: the machine is a little faster or slower later."""
    model = model_of(EFFICIENT)
    plain, last = predict_latency(model, SLOW), len(model.graph.order)
    whole = predict_latency(model, SLOW, measured(plain, list(range(1, last)), factor)).whole
    assert whole.p90 / whole.median > 1.04
    assert whole.median / whole.p10 > 1.04
    assert whole.p90 / whole.median < plain.whole.p90 / plain.whole.median
