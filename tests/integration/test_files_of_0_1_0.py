"""Files that splitpoint 0.1.0 wrote are read, and mean what they meant to it.

They and ``meaning.json`` (what 0.1.0 said of them) in tests/support/files-0.1.0 were written by the code of commit
ae9b80e: a short profile of LeNet-5, a calibration with two made-up images, a plan from both for a device that is 120
times slower, a measured link, a latency file of four kinds of kernels.
"""

from __future__ import annotations

import json
from math import exp, hypot, log
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT

import splitpoint
from splitpoint.calibration.files import load_calibration
from splitpoint.errors import InputError
from splitpoint.link.files import load_link
from splitpoint.models import load
from splitpoint.planning.files import load_plan, parse_plan, plan_bytes, save_plan
from splitpoint.planning.planner import Planner
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.price.posterior import ANOTHER_TIME, TO_P90
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.profile.files import load_profile
from splitpoint.report import plan_table
from splitpoint.survey import placement

OLD = SUPPORT / "files-0.1.0"


@pytest.fixture(scope="module")
def meaning() -> dict[str, Any]:
    known: dict[str, Any] = json.loads((OLD / "meaning.json").read_text())
    return known


def todays(said: object) -> object:
    """The same with today's word for the machine that 0.1.0 called the device, also in sentences that a file has."""
    return json.loads(json.dumps(said).replace("on the device", "on the edge"))


def test_a_plan_is_the_table_it_was(meaning: dict[str, Any], tmp_path: Path) -> None:
    plan, known = load_plan(OLD / "lenet5.plan.json"), meaning["plan"]
    # The table of today also says what a quality is at least.
    rows = [[c.partition(", ≥")[0] for c in plan_table.cells(o, best=o == plan.best)] for o in plan.options]
    ranges = [list(line) for line in plan_table.range_lines(plan.sensitivity)]
    said = {"rows": rows, "text": str(plan), "ranges": ranges, "proof": plan_table.proof(plan), "why": list(plan.why)}
    said |= {"refusals": plan_table.refusals(plan), "seed": list(plan_table.seed_lines(plan))}
    assert todays(said) == todays({name: known[name] for name in said})
    placed = [[list(o.on_edge), list(o.codecs), o.up_nbytes, o.down_nbytes, o.edge_memory] for o in plan.options]
    assert placed == known["placed"]
    bands = [[[b.ms, b.low, b.high] for b in (o.total, *o.stages.values())] for o in plan.options]
    assert bands == known["bands"]
    assert list(plan.hosts) == known["machines"]
    assert (str(plan.link), plan.links) == (known["link"], (plan.link,))
    save_plan(tmp_path / "again.plan.json", plan)
    assert load_plan(tmp_path / "again.plan.json") == plan
    assert json.loads(plan_bytes(plan))["format"] == 2


def test_a_plan_can_be_run(meaning: dict[str, Any]) -> None:
    plan, model = load_plan(OLD / "lenet5.plan.json"), load("zoo:lenet5")
    plan.require(model.fingerprint, model.name)
    cut, codecs = placement(model.graph, plan.best)
    assert cut.name == "tanh4"
    assert codecs == {cut.crossing[0].name: "int8"}


@pytest.mark.parametrize(
    ("change", "option", "words"),
    [
        ({"format": 0}, {}, "is a plan of format 0"),
        ({"edge": 3}, {}, r"Expected `str`, got `int` - at `\$.edge`"),
        ({}, {"stages": {}}, "stages must be edge, encode, up, server, down"),
        ({}, {"up_nbytes": -4}, r"Expected `int` >= 0 - at `\$.options\[1\].up_nbytes`"),
        ({}, {"on_edge": [3, 1]}, "node numbers in order"),
        ({"options": []}, {}, "best is not one of options"),
    ],
)
def test_a_damaged_one_is_refused_with_a_sentence(change: dict[str, Any], option: dict[str, Any], words: str) -> None:
    data = json.loads((OLD / "lenet5.plan.json").read_text())
    data["options"][1] |= option
    with pytest.raises(InputError, match=words):
        parse_plan(json.dumps(data | change).encode())


def test_a_profile_has_the_times_it_had(meaning: dict[str, Any]) -> None:
    profile, known = load_profile(OLD / "lenet5.profile.json"), meaning["profile"]
    places = range(len(profile.graph.prefixes()))
    assert [profile.head(k).median for k in places] == pytest.approx(known["heads"], rel=1e-9)
    assert [profile.tail(k).p90 for k in places] == pytest.approx(known["tails"], rel=1e-9)
    assert str(profile) == known["text"]


def test_a_calibration_says_what_it_said(meaning: dict[str, Any]) -> None:
    calibration = load_calibration(OLD / "lenet5.calib.json")
    rows = [[r.prefix, r.codec, list(r.nbytes), r.most, r.quality.inputs, r.quality.agreement, r.quality.bound]
            for r in calibration.rows]  # fmt: skip
    assert rows == meaning["calibration"]


def test_the_same_files_make_the_same_plan(meaning: dict[str, Any]) -> None:
    profile, calibration = load_profile(OLD / "lenet5.profile.json"), load_calibration(OLD / "lenet5.calib.json")
    link, plan = load_link(OLD / "attic.link.json"), load_plan(OLD / "lenet5.plan.json")
    limits = splitpoint.Constraints(codecs=("int8",), deadline_ms=25.0, max_edge_memory=284_000.0)
    planner = Planner(None, (profile, profile), constraints=limits, calibration=calibration).slowed(120, 0.05)
    again = planner.plan(link)
    assert again.advice == plan.advice
    assert again.best.label == plan.best.label
    assert [o.label for o in again.options] == [o.label for o in plan.options]
    for now, then in zip(again.options, plan.options, strict=True):
        assert (now.total.ms, now.total.low, now.total.high) == pytest.approx(
            (then.total.ms, then.total.low, then.total.high), rel=1e-9
        )
        assert now.energy_mj == pytest.approx(then.energy_mj, rel=1e-9)


def test_a_link_is_the_link_it_was(meaning: dict[str, Any]) -> None:
    link = load_link(OLD / "attic.link.json")
    assert [link.up_mbps, link.down_mbps, link.rtt_ms, link.jitter_ms, link.name] == meaning["link"]


def test_a_latency_file_predicts_what_it_predicted(meaning: dict[str, Any]) -> None:
    predicted = predict_latency(load("zoo:lenet5"), load_latency(OLD / "device.latency.json"))
    assert predicted.whole.median == pytest.approx(meaning["latency"]["whole"], rel=1e-9)
    # Ranges of then left out that a machine takes another time in another hour.
    then = log(meaning["latency"]["whole"] / meaning["latency"]["low"]) / TO_P90
    now = meaning["latency"]["whole"] / exp(TO_P90 * hypot(then, ANOTHER_TIME))
    assert predicted.whole.p10 == pytest.approx(now, rel=1e-5)
