"""Judging predictions: truths whose errors are known, measuring that goes on where it ended, and the command."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from latencies import PLAIN, TERMS, kind_model, latency
from plans import model_of

from splitpoint.models.model import Model
from splitpoint.predict.accuracy import AccuracyRow, Judgement, errors_of, few_segments, judge, plan_rows, regrets
from splitpoint.predict.calibrate.ground_truth import Truth, Wholes
from splitpoint.predict.learn.latency_model import Latency, Reference
from splitpoint.predict.price.prediction import CODEC_COSTS, predict_latency
from splitpoint.profile.profiles import Profile
from splitpoint.report.accuracy_table import draw, kind_cells, sentences, signed, whole_cells, write

LENET, EFFICIENT = "zoo:lenet5", "zoo:efficientnet_lite0"


def truth_by(device: Latency, *names: str) -> Truth:
    """A truth in which everything takes what `device` predicts."""
    machine = PLAIN.machine or pytest.fail("no machine")
    made = Truth({}, Wholes(engine="onnxruntime", device="cpu", threads=1, machine=machine, versions={}, visits={}))
    for text in names:
        model = model_of(text)
        found = predict_latency(model, device)
        made.models[model.name] = model
        made.wholes.visits[model.name] = [[found.whole.median] * 3]
        made.profiles[model.name] = as_measured(found.profile(CODEC_COSTS), model, device)
    return made


def as_measured(profile: Profile, model: Model, device: Latency) -> Profile:
    """A predicted profile as if it had been measured: runs that agree, and each kernel's own time in its first node."""
    nodes = np.zeros(len(model.graph.nodes))
    for cost in predict_latency(model, device).kernels:
        nodes[cost.kernel.nodes[0]] = cost.ms.median
    segments = tuple(
        msgspec.structs.replace(
            s,
            head=s.head and msgspec.structs.replace(s.head, p10=s.head.median, p90=s.head.median, count=9),
            tail=s.tail and msgspec.structs.replace(s.tail, p10=s.tail.median, p90=s.tail.median, count=9),
        )
        for s in profile.segments
    )
    return msgspec.structs.replace(profile, segments=segments, nodes=tuple(nodes.tolist()), note="")


# --- errors that are known --------------------------------------------------------------------------------------------


def test_predictions_that_are_the_truth_have_no_error_and_no_regret() -> None:
    found = judge(truth_by(PLAIN, LENET, EFFICIENT), PLAIN)
    assert [r.network for r in found.wholes] == ["lenet5", "efficientnet_lite0"]
    for rows in (found.wholes, found.corrected, found.kernels):
        errors = errors_of(rows)
        assert errors.mape < 1e-4
        assert (errors.within5, errors.within10, errors.within20, errors.covered) == (1, 1, 1, 1)
    assert {r.kind for r in found.kernels} >= {"conv", "dw_conv", "linear"}
    assert len(found.plans) == 30
    assert regrets(found.plans) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert len({r.chosen for r in found.plans}) > 3  # plans that differ: no regret is no accident


def test_a_device_that_is_slower_than_learned_shows_by_how_much() -> None:
    slower = latency(fixed_ms=0.0, scale=1.25)
    found = judge(truth_by(slower, EFFICIENT), PLAIN)
    assert [r.error for r in found.wholes] == pytest.approx([1 / 1.25 - 1])
    assert [r.error for r in found.kernels] == pytest.approx([1 / 1.25 - 1] * len(found.kernels))
    errors = errors_of(found.kernels)
    assert (errors.mape, errors.within10, errors.covered) == (pytest.approx(0.2), 0.0, 0.0)
    # a few measured cuts put that right
    assert abs(found.corrected[0].error) < 0.03
    assert found.corrected[0].low_ms <= found.corrected[0].measured_ms <= found.corrected[0].high_ms


def test_reference_networks_tell_a_slower_day_from_a_wrong_prediction() -> None:
    """Everything takes 1.25 times as long as when it was calibrated, what was calibrated too."""
    known = tuple(Reference(family="mobile", seed=k, work=1e8, flops=1, ms=10.0) for k in range(3))
    device = msgspec.structs.replace(PLAIN, reference=known)
    truth = truth_by(PLAIN.slowed(1.25), LENET, EFFICIENT)
    usual = truth.wholes.visits["lenet5"][0]
    truth.wholes.visits["lenet5"] = [usual, [2 * ms for ms in usual], usual]
    # one round was slow, and one network is always slower than the file says
    truth.wholes.references = {r.name: [[12.4, 12.5, 12.6], [25.0], [12.5]] for r in known[:2]}
    truth.wholes.references[known[2].name] = [[13.0], [26.0], [13.0]]
    found = judge(truth, device)
    assert [r.error for r in found.wholes] == pytest.approx([-0.2, -0.2])
    assert [r.error for r in found.same_speed] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert found.speed is not None
    assert (found.speed.ratio, found.speed.count) == (pytest.approx(1.25), 3)
    assert found.speed.rounds == pytest.approx((1.25, 2.5, 1.25))
    said = sentences(found)
    assert said[1].startswith("meanwhile 3 networks of the calibration take 1.25x what the file says")
    assert said[2].startswith("whole networks at the same speed: MAPE 0.0%; 2, 2 and 2 of 2 within")
    assert [row[5] for row in whole_cells(found)] == ["+0.0%", "+0.0%"]
    # measured without them, or with those of another calibration: nothing is said of it
    truth.wholes.references = {"vgg-3-1e+08": [[1.0]]}
    without = judge(truth, device)
    assert (without.speed, without.same_speed) == (None, ())
    assert [row[5] for row in whole_cells(without)] == ["", ""]


