"""The honest table: every kind of plan against brute force, every constraint, every sentence, every file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from planning_cases import EFFICIENT, LENET, WATTS, pair, parts, worth
from plans import FOUR_G, calibration, model_of, profile

import nets
import splitpoint
from splitpoint.codecs import open_codec
from splitpoint.errors import UsageError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import parse_plan, plan_bytes
from splitpoint.planning.planner import Planner, plan
from splitpoint.planning.plans import value
from splitpoint.profile.files import save_profile


def closed_sets(graph: Graph) -> Iterator[Cut]:
    """Every predecessor-closed set of whole steps."""
    steps = graph.order
    for chosen in product((False, True), repeat=len(steps)):
        nodes = [i for step, inside in zip(steps, chosen, strict=True) if inside for i in step]
        if all(m in set(nodes) for i in nodes for m in graph.makers(i)):
            yield graph.cut_of(nodes)


NETS = ("residual", "flattening", "passing")


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
@pytest.mark.parametrize("net", NETS)
def test_no_cut_and_no_codec_beats_the_plan(net: str, objective: str) -> None:
    graph = nets.load(getattr(nets, net)()).graph
    edge, cloud = profile(graph, 4.0, watts=WATTS), profile(graph, 0.4)
    for link in (Link(0.5, 0.5, 0.2), Link(5, 5, 0.5), Link(200, 200, 0.1)):
        chosen = plan(graph, (edge, cloud), link, objective=objective, constraints=Constraints(codecs=("int8",)))
        least = min(
            worth(parts(edge, cloud, cut, codecs, link), objective)
            for cut in closed_sets(graph)
            for codecs in product(("raw", "int8"), repeat=len(cut.crossing))
            if all(open_codec(c).accepts(t) for c, t in zip(codecs, cut.crossing, strict=True))
        )
        # Frames cost some 200 bytes, which brute force here leaves out.
        frames = 300 * 8e-3 / link.up_mbps * (WATTS.tx if objective == "energy" else 1)
        # A simpler option that nobody could tell from the best is taken instead.
        alike = 1.0 if chosen.best.kind == "split" else 1 + ALIKE
        assert least * (1 - 1e-9) <= value(chosen.best, objective) <= (least + frames) * alike
        assert chosen.bound <= min(least + frames, value(chosen.best, objective))
        assert chosen.gap < (0.05 if objective == "throughput" else ALIKE + 1e-9)


def test_plan_accepts_a_mapping_and_the_profiles_own_graph() -> None:
    edge, cloud = pair()
    one = splitpoint.plan(edge.graph, (edge, cloud), FOUR_G)
    assert one == splitpoint.plan(None, {"edge": edge, "cloud": cloud}, FOUR_G)


def test_a_new_link_gives_what_a_new_planner_gives() -> None:
    limits = Constraints(codecs=("int8",))
    planner = Planner(None, pair(), constraints=limits)
    for rate in (0.13, 5.85, 30.0, 500.0):
        link = Link(rate, rate, 10)
        fresh = Planner(None, pair(), constraints=limits).plan(link, sensitivity=False)
        assert planner.plan(link, sensitivity=False) == fresh
        assert planner.best(link) == fresh.best


def test_profiles_come_in_pairs() -> None:
    edge, cloud = pair()
    for given in ((edge,), {"edge": edge}, (edge, cloud, cloud)):
        with pytest.raises(UsageError, match="profiles are"):
            plan(None, given, FOUR_G)


def test_a_plan_needs_no_model_file_and_no_engine(tmp_path: Path) -> None:
    """Profiles from JSON alone, where neither onnx nor onnxruntime can be imported."""
    for name, found in zip(("edge", "cloud"), pair(LENET, 3.0, 0.2), strict=True):
        save_profile(tmp_path / f"{name}.profile.json", found)
    code = """
import sys
for name in ("onnx", "onnxruntime", "torch", "matplotlib"):
    sys.modules[name] = None
import splitpoint
edge, cloud = (splitpoint.load_profile(f"{sys.argv[1]}/{n}.profile.json") for n in ("edge", "cloud"))
found = splitpoint.plan(edge.graph, (edge, cloud), splitpoint.Link(5.85, 20, 1),
                        constraints=splitpoint.Constraints(codecs=("int8",)))
print(found.advice)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_the_front_has_nothing_that_another_is_better_than() -> None:
    model = model_of(EFFICIENT)
    place = {c.name: k for k, c in enumerate(model.graph.prefixes())}
    rows = {
        (0, "jpeg:75"): 0.8, (0, "jpeg:95"): 0.9, (0, "webp:95"): 0.95, (place["blocks.5.project.norm"], "int8"): 0.99,
        (place["blocks.5.project.norm"], "int4"): 0.93, (place["blocks.3.project.norm"], "int4"): 0.7,
    }  # fmt: skip
    planner = Planner(None, pair(), calibration=calibration(model, rows, share=0.1))
    front = planner.front(FOUR_G)
    points = [(o.total.ms, o.up_nbytes, -(1.0 if o.exact else o.quality.agreement or 0)) for o in front]  # type: ignore[union-attr]
    assert len(front) >= 3
    assert points == sorted(points)
    for a in points:
        assert not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)
    priced = planner.price(model.graph.cut("blocks.5.project.norm"), ["int8"], FOUR_G)
    assert any(o.total.ms <= priced.total.ms and o.up_nbytes <= priced.up_nbytes for o in front)
    assert {("jpeg:95",), ("int4",)} <= {o.codecs for o in front}
    assert ("jpeg:75",) not in {o.codecs for o in front}, "as large and less faithful"
    assert all(o.quality is not None or o.exact for o in front), "what nobody measured is not on it"


def test_the_best_by_bandwidth_for_each_agreement() -> None:
    model = model_of(EFFICIENT)
    rows = {(0, "jpeg:90"): 0.92, (0, "jpeg:98"): 0.96}
    known = calibration(model, rows, share=0.1)
    found = Planner(None, pair(), calibration=known).plan(FOUR_G)
    by_share = {a.agreement: a.ranges for a in found.agreements}
    assert list(by_share) == [0.9, 0.95, 0.98]
    assert any(r.kind == "jpeg" for r in by_share[0.9])
    assert {r.codecs for r in by_share[0.95] if r.kind == "jpeg"} == {("jpeg:98",)}
    assert not any(r.kind == "jpeg" for r in by_share[0.98])
    assert Planner(None, pair()).plan(FOUR_G).agreements == ()
    assert parse_plan(plan_bytes(found)) == found
