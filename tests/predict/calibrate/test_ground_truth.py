"""Whole networks measured in rounds, in virtual time, and kept in files."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from latencies import PLAIN

import nets
from splitpoint.engines import Engine
from splitpoint.errors import InputError, StorageError
from splitpoint.models.model import Model
from splitpoint.predict.calibrate import ground_truth as truths
from splitpoint.predict.calibrate.ground_truth import Truth
from splitpoint.predict.calibrate.random_networks import random_network
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.predict.learn.latency_model import Reference
from splitpoint.predict.price.prediction import CODEC_COSTS, predict_latency
from splitpoint.profile.profiles import Profile

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
        return msgspec.structs.replace(predict_latency(model, PLAIN).profile(CODEC_COSTS), threads=engine.threads)


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
    assert {name: len(v) for name, v in truth.wholes.visits.items()} == {"residual": 6, "flattening": 6}
    assert not truth.missing()
    for name in truth.models:
        whole = truth.whole(name)
        assert whole is not None
        assert whole.median > 0
        assert truth.profiles[name].fingerprint == truth.models[name].fingerprint
    assert truths.begin(nets.ENGINE, {}).whole("residual") is None
    # a budget that is over at once still has one visit and one profile of each
    hasty, _ = measured(None, budget_s=1e-3)
    assert {name: len(v) for name, v in hasty.wholes.visits.items()} == {"residual": 1, "flattening": 1}
    assert not hasty.missing()


def test_reference_networks_are_visited_between_the_wholes_and_only_then(tmp_path: Path) -> None:
    made = random_network(3, "mobile", 1e8)
    flops = sum(node.flops for node in made.graph.nodes)
    known = [Reference(family="mobile", seed=3, work=1e8, flops=flops, ms=5.0)]
    truth, lab = truths.begin(nets.ENGINE, networks()), Lab()
    words = {"clock": lab.clock, "pause": lab.pause, "profiler": lab.profile}
    truths.measure(truth, nets.ENGINE, 60.0, references=known, folder=tmp_path, **words)  # type: ignore[arg-type]
    assert {name: len(v) for name, v in truth.wholes.references.items()} == {known[0].name: truths.VISITS}
    kept = truths.load(tmp_path, networks())
    assert kept is not None
    assert kept.wholes.references == truth.wholes.references
    # one network alone: what is there of the others stays
    alone = truths.load(tmp_path, {"flattening": networks()["flattening"]})
    assert alone is not None
    assert alone.wholes.visits == truth.wholes.visits
    # a visit more on another day: how fast the machine was then is not known any more
    another = truths.load(tmp_path, networks())
    assert another is not None
    another.wholes.visits["residual"].pop()
    truths.measure(another, nets.ENGINE, 60.0, references=known, **words)  # type: ignore[arg-type]
    assert len(another.wholes.visits["residual"]) == truths.VISITS
    assert another.wholes.references == {}
    # a profile is measured again, wholes are not: what the machine does now says nothing of those
    kept.profiles.clear()
    truths.measure(kept, nets.ENGINE, 10.0, references=known, **words)  # type: ignore[arg-type]
    assert kept.wholes.references == truth.wholes.references
    assert not kept.missing()


def test_reference_networks_take_turns_with_the_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = []
    for seed in range(3):
        flops = sum(node.flops for node in random_network(seed, "mobile", 1e8).graph.nodes)
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
    truth = truths.begin(nets.ENGINE, {})
    truth.wholes.visits["residual"] = [[11.0, 11.2, 11.1], [9.0, 9.1, 9.2], [11.3, 11.4, 11.5], [10.9, 11.0, 19.0]]
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
    assert again.wholes.visits == first.wholes.visits
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
        (good.replace('"format": 1', '"format": 7'), "of format 7"),
        (json.dumps(json.loads(good) | {"visits": {"residual": [[-1.0]]}}), r"at `\$\.visits"),
        (json.dumps(json.loads(good) | {"visits": {"residual": [[]]}}), r"at `\$\.visits"),
        (json.dumps(json.loads(good) | {"references": {"vgg-1-1": [[0.0]]}}), r"at `\$\.references"),
        (json.dumps(json.loads(good) | {"threads": 9}), "use another folder for each"),
    ):
        assert bad != good
        path.write_text(bad)
        with pytest.raises(InputError, match=said):
            truths.load(tmp_path, models)
    path.write_text(good)
    with pytest.raises(InputError, match="this profile is of"):
        truths.load(tmp_path, {"residual": models["flattening"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        truths.keep(models["residual"], "residual", tmp_path / "file")