def test_plans_from_wrong_predictions_have_a_regret() -> None:
    """Learned wrong: depthwise convolutions seem to take forty times as long as they do."""
    wrong = {t: 40 * ms for t, ms in TERMS.items()}
    other = msgspec.structs.replace(PLAIN, kinds=PLAIN.kinds | {"dw_conv": kind_model("dw_conv", wrong)})
    found = judge(truth_by(PLAIN, EFFICIENT), other)
    middle, high, mean = regrets(found.plans)
    assert high > 0.05
    assert mean > 0
    assert middle <= high
    assert all(r.chosen_ms >= r.best_ms * 0.97 for r in found.plans)  # nothing beats the best but a tie
    assert all(r.regret == 0 for r in found.plans if r.chosen == r.best)


def test_errors_count_as_they_are_defined() -> None:
    rows = [AccuracyRow("n", "", "conv", 100.0, ms, 90.0, 109.0, 150.0) for ms in (100.0, 104.0, 109.0, 119.0, 150.0)]
    found = errors_of(rows)
    assert found.mape == pytest.approx((0 + 0.04 + 0.09 + 0.19 + 0.5) / 5)
    assert (found.within5, found.within10, found.within20) == (0.4, 0.6, 0.8)
    assert found.covered == 1.0
    assert found.linear == pytest.approx(0.5)
    assert errors_of([]).count == 0
    assert [signed(x) for x in (0.042, -0.004, 0.31, -2.0)] == ["+4.2%", "-0.4%", "+31%", "-200%"]


def test_kernel_times_that_were_only_estimated_judge_nothing() -> None:
    """A profile whose budget was too short has shares by FLOPs in place of the engine's times."""
    from splitpoint.profile.kernel_times import estimated

    truth = truth_by(PLAIN, LENET)
    profile = truth.profiles["lenet5"]
    guess = tuple((estimated(profile.graph) * 3.0).tolist())
    truth.profiles["lenet5"] = msgspec.structs.replace(profile, nodes=guess)
    found = judge(truth, PLAIN)
    assert found.kernels == ()
    assert len(found.wholes) == 1
    assert found.kinds() == {}


def test_the_few_cuts_are_inside_and_apart() -> None:
    profile = truth_by(PLAIN, EFFICIENT).profiles["efficientnet_lite0"]
    places = [s.prefix for s in few_segments(profile)]
    assert len(places) == 3
    share = [profile.head(k).median / profile.whole.median for k in places]
    assert share == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    assert few_segments(msgspec.structs.replace(profile, segments=())) == []


# --- words, files and the command -------------------------------------------------------------------------------------


def judged() -> Judgement:
    return judge(truth_by(latency(fixed_ms=0.0, scale=1.04), LENET, EFFICIENT), PLAIN)


def test_what_it_comes_to_in_words_and_files(tmp_path: Path) -> None:
    found = judged()
    said = sentences(found)
    assert "whole networks: MAPE 3.8%; 2, 2 and 2 of 2 within 5, 10 and 20%; 2 in their interval" in said[0]
    assert said[1].startswith("with a few of their cuts measured: MAPE ")
    assert "30 plans made from predictions: median regret 0.0%" in said[2]
    assert [row[4] for row in whole_cells(found)] == ["-3.8%", "-3.8%"]
    kinds = kind_cells(found.kinds())
    assert kinds[0][0] == "conv"
    assert kinds[-1][:2] == ("all kernels", str(len(found.kernels)))
    written = write(tmp_path, found, "title")
    assert [p.name for p in written] == ["networks.csv", "kernels.csv", "plans.csv", "scatter.png"]
    assert len((tmp_path / "networks.csv").read_text().splitlines()) == 5
    assert (
        (tmp_path / "plans.csv").read_text().startswith("network,link,slowdown,best,chosen,best_ms,chosen_ms,regret\n")
    )
    assert written[-1].read_bytes().startswith(b"\x89PNG")
    draw(Judgement(found.wholes, (), (), ()), tmp_path / "one.png", "networks alone")
    assert sentences(Judgement((), (), (), ())) == []


def test_plans_are_made_for_every_link_and_device() -> None:
    profile = truth_by(PLAIN, EFFICIENT).profiles["efficientnet_lite0"]
    rows = plan_rows("net", profile, profile, ("3g", "wifi"), (2.0, 20.0))
    assert [(r.link, r.slowdown) for r in rows] == [("3g", 2.0), ("wifi", 2.0), ("3g", 20.0), ("wifi", 20.0)]
    assert all(r.best == r.chosen and r.regret == 0 for r in rows)
