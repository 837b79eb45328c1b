"""Predictions against a device whose truth is a formula; what measuring adds; files and options as users meet them."""

from __future__ import annotations

from itertools import pairwise, product
from math import exp, isclose
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latencies import DEVICE, TERMS, latency
from plans import model_of
from plans import profile as hand_made
from predicted_nets import EFFICIENT, FAST, LENET, SLOW, net, width

import nets
from splitpoint.errors import InputError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.predict.kernels.kernel_kinds import op_index
from splitpoint.predict.kernels.kernels import Kernel, kernels_of
from splitpoint.predict.learn.features import columns_of, terms_of
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.predict.price.posterior import ANOTHER_TIME
from splitpoint.predict.price.prediction import CODEC_COSTS, linear_ms, predict_latency
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.profile.profiles import CodecCost, SegmentCost, Stat
from splitpoint.report.prediction_table import MOST_ROWS, kernel_rows, layer_rows

NETS = ("residual", "flattening", "passing")


def whole_ms(device: Latency, kernels_ms: float) -> float:
    """What a segment takes: a short one is done before all of the fixed part is paid."""
    return kernels_ms + device.fixed_ms * (1 - exp(-kernels_ms / device.cold_ms))


def formula(kernel: Kernel, scale: float = 1.1) -> float:
    """What a kernel takes on the device of `latencies`, in ms."""
    columns = columns_of(kernel.kind, {c: np.array([v]) for c, v in kernel.config.items()})
    terms = terms_of(kernel.kind, columns)
    return scale * sum(ms * float(terms[name][0]) for name, ms in TERMS.items() if name in terms)


def boundaries(model: Model) -> list[tuple[int, list[Kernel], list[Kernel]]]:
    """Prefixes that split no kernel: their places, the kernels inside and those left."""
    kernels = kernels_of(model)
    found = []
    for place, cut in enumerate(model.graph.prefixes()):
        inside = [k for k in kernels if set(k.nodes) <= set(cut.nodes)]
        left = [k for k in kernels if not set(k.nodes) & set(cut.nodes)]
        if len(inside) + len(left) == len(kernels):
            found.append((place, inside, left))
    return found


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_convolution_by_hand() -> None:
    """3 × 3, 3 → 8 channels, on 8 × 8: every number of the formula written out."""
    model = nets.load(nets.residual())
    conv = next(k for k in predict_latency(model, SLOW).kernels if k.kind == "conv")
    c = conv.kernel.config
    out = c["out"] or c["HW"] / c["stride"]
    depth = c["kernel"] ** 2 * c["Cin"]
    micro = 0.5 * out**2 * depth * c["Cout"] + 0.3 * c["HW"] ** 2 * c["Cin"] + 0.4 * out**2 * c["Cout"]
    assert conv.ms.median == pytest.approx(1.1 * (0.02 + (micro + 0.2 * depth * c["Cout"]) / 1e6))
    assert (conv.ms.p10, conv.ms.p90) == pytest.approx((conv.ms.median * exp(-0.1), conv.ms.median * exp(0.1)))


@pytest.mark.parametrize("name", [*NETS, LENET, EFFICIENT])
def test_heads_and_tails_are_sums_of_the_formula(name: str) -> None:
    model = net(name)
    profile, found = predict_latency(model, SLOW).profile(), boundaries(model)
    assert len(found) >= 3
    for place, inside, left in found:
        head = whole_ms(SLOW, sum(map(formula, inside))) if inside else 0.0
        tail = whole_ms(SLOW, sum(map(formula, left))) if left else 0.0
        assert profile.head(place).median == pytest.approx(head)
        assert profile.tail(place).median == pytest.approx(tail)
    assert profile.whole.median == pytest.approx(whole_ms(SLOW, sum(map(formula, kernels_of(model)))))
    assert profile.head(len(model.graph.order)).median == pytest.approx(profile.whole.median)


@pytest.mark.parametrize("name", [*NETS, LENET, EFFICIENT])
def test_a_cut_inside_a_kernel_never_looks_better_than_one_behind_it(name: str) -> None:
    """Conv without the ReLU behind it is no shorter, and the ReLU alone is one more pass for the server."""
    model = net(name)
    profile = predict_latency(model, SLOW).profile()
    places = [place for place, _, _ in boundaries(model)]
    for start, end in pairwise(places):
        for k in range(start + 1, end):
            split = profile.head(k).median + profile.tail(k).median
            assert split >= profile.head(end).median + profile.tail(end).median - 1e-9
    for heads in (True, False):
        stats = [profile.head(k) if heads else profile.tail(k) for k in range(len(model.graph.order) + 1)]
        steps = [b.median - a.median for a, b in pairwise(stats)]
        assert min(steps if heads else [-s for s in steps]) >= -1e-9
        assert all(0 <= s.p10 <= s.median <= s.p90 for s in stats)


