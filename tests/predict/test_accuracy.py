"""Judging predictions: truths whose errors are known, measuring that goes on where it ended, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latencies import TERMS, kind_model, latency
from plans import model_of

import nets
from splitpoint.cli import main
from splitpoint.engines import Engine
from splitpoint.errors import InputError, StorageError
from splitpoint.models.model import Model
from splitpoint.predict.accuracy import AccuracyRow, Judgement, errors_of, few_segments, judge, plan_rows, regrets
from splitpoint.predict.calibrate import ground_truth as truths
from splitpoint.predict.calibrate.ground_truth import Truth
from splitpoint.predict.calibrate.random_networks import strip
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.predict.learn.files import save_latency
from splitpoint.predict.learn.latency_model import Latency, Reference
from splitpoint.predict.price.prediction import CODEC_COSTS, predict
from splitpoint.profile.profiles import Profile
from splitpoint.report.accuracy_table import draw, kind_cells, sentences, signed, whole_cells, write

LENET, EFFICIENT = "zoo:lenet5", "zoo:efficientnet_lite0"
#: The engine's timer sees kernels, not what a run costs beside them: no fixed part, and no scale.
PLAIN = latency(fixed_ms=0.0, scale=1.0)


def truth_by(device: Latency, *names: str) -> Truth:
    """A truth in which everything takes what `device` predicts."""
    made = Truth("onnxruntime", "cpu", 1, PLAIN.machine or pytest.fail("no machine"))
    for text in names:
        model = model_of(text)
        found = predict(model, device)
        made.models[model.name] = model
        made.visits[model.name] = [[found.whole.median] * 3]
        made.profiles[model.name] = as_measured(found.profile(CODEC_COSTS), model, device)
    return made


def as_measured(profile: Profile, model: Model, device: Latency) -> Profile:
    """A predicted profile as if it had been measured: runs that agree, and each kernel's own time in its first node."""
    nodes = np.zeros(len(model.graph.nodes))
    for cost in predict(model, device).kernels:
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
    usual = truth.visits["lenet5"][0]
    truth.visits["lenet5"] = [usual, [2 * ms for ms in usual], usual]
    # one round was slow, and one network is always slower than the file says
    truth.references = {r.name: [[12.4, 12.5, 12.6], [25.0], [12.5]] for r in known[:2]}
    truth.references[known[2].name] = [[13.0], [26.0], [13.0]]
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
    truth.references = {"vgg-3-1e+08": [[1.0]]}
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


# --- measuring, which goes on ----------------------------------------------------------------------------------------


class Lab:
    """Time in which every look at the clock takes a millisecond, and a profiler that takes what it is given."""

    def __init__(self) -> None:
        self.now, self.steps, self.budgets = 0.0, list[str](), list[float]()

    def clock(self) -> float:
        self.now += 1e-3
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def step(self, what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.steps.append(what)

    def profile(self, model: Model, engine: Engine, budget_s: float) -> Profile:
        self.now += budget_s
        self.budgets.append(budget_s)
        return msgspec.structs.replace(predict(model, PLAIN).profile(CODEC_COSTS), threads=engine.threads)


def networks() -> dict[str, Model]:
    return {"residual": nets.load(nets.residual()), "flattening": nets.load(nets.flattening())}


def measured(folder: Path | None, found: Truth | None = None, budget_s: float = 100.0) -> tuple[Truth, Lab]:
    lab = Lab()
    truth = found or truths.begin(nets.ENGINE, networks())
    truths.measure(
        truth, nets.ENGINE, budget_s, folder=folder, on_step=lab.step, clock=lab.clock, pause=lab.pause,
        profiler=lab.profile,
    )  # fmt: skip
    return truth, lab


def test_wholes_are_measured_in_rounds_with_profiles_between(tmp_path: Path) -> None:
    truth, lab = measured(tmp_path)
    wholes = ["residual, whole", "flattening, whole"]
    assert lab.steps == [*wholes, "residual, its cuts", *wholes, *wholes, "flattening, its cuts", *wholes * 3]
    assert lab.budgets == pytest.approx([46.0, 46.0], rel=0.05)  # 100 s less what twelve visits take
    assert 99 < lab.now < 101
    assert {name: len(v) for name, v in truth.visits.items()} == {"residual": 6, "flattening": 6}
    assert not truth.missing()
    for name in truth.models:
        whole = truth.whole(name)
        assert whole is not None
        assert whole.median > 0
        assert truth.profiles[name].fingerprint == truth.models[name].fingerprint
    assert Truth("e", "d", 1, truth.machine).whole("residual") is None
    # a budget that is over at once still has one visit and one profile of each
    hasty, _ = measured(None, budget_s=1e-3)
    assert {name: len(v) for name, v in hasty.visits.items()} == {"residual": 1, "flattening": 1}
    assert not hasty.missing()


def test_reference_networks_are_visited_between_the_wholes_and_only_then(tmp_path: Path) -> None:
    made = strip(3, "mobile", 1e8)
    flops = sum(node.flops for node in made.graph.nodes)
    known = [Reference(family="mobile", seed=3, work=1e8, flops=flops, ms=5.0)]
    truth, lab = Truth("onnxruntime", "cpu", 1, truths.begin(nets.ENGINE, {}).machine, networks()), Lab()
    words = {"clock": lab.clock, "pause": lab.pause, "profiler": lab.profile}
    truths.measure(truth, nets.ENGINE, 60.0, references=known, folder=tmp_path, **words)  # type: ignore[arg-type]
    assert {name: len(v) for name, v in truth.references.items()} == {known[0].name: truths.VISITS}
    kept = truths.load(tmp_path, networks())
    assert kept is not None
    assert kept.references == truth.references
    # one network alone: what is there of the others stays
    alone = truths.load(tmp_path, {"flattening": networks()["flattening"]})
    assert alone is not None
    assert alone.visits == truth.visits
    # a visit more on another day: how fast the machine was then is not known any more
    another = truths.load(tmp_path, networks())
    assert another is not None
    another.visits["residual"].pop()
    truths.measure(another, nets.ENGINE, 60.0, references=known, **words)  # type: ignore[arg-type]
    assert len(another.visits["residual"]) == truths.VISITS
    assert another.references == {}
    # a profile is measured again, wholes are not: what the machine does now says nothing of those
    kept.profiles.clear()
    truths.measure(kept, nets.ENGINE, 10.0, references=known, **words)  # type: ignore[arg-type]
    assert kept.references == truth.references
    assert not kept.missing()


def test_reference_networks_take_turns_with_the_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = []
    for seed in range(3):
        flops = sum(node.flops for node in strip(seed, "mobile", 1e8).graph.nodes)
        known.append(Reference(family="mobile", seed=seed, work=1e8, flops=flops, ms=5.0))
    seen = list[str]()
    monkeypatch.setattr(truths, "visit", lambda model, *rest: seen.append(model.name) or [1.0])
    truth, lab = truths.begin(nets.ENGINE, networks()), Lab()
    words = {"clock": lab.clock, "pause": lab.pause, "profiler": lab.profile}
    truths.measure(truth, nets.ENGINE, 60.0, references=known, **words)  # type: ignore[arg-type]
    first, second = (model.name for model in truth.models.values())
    assert seen[:5] == [first, "mobile-0", "mobile-2", second, "mobile-1"]
    assert seen[5:10] == seen[:5]
    other = msgspec.structs.replace(known[0], flops=1)
    seen.clear()
    with pytest.raises(InputError, match="another version of splitpoint"):
        truths.measure(truths.begin(nets.ENGINE, networks()), nets.ENGINE, 60.0, references=[*known, other], **words)  # type: ignore[arg-type]
    assert seen == []  # before anything is measured


def test_a_lucky_visit_is_not_how_long_a_network_takes() -> None:
    truth = Truth("e", "d", 1, truths.begin(nets.ENGINE, {}).machine)
    truth.visits["residual"] = [[11.0, 11.2, 11.1], [9.0, 9.1, 9.2], [11.3, 11.4, 11.5], [10.9, 11.0, 19.0]]
    whole = truth.whole("residual")
    assert whole is not None
    assert whole.median == pytest.approx(11.05)
    assert whole.p10 < 9.3
    assert whole.p90 > 11.4


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first, _ = measured(tmp_path)
    models = {}
    for name, model in networks().items():
        truths.keep(model, name, tmp_path)
        kept = truths.kept(tmp_path, name)
        assert kept is not None
        assert kept.fingerprint == model.fingerprint
        assert [k.config for k in kernels_of(kept)] == [k.config for k in kernels_of(model)]
        models[name] = kept
    assert list(truths.names(tmp_path)) == ["flattening", "residual"]
    again = truths.load(tmp_path, models)
    assert again is not None
    assert again.visits == first.visits
    assert not again.missing()
    _, lab = measured(None, again)
    assert lab.steps == []
    # half of it is gone: the rest goes on
    (tmp_path / "residual.profile.json").unlink()
    half = truths.load(tmp_path, models)
    assert half is not None
    assert half.missing()
    _, lab = measured(None, half)
    assert lab.steps == ["residual, its cuts"]
    assert truths.load(tmp_path / "nowhere", models) is None
    assert truths.kept(tmp_path, "nothing") is None


def test_damaged_and_foreign_data_is_refused(tmp_path: Path) -> None:
    measured(tmp_path)
    models, path = networks(), tmp_path / "wholes.json"
    good = path.read_text()
    for bad, said in (
        (good[:50], "is damaged"),
        (good.replace('"format": 1', '"format": 7'), "make no sense"),
        (json.dumps(json.loads(good) | {"visits": {"residual": [[-1.0]]}}), "make no sense"),
        (json.dumps(json.loads(good) | {"visits": {"residual": [[]]}}), "make no sense"),
        (json.dumps(json.loads(good) | {"references": {"vgg-1-1": [[0.0]]}}), "make no sense"),
        (json.dumps(json.loads(good) | {"threads": 9}), "use another folder for each"),
    ):
        assert bad != good
        path.write_text(bad)
        with pytest.raises(InputError, match=said):
            truths.load(tmp_path, models)
    path.write_text(good)
    with pytest.raises(InputError, match="this is a profile of"):
        truths.load(tmp_path, {"residual": models["flattening"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        truths.keep(models["residual"], "residual", tmp_path / "file")


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


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_measures_once_and_judges_as_often_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = tmp_path / "here.latency.json", tmp_path / "data"
    save_latency(path, latency(machine=None))
    words = ("predict", "evaluate", "--on", path, "--data", data, "--budget", "1s", LENET)
    status, _, err = run(capsys, *words, "--prepare")
    assert status == 0
    assert "opening zoo:lenet5" in err
    assert [p.name for p in data.iterdir()] == ["lenet5.graph"]
    status, text, err = run(capsys, *words, "-o", tmp_path / "out")
    assert status == 0, err
    assert "opening" not in err
    for said in ("lenet5", "whole networks: MAPE", "plans made from predictions", "all kernels"):
        assert said in text
    assert (tmp_path / "out" / "plans.csv").is_file()
    before = (data / "lenet5.profile.json").stat().st_mtime_ns
    status, text, _ = run(capsys, "predict", "evaluate", "--on", path, "--data", data, "--json")
    assert status == 0
    found = json.loads(text)
    assert [r["network"] for r in found["wholes"]] == ["lenet5"]
    # a file whose reference networks were not measured there
    flops = sum(node.flops for node in strip(0, "mobile", 1e8).graph.nodes)
    one = Reference(family="mobile", seed=0, work=1e8, flops=flops, ms=5.0)
    save_latency(path, latency(machine=None, reference=(one,)))
    status, text, _ = run(capsys, "predict", "evaluate", "--on", path, "--data", data)
    assert (status, "how fast the machine was meanwhile is not known" in text) == (0, True)
    assert (data / "lenet5.profile.json").stat().st_mtime_ns == before


def test_what_evaluate_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.latency.json"
    save_latency(path, latency(engine="tvm"))
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET)
    assert (status, "engine tvm, not with engine onnxruntime" in err) == (4, True)
    save_latency(path, latency())
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET)
    assert (status, "is of Cortex-A72, and the networks run on" in err) == (4, True)
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET, "--prepare")
    assert (status, "--prepare needs --data" in err) == (2, True)
    status, _, err = run(capsys, "predict", "evaluate", "--on", path, LENET, LENET)
    assert (status, "two of the networks are called lenet5" in err) == (2, True)