@pytest.mark.parametrize("name", [LENET, EFFICIENT, "residual"])
def test_the_best_plan_is_that_of_a_profile_made_of_the_same_sums(name: str) -> None:
    model = net(name)
    known = boundaries(model)
    direct = []
    for device in (SLOW, FAST):
        ms = {k.nodes: formula(k, device.scale) for k in kernels_of(model)}
        segments = tuple(
            SegmentCost(
                place,
                Stat(whole_ms(device, sum(ms[k.nodes] for k in inside)), 0, 1e6) if inside else None,
                Stat(whole_ms(device, sum(ms[k.nodes] for k in left)), 0, 1e6) if left else None,
            )
            for place, inside, left in known
        )
        nodes = np.zeros(len(model.graph.nodes))
        for k in kernels_of(model):
            nodes[k.nodes[0]] = ms[k.nodes]
        whole = Stat(whole_ms(device, sum(ms.values())), 0, 1e6)
        blank = hand_made(model.graph, 1.0, model.fingerprint, codecs=dict(CODEC_COSTS))
        direct.append(msgspec.structs.replace(blank, whole=whole, segments=segments, nodes=tuple(nodes.tolist())))
    ours = [predict_latency(model, device).profile(CODEC_COSTS) for device in (SLOW, FAST)]
    limits = Constraints(codecs=("int8",))
    planners = [Planner(None, pair, constraints=limits) for pair in (ours, direct)]
    kinds = set()
    for up, rtt in product((0.5, 3.0, 10.0, 60.0, 400.0), (1.0, 20.0)):
        a, b = (p.best(Link(up, up, rtt)) for p in planners)
        assert a is not None
        assert b is not None
        assert isclose(a.total.ms, b.total.ms, rel_tol=0.01)
        assert a.kind == b.kind
        kinds.add(a.kind)
    assert name != EFFICIENT or kinds == {"device", "server", "split"}


def test_a_device_without_a_law_for_whole_models_is_less_sure() -> None:
    model = model_of(EFFICIENT)
    assert width(predict_latency(model, latency(spread=0.0))) > width(predict_latency(model, latency(spread=0.08)))


def test_a_device_is_no_surer_than_its_speed_at_another_time() -> None:
    sure = predict_latency(model_of(LENET), msgspec.structs.replace(SLOW, spread=1e-6))
    assert sure.belief.overall == pytest.approx(ANOTHER_TIME)


def test_nothing_measured_changes_nothing_and_nonsense_is_refused() -> None:
    model = model_of(LENET)
    plain = predict_latency(model, SLOW)
    assert predict_latency(model, SLOW, [SegmentCost(3)]).whole == plain.whole
    with pytest.raises(InputError, match="prefix 99"):
        predict_latency(model, SLOW, [SegmentCost(99, Stat(1.0, 1.0, 1.0))])


# --- the profile ------------------------------------------------------------------------------------------------------


def test_a_predicted_profile_is_a_profile_that_says_so(tmp_path: Path) -> None:
    model = model_of(LENET)
    profile = predict_latency(model, SLOW).profile()
    save_profile(tmp_path / "p.profile.json", profile)
    again = load_profile(tmp_path / "p.profile.json")
    assert again.head(5) == profile.head(5)
    assert "predicted from bench, never run there" in again.where
    assert "codec times of another machine" in again.where
    assert again.machine == DEVICE
    assert not again.complete
    assert {s.count for x in again.segments for s in (x.head, x.tail) if s is not None} == {0}
    own = predict_latency(model, SLOW).profile({"int8": CodecCost(1, 2, 3, 4)})
    assert "another machine" not in own.note
    assert own.codecs == {"int8": CodecCost(1, 2, 3, 4)}


def test_linear_regression_is_there_to_compare_with() -> None:
    kernels = kernels_of(model_of(LENET))
    found = linear_ms(kernels, latency(without=("move",)))
    assert [ms == 0.5 for ms in found] == [k.kind != "move" for k in kernels]


def test_tables_are_no_longer_than_a_screen() -> None:
    small, large = predict_latency(model_of(LENET), SLOW), predict_latency(model_of(EFFICIENT), SLOW)
    assert layer_rows(small) == kernel_rows(small)
    rows = layer_rows(large)
    assert len(rows) <= MOST_ROWS < len(large.kernels)
    assert sum(r.kernels for r in rows) == len(large.kernels)
    assert sum(r.ms for r in rows) == pytest.approx(sum(k.ms.median for k in large.kernels), rel=1e-3)
    assert "blocks.3" in [r.layer for r in rows]
    short = layer_rows(large, 5)
    assert len(short) == 5
    assert short[-1].layer == f"{len(large.kernels) - 4} others"
    assert sum(r.ms for r in short) == pytest.approx(sum(r.ms for r in rows), rel=1e-3)


def test_what_was_never_calibrated_is_priced_by_flops_and_bytes_and_listed() -> None:
    model = model_of(LENET)
    known, found = predict_latency(model, SLOW), predict_latency(model, latency(without=("linear", "avgpool")))
    assert known.uncalibrated == ()
    assert {(u.op, u.kind, u.count) for u in found.uncalibrated} == {
        ("Gemm", "linear", 3),
        ("AveragePool", "avgpool", 2),
    }
    assert sum(u.share for u in found.uncalibrated) < 1
    for cost in found.kernels:
        if cost.kind in ("linear", "avgpool"):
            k = cost.kernel
            ms = max(k.flops / 4e6, (k.in_nbytes + k.out_nbytes + k.weight_nbytes) / 2e6, 0.01)
            assert cost.ms.median == pytest.approx(1.1 * ms)
            assert (cost.ms.p10, cost.ms.p90) == pytest.approx((1.1 * ms / 3, 1.1 * ms * 3))
            assert not cost.calibrated
    assert width(found) > 1.2 * width(known)


def test_an_operator_that_no_network_of_the_calibration_had_is_not_priced_as_others_of_its_kind() -> None:
    model = model_of(EFFICIENT)
    adds = [k for k in kernels_of(model) if k.kind == "elementwise"]
    others = msgspec.structs.replace(SLOW.kinds["elementwise"], ops=(op_index("elementwise", "Mul"),))
    device = msgspec.structs.replace(SLOW, kinds={**SLOW.kinds, "elementwise": others})
    found = predict_latency(model, device)
    assert adds
    assert [(u.kind, u.count) for u in found.uncalibrated] == [
        ("elementwise", sum(k.config["op"] != op_index("elementwise", "Mul") for k in adds))
    ]
