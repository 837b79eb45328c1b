"""What is measured is what planning sees: segments as they ran, sums in between, files that are looked at."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Gate, affine, nothing_leaks, until

import nets
from nets import ENGINE, load
from splitpoint import wire
from splitpoint.cli import main
from splitpoint.cli.verbs import group
from splitpoint.engines import open_engine
from splitpoint.errors import (
    CutError,
    EngineError,
    InputError,
    ServerError,
    StorageError,
    UsageError,
)
from splitpoint.graph import Cut, Graph
from splitpoint.machine import Machine
from splitpoint.models import load as open_model
from splitpoint.models.model import Model, Segment
from splitpoint.profile import measure, power
from splitpoint.profile.codec_times import codec_costs
from splitpoint.profile.costs import fit, monotone
from splitpoint.profile.files import load_profile, parse_profile, profile_bytes, save_profile
from splitpoint.profile.kernel_times import estimated, marked, node_times
from splitpoint.profile.limits import _crossing, _Reach
from splitpoint.profile.measure import Progress, Survey, _runs_for, pause_s, profile_model, stat_of
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.report.layer_study import cost_rows, kind_of
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.wire import Kind, Limits

# --- a machine whose speed is known ---------------------------------------------------------------------------------


class Machinery:
    """A clock and an engine on it: a segment takes `fixed` ms and what its nodes cost, fused pairs less."""

    name, device, threads = "fake", "cpu", 3

    def __init__(self, model: Model, *, compile_s: float = 0.05, scale: float = 1.0, fixed: float = 0.0) -> None:
        self.now = 100.0
        self.compile_s, self.fixed = compile_s, fixed
        self.costs = {n.name: scale * (1 + i % 5) for i, n in enumerate(model.graph.nodes)}
        self.slow: Callable[[float], float] = lambda now: 1.0
        self.open = self.most_open = self.compiled = 0
        self.refuses: Callable[[Segment], bool] = lambda segment: False

    def clock(self) -> float:
        return self.now

    def ms(self, segment: Segment) -> float:
        return self.fixed + sum(self.costs.get(n.name, 0.0) for n in segment.proto.graph.node)

    def compile(self, segment: Segment) -> Run:
        if self.refuses(segment):
            raise EngineError("no kernel for this")
        self.now += self.compile_s
        self.compiled += 1
        return Run(self, segment)


class Run:
    def __init__(self, machinery: Machinery, segment: Segment) -> None:
        self.machinery, self.segment = machinery, segment
        self.inputs, self.outputs = segment.inputs, segment.outputs
        self.nbytes = 1000
        machinery.open += 1
        machinery.most_open = max(machinery.most_open, machinery.open)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert {t.name for t in self.inputs} <= set(inputs)
        self.machinery.now += self.machinery.ms(self.segment) / 1e3 * self.machinery.slow(self.machinery.now)
        return {t.name: np.zeros(t.bind({"batch": 1}).shape, t.dtype) for t in self.outputs}

    def close(self) -> None:
        self.machinery.open -= 1


class Knowing(Machinery):
    """One that says what its kernels cost."""

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        names = list(self.costs)
        return [(n.name, self.costs[names[int(n.name.strip("@"))]]) for n in segment.proto.graph.node]


@pytest.fixture(scope="module")
def lenet() -> Model:
    return open_model("zoo:lenet5")


def survey(model: Model, machinery: Machinery, budget_s: float, **more: Any) -> Survey:
    return Survey(
        model,
        machinery,
        budget_s=budget_s,
        clock=machinery.clock,
        codecs=lambda model, s: {},
        pause=lambda seconds: None,
        **more,
    )


def measured(model: Model, machinery: Machinery, budget_s: float = 1e3, **more: Any) -> Profile:
    work = survey(model, machinery, budget_s, **more)
    work.prepare()
    for _ in work.visits():
        pass
    return work.profile()


def truth(model: Model, machinery: Machinery, k: int) -> tuple[float, float]:
    """What head and tail of the k-th prefix take on that machine."""
    cut = model.graph.prefixes()[k]
    head, tail = model.head(cut), model.tail(cut)
    return (machinery.ms(head) if head.outputs else 0.0, machinery.ms(tail) if tail.outputs else 0.0)


# --- measuring ------------------------------------------------------------------------------------------------------


def test_every_cut_of_the_chain_is_measured_as_it_is(lenet: Model) -> None:
    machinery = Knowing(lenet)
    profile = measured(lenet, machinery)
    assert profile.complete
    assert profile.measured == len(lenet.graph.chain())
    assert machinery.open == 0
    assert machinery.most_open == 2, "one cut's halves in memory at a time"
    for k in range(len(lenet.graph.prefixes())):
        head, tail = truth(lenet, machinery, k)
        assert profile.head(k).median == pytest.approx(head, abs=1e-4)
        assert profile.tail(k).median == pytest.approx(tail, abs=1e-4)
    assert profile.whole.median == pytest.approx(sum(machinery.costs.values()), abs=1e-4)
    assert (profile.engine, profile.device, profile.threads) == ("fake", "cpu", 3)
    assert profile.head(5).count >= 9


def test_what_was_not_measured_is_modelled_from_kernel_times(lenet: Model) -> None:
    machinery = Knowing(lenet, fixed=0.5)
    held_out = [c for c in range(len(lenet.graph.prefixes())) if c % 2]
    profile = measured(lenet, machinery, cuts=[k for k in range(len(lenet.graph.prefixes())) if k not in held_out])
    assert not profile.complete
    for k in held_out:
        head, tail = truth(lenet, machinery, k)
        assert profile.head(k).count == 0
        assert profile.head(k).median == pytest.approx(head, abs=1e-3)
        assert profile.tail(k).median == pytest.approx(tail, abs=1e-3)


def test_a_budget_for_the_whole_model_alone_still_gives_a_profile(lenet: Model) -> None:
    machinery = Machinery(lenet)
    profile = measured(lenet, machinery, budget_s=0.001)
    assert not profile.complete
    assert {s.prefix for s in profile.segments} == {0, 16}
    costs = profile.costs()
    whole = sum(machinery.costs.values())
    assert costs.edge.sum() + costs.edge_fixed == pytest.approx(whole, rel=1e-3)
    assert costs.cloud.sum() + costs.cloud_fixed == pytest.approx(whole, rel=1e-3)
    heads = [profile.head(k).median for k in range(17)]
    assert heads == sorted(heads)
    assert 0 < heads[1] < heads[8] < whole


def test_cuts_are_visited_from_coarse_to_fine(lenet: Model) -> None:
    machinery = Knowing(lenet)
    work = survey(lenet, machinery, 1e3)
    work.prepare()
    visits = work.visits()
    share = np.cumsum([0.0, *machinery.costs.values()]) / sum(machinery.costs.values())
    gaps = []
    known = {0, 16}
    for _ in range(15):
        known.add(next(visits))
        gaps.append(max(share[b] - share[a] for a, b in pairwise(sorted(known))))
    assert len(known) == 17
    assert gaps[2] < 0.4
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("budget_s", [0.5, 1.5, 3.0])
def test_the_budget_is_kept_but_for_one_visit(lenet: Model, budget_s: float) -> None:
    machinery = Knowing(lenet)
    profile = measured(lenet, machinery, budget_s)
    assert machinery.now - 100.0 < budget_s + 1.5
    assert profile.whole.count > 0


def test_more_time_measures_more_cuts(lenet: Model) -> None:
    counts = [measured(lenet, Knowing(lenet), s).measured for s in (0.5, 5, 10, 100)]
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[3] == 17


def test_a_disturbed_stretch_is_measured_again(lenet: Model) -> None:
    """For four seconds in the middle another program takes half of the machine."""
    machinery = Knowing(lenet)
    machinery.slow = lambda now: 2.0 if 104 < now < 112 else 1.0
    profile = measured(lenet, machinery)
    for k in range(1, 16):
        head, tail = truth(lenet, machinery, k)
        assert profile.head(k).median == pytest.approx(head, rel=1e-3)
        assert profile.tail(k).median == pytest.approx(tail, rel=1e-3)


def test_a_cut_that_the_engine_cannot_build_is_modelled_and_said(lenet: Model) -> None:
    machinery = Knowing(lenet)
    machinery.refuses = lambda segment: (
        any(t.name == segment.inputs[0].name != "image" for t in segment.inputs)
        and len(segment.proto.graph.node) in (8, 9)
    )
    profile = measured(lenet, machinery, note="a test")
    assert not profile.complete
    assert re.fullmatch(r"a test; \d cuts cannot be built here, \S+ among them", profile.note)
    assert profile.measured >= 14


def test_heavy_networks_get_fewer_runs(lenet: Model) -> None:
    light, heavy = measured(lenet, Knowing(lenet, scale=0.1)), measured(lenet, Knowing(lenet, scale=20))
    assert heavy.head(8).count < 9 <= light.head(8).count


def test_pauses_do_not_eat_the_budget_of_a_small_network(lenet: Model) -> None:
    machinery = Knowing(lenet, scale=0.002, compile_s=0.01)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        machinery.now += seconds

    work = Survey(lenet, machinery, budget_s=1.0, clock=machinery.clock, codecs=lambda m, s: {}, pause=pause)
    work.prepare()
    list(work.visits())
    assert work.profile().complete
    assert set(pauses) == {0.001}


def test_a_pause_is_as_long_as_an_engine_needs_to_fall_asleep(lenet: Model) -> None:
    assert [pause_s(ms) for ms in (0, 0.3, 1.5, 2.5, 900)] == [0.001, 0.001, 0.003, 0.005, 0.005]
    runs = [_runs_for(ms) for ms in (0.0, 0.1, 1.9, 2.1, 9, 49, 51, 251)]
    assert runs == [9, 9, 9, 15, 11, 9, 5, 3]


def test_progress_says_how_far_it_is_and_what_is_left(lenet: Model) -> None:
    machinery = Knowing(lenet)
    seen: list[Progress] = []
    work = survey(lenet, machinery, 10.0)
    work.prepare(on_progress=seen.append)
    list(work.visits(seen.append))
    assert [p.what for p in seen[:3]] == ["the whole model", "kernel times", "codecs"]
    assert seen[-1].done > 5
    assert all(0 <= p.done <= p.total and 0 <= p.left_s <= 10 for p in seen)
    assert [p.elapsed_s for p in seen] == sorted(p.elapsed_s for p in seen)


def test_what_progress_raises_ends_it_and_nothing_stays_open(lenet: Model) -> None:
    machinery = Knowing(lenet)

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    work = survey(lenet, machinery, 1e3)
    work.prepare(on_progress=stop)
    with pytest.raises(KeyboardInterrupt):
        list(work.visits(stop))
    assert machinery.open == 0


@pytest.mark.parametrize("budget_s", [0, -1, float("nan")])
def test_a_budget_is_positive(lenet: Model, budget_s: float) -> None:
    with pytest.raises(UsageError, match="budget must be above 0"):
        profile_model(lenet, ENGINE, budget_s=budget_s)


def test_gaps_in_the_chain_are_measured_too() -> None:
    """Two branches side by side have no single-tensor cut between them."""
    model = load(nets.proto(
        [nets.node("MatMul", ["x", "w"], ["a"], name="a"), nets.node("Neg", ["a"], ["b"], name="b"),
         nets.node("Exp", ["a"], ["c"], name="c"), nets.node("Abs", ["c"], ["d"], name="d"),
         nets.node("Add", ["b", "d"], ["y"], name="y")],
        [nets.value("x", [1, 32])], [nets.value("y", [1, 32])], [nets.normal("w", 32, 32)],
    ))  # fmt: skip
    machinery = Knowing(model)
    profile = measured(model, machinery)
    inside = {s.prefix for s in profile.segments} - {
        k for k, c in enumerate(model.graph.prefixes()) if c.index is not None
    }
    assert inside == {2, 3, 4}
    assert profile.complete


def test_a_real_model_on_the_real_engine() -> None:
    model = load(nets.residual())
    work = Survey(model, ENGINE, budget_s=20, codecs=lambda model, s: {})
    work.prepare()
    for _ in work.visits():
        pass
    profile = work.profile()
    assert profile.complete
    assert profile.machine.cores >= 1
    assert profile.versions["onnxruntime"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", profile.created)
    assert all(s.head is None or s.head.median > 0 for s in profile.segments)
    assert sum(profile.nodes) > 0
    assert parse_profile(profile_bytes(profile), "here") == profile


def test_a_model_that_only_hands_through() -> None:
    """Nothing to compute costs nothing."""
    model = load(
        nets.proto(
            [nets.node("Identity", ["x"], ["y"], name="same")], [nets.value("x", [1, 4])], [nets.value("y", [1, 4])]
        )
    )
    profile = measured(model, Machinery(model))
    assert profile.complete


@pytest.mark.parametrize("nodes", [[], [nets.node("MatMul", ["x", "w"], ["y"])]], ids=["no node", "a weight"])
def test_outputs_that_no_node_makes(nodes: list[Any]) -> None:
    """An input that is handed through, with nothing for the real engine to compute; a weight."""
    outputs = [nets.value("x", [1, 4]), *([nets.value("y", [1, 4]), nets.value("w", [4, 4])] if nodes else [])]
    model = load(nets.proto(nodes, [nets.value("x", [1, 4])], outputs, [nets.normal("w", 4, 4)]))
    profile = profile_model(model, ENGINE, budget_s=0.3)
    assert parse_profile(profile_bytes(profile), "here") == profile


def test_a_disturbed_visit_moves_no_median_and_widens_the_band() -> None:
    assert stat_of([[2.0, 2.0, 2.0], [9.0, 9.0]]) == Stat(2.0, 2.0, 9.0, 3)
    assert stat_of([[2.0, 2.0], [2.2, 2.2]]) == Stat(2.1, 2.0, 2.2, 4)
    assert stat_of([[2.0], [9.0] * 20]) == Stat(2.0, 2.0, 9.0, 1), "in order"


# --- from segments to nodes -----------------------------------------------------------------------------------------


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
    assert (costs.edge >= 0).all()
    assert (costs.cloud >= 0).all()
    copied = [i for i, n in enumerate(graph.nodes) if not n.placed]
    assert copied
    assert not costs.edge[copied].any()
    assert not costs.cloud[copied].any()
    for s in profile.segments:
        cut = graph.prefixes()[s.prefix]
        if s.head:
            assert costs.edge_fixed + costs.edge[list(cut.nodes)].sum() == pytest.approx(s.head.median, rel=1e-6)
        if s.tail:
            rest = [i for i in graph.placed if i not in cut.nodes]
            assert costs.cloud_fixed + costs.cloud[rest].sum() == pytest.approx(s.tail.median, rel=1e-6)


def test_a_head_that_gets_cheaper_never_makes_a_node_cost_less_than_nothing(lenet: Model) -> None:
    heads = {5: 2.0, 6: 1.0, 16: 4.0}
    costs = fit(lenet.graph, heads, {}, 4.0, estimated(lenet.graph))
    assert (costs.edge >= 0).all()
    assert costs.edge[5] == pytest.approx(0)
    assert 1.0 < costs.edge_fixed + costs.edge[:5].sum() < 2.0
    assert costs.edge_fixed + costs.edge.sum() == pytest.approx(4.0)


def test_a_flattered_cut_is_taken_for_what_its_neighbours_say(lenet: Model) -> None:
    """Of many heads that take about the same, chance makes one look best; it must not be chosen for that."""

    def made(spread: float) -> Profile:
        def stat(ms: float) -> Stat:
            return Stat(ms, ms * (1 - spread), ms * (1 + spread), 9)

        heads = {5: 12.0, 6: 12.9, 7: 11.06, 8: 12.5, 9: 13.0, 16: 20.0}
        segments = tuple(SegmentCost(k, stat(ms), stat(21 - ms) if k < 16 else None) for k, ms in heads.items())
        return example(lenet, whole=stat(20.0), segments=(SegmentCost(0, None, stat(20.0)), *segments))

    noisy, exact = made(0.15), made(1e-5)
    assert exact.head(7).median == pytest.approx(11.06, rel=1e-4)
    assert exact.head(6).median == pytest.approx(12.9, rel=1e-4)
    assert 11.5 < noisy.head(7).median < noisy.head(6).median < 12.5
    assert noisy.tail(7).median < exact.tail(7).median
    low, middle, high = noisy.head(7).p10, noisy.head(7).median, noisy.head(7).p90
    assert (low / middle, high / middle) == (pytest.approx(0.85), pytest.approx(1.15))
    assert noisy.head(5).median == pytest.approx(12.0, rel=0.03)


def test_the_fit_believes_what_is_measured_closely() -> None:
    close, far = monotone([10.0, 8.0], [0.0, 0.3]), monotone([10.0, 8.0], [0.3, 0.0])
    assert close[0] == close[1] > 9.9
    assert far[0] == far[1] < 8.1
    assert monotone([10.0, 8.0], [0.001, 0.01]).tolist() == monotone([10.0, 8.0]).tolist()


def test_costs_of_thousands_of_cuts_are_a_few_sums(lenet: Model) -> None:
    profile = parse_profile(wired(lenet, row(4000), "t3999"), "a file")
    prefixes = profile.graph.prefixes()
    assert len({profile.head(k).median for k in range(1, 4001)}) == 4000
    assert profile.head(prefixes[17]) == profile.head(17)


def test_any_closed_set_has_a_head_and_a_tail() -> None:
    """The branch of a residual block alone is no prefix: it is the sum of its nodes."""
    model = load(nets.proto(
        [nets.node("Relu", ["x"], ["a"], name="a"), nets.node("Neg", ["a"], ["b"], name="b"),
         nets.node("Exp", ["a"], ["c"], name="c"), nets.node("Add", ["b", "c"], ["y"], name="d")],
        [nets.value("x", [1, 8])], [nets.value("y", [1, 8])],
    ))  # fmt: skip
    profile = measured(model, Knowing(model))
    a, b, c, d = (n.name for n in model.graph.nodes)
    cost = dict(zip((a, b, c, d), (1.0, 2.0, 3.0, 4.0), strict=True))
    cut = model.graph.cut_of([0, 2])
    assert profile.head(cut).median == pytest.approx(cost[a] + cost[c], rel=1e-3)
    assert profile.head(cut).count == 0
    assert profile.tail(cut).median == pytest.approx(cost[b] + cost[d], rel=1e-3)
    assert profile.head(model.graph.cut_of([])).median == 0
    assert profile.tail(model.graph.cut("output")).median == 0
    with pytest.raises(CutError, match="prefix 99"):
        profile.head(99)


def test_a_modelled_cut_has_the_spread_of_its_neighbours(lenet: Model) -> None:
    profile = example(lenet)
    assert profile.head(6).count == 0
    assert profile.head(6).p10 / profile.head(6).median == pytest.approx(0.9, abs=1e-6)
    assert profile.head(6).p90 / profile.head(6).median == pytest.approx(1.25, abs=0.06)


def test_groups_share_what_they_cost_together() -> None:
    model = quantised()
    machinery = Machinery(model)
    costs = measured(model, machinery).costs()
    groups = [list(step) for step in model.graph.order if len(step) > 1]
    assert groups
    for step in groups:
        own = sum(machinery.costs[model.graph.nodes[i].name] for i in step)
        # With them go the copied DequantizeLinear before them, which are nobody's own.
        assert own - 1e-6 <= costs.edge[step].sum() <= own + 10
        assert (costs.edge[step] > 0).all()


# --- kernel times ---------------------------------------------------------------------------------------------------


def test_kernels_are_found_under_fused_names(lenet: Model) -> None:
    graph = lenet.graph
    conv, tanh = 4, 5
    kernels = [
        ("@0@", 1.0),
        (f"{graph.nodes[tanh].outputs[0]}_nchwc", 10.0),  # conv and tanh in one, called after what it makes
        ("ReorderOutput", 2.0),  # a change of layout: belongs to the one before
        ("fused @6@", 3.0),
    ]
    times = node_times(lenet, kernels)
    assert times.sum() == pytest.approx(16.0)
    assert times[0] == pytest.approx(1.0 * times[0] / times[0])
    assert times[1:6].sum() == pytest.approx(12.0)
    assert times[conv] > 0.8 * 12
    assert times[6:].sum() == pytest.approx(3.0)


def test_without_kernel_times_shares_follow_work(lenet: Model) -> None:
    for kernels in ([], [("nobody knows", 3.0)]):
        times = node_times(lenet, kernels)
        assert (times > 0).all()
        assert times.sum() == pytest.approx(3.0 if kernels else 1.0)
        assert times[4] > times[5]


@pytest.mark.parametrize("name", ["zoo:lenet5", "qdq"])
def test_the_engines_own_kernels_cover_the_graph(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = open_model(name) if name != "qdq" else quantised()
    kernels = ENGINE.kernel_times(marked(model), samples_for(model, 1)[0], 3, 1)
    times = node_times(model, kernels)
    assert times.sum() == pytest.approx(sum(ms for _, ms in kernels))
    assert len(kernels) >= 3
    heavy = [i for i, n in enumerate(model.graph.nodes) if n.op in ("Conv", "Gemm")]
    assert all(times[i] > 0 for i in heavy)
    assert all(times[i] == 0 for i, n in enumerate(model.graph.nodes) if not n.placed)
    assert list(tmp_path.iterdir()) == [], "the engine's own file is gone"


def test_codecs_are_measured_for_tensors_that_cross(lenet: Model) -> None:
    costs = codec_costs(lenet, 0.01)
    assert {"raw", "fp16", "int8", "int4", "int8+zstd", "jpeg:90"} <= costs.keys()
    assert costs["int8"].encode_ms_per_mb > 0
    assert all(ms >= 0 for c in costs.values() for ms in msgspec.structs.astuple(c))


# --- files ----------------------------------------------------------------------------------------------------------


def example(model: Model, **changes: Any) -> Profile:
    graph = model.graph
    nodes = [0.5 if n.placed else 0.0 for n in graph.nodes]
    last = len(graph.order)

    def stat(ms: float) -> Stat:
        return Stat(ms, 0.9 * ms, 1.25 * ms, 9)

    return msgspec.structs.replace(
        Profile(
            fingerprint=model.fingerprint, graph=graph, engine="onnxruntime", device="cpu", threads=2,
            machine=Machine("Linux", "a chip", 2, 1 << 30, "", "3.11"), versions={"onnxruntime": "1"},
            created="2026-01-01T00:00:00Z", complete=False, whole=stat(last / 2),
            segments=(
                SegmentCost(0, None, stat(last / 2)),
                SegmentCost(4, stat(2.0), stat(last / 2 - 2)),
                SegmentCost(last, stat(last / 2), None),
            ),
            nodes=tuple(nodes), codecs={"int8": CodecCost(0.01, 1.5, 0.01, 0.7)}, watts=Watts(5.0, 2.0, 1.0),
        ),
        **changes,
    )  # fmt: skip


def test_a_profile_loads_back_as_it_was_saved(lenet: Model, tmp_path: Path) -> None:
    profile = example(lenet, note="emulated: 4x slower")
    profile.costs()
    path = tmp_path / "edge.profile.json"
    save_profile(path, profile)
    loaded = load_profile(path)
    assert loaded == profile
    assert loaded.graph.chain() == lenet.graph.chain()
    assert json.loads(path.read_text())["graph"].keys() == {f.name for f in dataclasses.fields(lenet.graph)}
    loaded.require(lenet.fingerprint)
    assert "2 threads (emulated: 4x slower)" in loaded.where
    assert loaded.where != msgspec.structs.replace(loaded, threads=1).where


def test_a_profile_of_another_model_is_refused(lenet: Model) -> None:
    with pytest.raises(InputError, match=r"a profile of lenet5 \w{12}, not of resnet aaaaaaaaaaaa: make one"):
        example(lenet).require("a" * 64, "resnet")


BROKEN: Sequence[tuple[str, Callable[[dict[str, Any]], object], str]] = (
    ("another version", lambda d: d.update(format=2), "of format 2, and this version reads format 1"),
    ("no fingerprint", lambda d: d.pop("fingerprint"), "is not a profile: make one"),
    ("missing nodes", lambda d: d["nodes"].pop(), r"16 nodes, but there are times of 15 \(at \$.nodes\)"),
    ("negative", lambda d: d["nodes"].__setitem__(3, -1.0), r"-1.0 is no duration.*\$.nodes"),
    ("not a number", lambda d: d["nodes"].__setitem__(3, None), r"Expected `float`, got `null` - at `\$.nodes"),
    ("too large", lambda d: d["whole"].__setitem__(0, 1e999), "not a profile|damaged|no duration"),
    ("order", lambda d: d["whole"].__setitem__(1, 1e7), r"not in order \(at \$.whole\)"),
    ("place", lambda d: d["segments"][0].update(prefix=17), r"not one of 0…16 \(at \$.segments\[0\]\)"),
    ("twice", lambda d: d["segments"][0].update(prefix=4), r"there twice.*\$.segments\[1\]"),
    ("tail", lambda d: d["segments"][1].update(tail=[1, 2, 3, -9]), r"no duration.*\$.segments\[1\].tail"),
    ("codec", lambda d: d["codecs"]["int8"].update(decode_fixed_ms=-1), r"\$.codecs.int8"),
    ("watts", lambda d: d["watts"].update(idle=-1), r"\$.watts"),
    ("terminal", lambda d: d["machine"].update(processor="\x1b[2J"), "control characters"),
    ("layer", lambda d: d["graph"]["nodes"][0].update(layer="a\nb"), "control characters"),
    ("backwards", lambda d: d["graph"]["nodes"].reverse(), "before it is made"),
    ("no tensor", lambda d: d["graph"]["tensors"].clear(), "damaged profile"),
    ("no size", lambda d: next(iter(d["graph"]["tensors"].values())).update(shape=["n"]), "no size of its own"),
    ("no type", lambda d: next(iter(d["graph"]["tensors"].values())).update(dtype="str"), "cannot be str"),
    ("no output", lambda d: d["graph"]["outputs"][0].update(name="z"), "nothing makes the output z"),
    ("flops", lambda d: d["graph"]["nodes"][0].update(flops=-5), "-5 is no"),
    ("threads", lambda d: d.update(threads=-1), "-1 threads"),
    ("many threads", lambda d: d.update(threads=1 << 40), r"1099511627776 threads \(at \$.threads"),
    ("many cores", lambda d: d["machine"].update(cores=1 << 17), "131072 cores"),
    ("longer than a day", lambda d: d["whole"].__setitem__(2, 1e300), r"1e\+300 is no duration.*\$.whole"),
    ("a number without end", lambda d: d["graph"]["nodes"][0].update(flops=10**400), "is no duration, size|not a prof"),
    ("long text", lambda d: d.update(device="x" * 201), "201 characters, more than 200: xxx"),
    ("long name", lambda d: d["graph"]["nodes"][3].update(name="x" * 1001), "1001 characters, more than 1000"),
    ("huge tensor", lambda d: next(iter(d["graph"]["tensors"].values())).update(shape=[1 << 41]), "larger than 1 TiB"),
    ("huge power of two", lambda d: d["graph"]["inputs"][0].update(shape=[0] + [1 << 30] * 9), "larger than 1 TiB"),
    ("levels", lambda d: d["graph"]["nodes"][0].update(layer=".".join("a" * 101)), "101 levels of layers"),
)


@pytest.mark.parametrize(("change", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_profile_is_refused_with_a_sentence(
    lenet: Model, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    data = json.loads(profile_bytes(example(lenet)))
    change(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=says) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


Wire = tuple[str, str, list[str], list[str], bool, int]


def wired(lenet: Model, nodes: Sequence[Wire], output: str) -> bytes:
    """A profile of a graph from x to `output`; a node is (name, operator, inputs, outputs, placed, group)."""

    def spec(name: str) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": [1]}

    fields = ("name", "op", "inputs", "outputs", "placed", "group")
    made = [dict(zip(fields, node, strict=True)) | {"layer": node[0]} for node in nodes]
    tensors = {t: spec(t) for n in made for t in ("x", *n["outputs"])}
    graph = {"name": "g", "nodes": made, "inputs": [spec("x")], "outputs": [spec(output)], "tensors": tensors}
    data = json.loads(profile_bytes(example(lenet)))
    return json.dumps(data | {"graph": graph, "nodes": [1.0] * len(made), "segments": []}).encode()


def fan(width: int) -> list[Wire]:
    """Nodes whose outputs one last node reads."""
    names = [f"t{k}" for k in range(width)]
    return [*((n, "Relu", ["x"], [n], True, -1) for n in names), ("y", "Sum", names, ["y"], True, -1)]


def shapes_of_shapes(depth: int) -> list[Wire]:
    made: list[Wire] = [(s, "Shape", ["x"], [s], False, -1) for s in ("a0", "b0")]
    for k in range(1, depth):
        made.append((f"c{k}", "Concat", [f"a{k - 1}", f"b{k - 1}"], [f"c{k}"], False, -1))
        made.extend((f"{s}{k}", "Shape", [f"c{k}"], [f"{s}{k}"], False, -1) for s in "ab")
    return [*made, ("y", "Reshape", ["x", f"a{depth - 1}"], ["y"], True, -1)]


def copied_sums(count: int) -> list[Wire]:
    """Copied nodes each of which needs all that was made before it."""
    made: list[Wire] = []
    for k in range(count):
        made.append((f"t{k}", "Relu", ["x"], [f"t{k}"], True, -1))
        made.append((f"c{k}", "Concat", [f"t{k}", *([f"c{k - 1}"] if k else [])], [f"c{k}"], False, -1))
    return [*made, ("y", "Relu", [f"c{count - 1}"], ["y"], True, -1)]


def row(length: int, group: int = -1) -> list[Wire]:
    return [(f"t{k}", "Relu", [f"t{k - 1}" if k else "x"], [f"t{k}"], True, group) for k in range(length)]


@pytest.mark.parametrize(
    ("nodes", "output", "says"),
    [
        (fan(4000), "y", "8,00.,000 tensors that cross, over all cuts, and may have 2,000,000"),
        (shapes_of_shapes(60), "y", "shapes that cross"),
        (copied_sums(2200), "y", "copied nodes"),
        (row(15_000, group=1), "t14999", "steps through its groups"),
        (row(20_001), "t20000", "20,001 nodes and may have 20,000"),
        ([("y", "Sum", ["x"] * 200_000, ["y"], True, -1)], "y", "connections and may have 200,000"),
    ],
    ids=["fan", "shapes", "copied", "group", "nodes", "connections"],
)
def test_small_files_whose_cuts_would_be_endless_are_refused_before(
    lenet: Model, nodes: Sequence[Wire], output: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(graph: Graph) -> tuple[Cut, ...]:
        raise AssertionError("the cuts were built")

    monkeypatch.setattr(Graph, "prefixes", built)
    with pytest.raises(InputError, match=says):
        parse_profile(wired(lenet, nodes, output), "a file")


def test_what_crosses_is_counted_as_the_cuts_have_it(lenet: Model) -> None:
    for nodes, output in ((fan(20), "y"), (row(9), "t8"), (copied_sums(6), "y"), (shapes_of_shapes(4), "y")):
        graph = parse_profile(wired(lenet, nodes, output), "a file").graph
        crossing = sum(len(c.crossing) for c in graph.prefixes())
        assert abs(_crossing(graph, _Reach(graph).both()[0]) - crossing) <= 1
    for model in (lenet, quantised(), open_model("zoo:efficientnet-lite0")):
        crossing = sum(len(c.crossing) for c in model.graph.prefixes())
        assert _crossing(model.graph, _Reach(model.graph).both()[0]) == pytest.approx(crossing, rel=0.1, abs=2)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}']
)
def test_other_files_are_no_profiles(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^that file is not a profile"):
        parse_profile(data, "that file")


def test_a_file_that_is_not_there(tmp_path: Path, lenet: Model) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none\.json: splitpoint profile"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(StorageError, match="there is no folder"):
        save_profile(tmp_path / "no" / "p.json", example(lenet))


# --- watts ----------------------------------------------------------------------------------------------------------


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def test_rapl_counts_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/powercap"
    counters = []
    for package in (0, 1):
        counters.append(write(zones / f"intel-rapl:{package}/energy_uj", 900_000_000))
        write(zones / f"intel-rapl:{package}/max_energy_range_uj", 1_000_000_000)
        write(zones / f"intel-rapl:{package}:0/energy_uj", 5)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    assert "RAPL" in meter.source
    meter.begin(10.0)
    meter.sample()
    write(counters[0], 904_000_000)
    write(counters[1], 1_999_999)  # wrapped after 100 J
    assert meter.end(12.0) == pytest.approx((4 + 102) / 2)


def test_a_jetsons_board_rail(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(folder / "in1_label", "VDD_CPU_GPU_CV")
    write(folder / "in1_input", 1)
    write(folder / "curr1_input", 1)
    write(folder / "in2_label", "VDD_IN")
    write(folder / "in2_input", 5000)
    current = write(folder / "curr2_input", 1000)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    assert "VDD_IN" in meter.source
    meter.begin(0.0)
    write(current, 3000)
    meter.sample()
    assert meter.end(1.0) == pytest.approx((5 + 15 + 15) / 3)


def test_an_older_jetsons_rail(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(folder / "rail_name_0", "POM_5V_IN")
    write(folder / "in_power0_input", 4500)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    meter.begin(0.0)
    assert meter.end(1.0) == pytest.approx(4.5)


def test_no_meter_no_watts(tmp_path: Path) -> None:
    assert power.find_meter(tmp_path) is None
    write(tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj", "")  # may not be read
    assert power.find_meter(tmp_path) is None


class Battery:
    source = "measured by a test"

    def __init__(self, *watts: float) -> None:
        self.watts = list(watts)

    def begin(self, now_s: float) -> None:
        self.now_s = now_s

    def sample(self) -> None:
        pass

    def end(self, now_s: float) -> float:
        assert now_s >= self.now_s
        return self.watts.pop(0)


def test_watts_are_measured_idle_and_computing_or_not_at_all(lenet: Model) -> None:
    ticks = count()

    def clock() -> float:
        return float(next(ticks))

    slept: list[float] = []
    found = power.measure_watts(Battery(1.5, 6.0), lambda: None, clock, slept.append, 3.0)
    assert found == Watts(6.0, 1.5, 1.5, "measured by a test; tx is idle: no radio was measured")
    assert sum(slept) == pytest.approx(power.IDLE_S)
    assert power.measure_watts(Battery(6.0, 1.5), lambda: None, clock, slept.append, 3.0) is None
    assert power.measure_watts(Battery(0.0, 0.0), lambda: None, clock, slept.append, 3.0) is None


def test_given_watts_are_kept(lenet: Model) -> None:
    machinery = Machinery(lenet)
    assert measured(lenet, machinery, 0.01, watts=Watts(5, 2, 1)).watts == Watts(5, 2, 1)
    assert measured(lenet, machinery, 0.01).watts is None


# --- weights that are not there -------------------------------------------------------------------------------------


def quantised() -> Model:
    """Two convolutions in int8 as quantisers write them: every weight and activation through QuantizeLinear."""
    rng = np.random.default_rng(0)
    nodes = [nets.node("QuantizeLinear", ["x", "s", "z"], ["x.q"], name="x.q")]
    weights = [nets.weight("s", 0.05, np.float32), nets.weight("z", 0, np.int8)]
    came = "x.q"
    for k, (wide, read) in enumerate(((16, 3), (16, 16))):
        weights.append(nets.weight(f"w{k}", rng.integers(-90, 90, (wide, read, 3, 3)), np.int8))
        nodes += [
            nets.node("DequantizeLinear", [came, "s", "z"], [f"a{k}"], name=f"a{k}"),
            nets.node("DequantizeLinear", [f"w{k}", "s", "z"], [f"w{k}.f"], name=f"w{k}.f"),
            nets.node("Conv", [f"a{k}", f"w{k}.f"], [f"c{k}"], name=f"conv{k}", pads=[1, 1, 1, 1]),
            nets.node("QuantizeLinear", [f"c{k}", "s", "z"], [f"q{k}"], name=f"q{k}"),
        ]
        came = f"q{k}"
    nodes.append(nets.node("DequantizeLinear", [came, "s", "z"], ["y"], name="y"))
    return load(nets.proto(nodes, [nets.value("x", [1, 3, 12, 12])], [nets.value("y", [1, 16, 12, 12])], weights))


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0", "qdq", "residual"])
def test_stand_ins_run_wherever_the_real_weights_do(name: str) -> None:
    model = open_model(name) if name.startswith("zoo") else quantised() if name == "qdq" else load(nets.residual())
    made = model.with_stand_ins()
    assert made.fingerprint == model.fingerprint
    for digest, blob in model.blobs.items():
        assert made.blob(digest).nbytes == blob.nbytes
    for segment in (made.whole(), made.head(made.graph.middle()), made.tail(made.graph.middle())):
        session = ENGINE.compile(segment)
        feed = samples_for(made, 1)[0] if segment.inputs[0].name == model.inputs[0].name else None
        if feed is not None:
            for value in session.run(feed).values():
                numbers = np.abs(value[np.nonzero(value)]) if value.dtype.kind == "f" else np.zeros(0)
                assert np.isfinite(value).all()
                assert (numbers > 1e-20).all(), "denormals would take ten times as long"
        session.close()


def test_stand_ins_of_integers_are_zero_and_scales_positive() -> None:
    table = np.arange(2000, dtype=np.int64)
    model = load(nets.proto(
        [nets.node("Gather", ["x", "table"], ["g"], name="g", axis=1),
         nets.node("QuantizeLinear", ["g", "scale", "zero"], ["q"], name="q", axis=1),
         nets.node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d", axis=1)],
        [nets.value("x", [1, 2000])], [nets.value("y", [1, 2000])],
        [nets.weight("table", table), nets.weight("scale", np.full(2000, 0.1, np.float32)),
         nets.weight("zero", np.full(2000, 3, np.int8))],
    ))  # fmt: skip
    made = model.with_stand_ins()
    blobs = made.whole().initializers
    assert not np.frombuffer(made.blob(blobs["table"]), np.int64).any()
    assert (np.frombuffer(made.blob(blobs["scale"]), np.float32) > 0).all()
    assert not np.frombuffer(made.blob(blobs["zero"]), np.int8).any()
    session = ENGINE.compile(made.whole())
    assert np.isfinite(session.run({"x": np.ones((1, 2000), np.float32)})["y"]).all()
    session.close()
    with pytest.raises(StorageError, match="is not here"):
        made.blob("0" * 64)


# --- a server that measures itself ----------------------------------------------------------------------------------


@pytest.fixture
def no_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "codec_costs", lambda model, budget_s: {})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return affine(tmp_path_factory.mktemp("affine"))


@pytest.fixture
def clean() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.mark.usefixtures("no_codecs", "clean")
def test_a_server_measures_itself_once(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server, Edge(server.address, chain, at="input", engine=gate) as edge:
        profile = edge.profile_server(5.0)
        assert profile.fingerprint == chain.fingerprint
        assert profile.engine == "gate"
        assert profile.complete
        compiled = len(gate.compiled)
        assert edge.profile_server(5.0) == profile
        assert len(gate.compiled) == compiled, "the second time it had it already"


@pytest.mark.usefixtures("no_codecs", "clean")
def test_only_one_profile_at_a_time_and_leaving_ends_it(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server:
        first = Edge(server.address, chain, at="input", engine=gate)
        second = Edge(server.address, chain, at="input", engine=gate)
        gate.open.clear()
        failures: list[Exception] = []

        def ask() -> None:
            try:
                first.profile_server(30.0)
            except ServerError as exc:
                failures.append(exc)

        asking = threading.Thread(target=ask)
        asking.start()
        assert gate.entered.acquire(timeout=5)
        first.close()
        asking.join(10)
        assert len(failures) == 1
        compiled = len(gate.compiled)
        assert until(lambda: len(server._peers) == 1)
        gate.open.set()
        assert until(lambda: server.services.profiling._thread is None)
        assert len(gate.compiled) <= compiled + 1, "nobody waited for it"
        assert second.profile_server(5.0).complete
        second.close()


@pytest.mark.usefixtures("no_codecs", "clean")
def test_the_end_of_the_server_ends_a_profile(chain: Model) -> None:
    gate = Gate()
    server = Server([chain], engine=gate, port=0)
    server.start()
    with Edge(server.address, chain, at="input", engine=gate) as edge:
        gate.open.clear()
        failures: list[Exception] = []

        def ask() -> None:
            try:
                edge.profile_server(30.0)
            except ServerError as exc:
                failures.append(exc)

        asking = threading.Thread(target=ask)
        asking.start()
        assert gate.entered.acquire(timeout=5)
        closing = threading.Thread(target=server.close, args=(5.0,))
        closing.start()
        assert until(server.services.profiling._closed.is_set)
        gate.open.set()
        closing.join(10)
        asking.join(10)
        assert not closing.is_alive()
        assert "ending" in str(failures[0])


@pytest.mark.usefixtures("no_codecs", "clean")
@pytest.mark.parametrize(
    ("share", "limit", "budget_s", "says"),
    [
        ("model", 0.0, 5.0, "does not measure itself"),
        ("none", 60.0, 5.0, "hands out no models"),
        ("model", 60.0, float("nan"), "number of seconds, not nan"),
        ("model", 60.0, float("inf"), "number of seconds, not inf"),
        ("model", 60.0, -1.0, "number of seconds, not -1.0"),
    ],
)
def test_a_server_may_refuse(chain: Model, share: str, limit: float, budget_s: float, says: str) -> None:
    gate = Gate()
    limits = Limits(profile_s=limit)
    with (
        Server([chain], engine=gate, port=0, share=share, limits=limits) as server,
        Edge(server.address, chain, at="input", engine=gate) as edge,
    ):
        request = wire.ProfileRequest(chain.fingerprint, budget_s)  # past the edge's own check
        with pytest.raises((ServerError, InputError), match=says):
            edge._channel.ask(Kind.PROFILE, request, wire.Profiled)
        if says.startswith("number"):
            with pytest.raises(UsageError, match="number of seconds above 0"):
                edge.profile_server(budget_s)
        x = np.zeros((1, 1024), np.float32)
        assert edge.infer(x).outputs, "the connection goes on"


@pytest.mark.usefixtures("no_codecs", "clean")
def test_an_engine_that_fails_while_measuring_is_an_error_of_this_request(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server, Edge(server.address, chain, at="input", engine=gate) as edge:
        gate.fails = RuntimeError("secret path /root")
        with pytest.raises(ServerError, match="cannot measure this model") as caught:
            edge.profile_server(5.0)
        assert "secret" not in str(caught.value)
        gate.fails = None
        assert edge.profile_server(5.0).complete


# --- rows, pictures, the command line -------------------------------------------------------------------------------


def test_rows_follow_the_graph(lenet: Model) -> None:
    profile = example(lenet)
    rows = cost_rows(profile)
    assert [r.layer for r in rows[4:8]] == ["normalize", "conv1", "tanh1", "pool1"]
    assert rows[0].output_bytes == lenet.inputs[0].bind({"batch": 1}).nbytes
    assert rows[5].shape == "1x6x28x28"
    assert sum(r.share for r in rows) == pytest.approx(1, abs=1e-3)
    assert sum(r.ms for r in rows) == pytest.approx(sum(profile.nodes))
    assert [r.measured for r in rows].count(True) == 3
    assert rows[-1].head_ms == pytest.approx(profile.whole.median)


def test_kinds_of_layers(lenet: Model) -> None:
    graph = open_model("zoo:efficientnet_lite0").graph
    kinds = {n.layer: kind_of([n], graph) for n in graph.nodes}
    assert kinds["blocks.1.depthwise.norm"] == "depthwise convolution"
    assert kinds["blocks.1.expand.norm"] == "convolution"
    assert kinds["stem.norm"] == "convolution"
    assert kinds["fc"] == "linear"
    assert {kind_of([n], lenet.graph) for n in lenet.graph.nodes if n.op == "Conv"} == {"convolution"}


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(a) for a in args], catch_exceptions=False)


def test_the_command_measures_and_writes_everything(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    openpyxl = pytest.importorskip("openpyxl")
    paths = [tmp_path / name for name in ("edge.profile.json", "p.png", "p.csv", "p.xlsx")]
    result = run("profile", "zoo:lenet5", "--threads", 1, "--budget", "2s", "--edge-watts", "5,2,1", "--note", "a test",
                 "-o", paths[0], "--png", paths[1], "--csv", paths[2], "--xlsx", paths[3])  # fmt: skip
    assert result.exit_code == 0
    assert "whole model" in result.output
    assert "conv1" in result.output
    assert "5.0 W computing, 2.0 W sending, 1.0 W idle" in result.output
    assert f"next: splitpoint plan MODEL --edge {paths[0]}" in result.output
    profile = load_profile(paths[0])
    assert (profile.threads, profile.note, profile.device) == (1, "a test", "cpu")
    assert profile.watts == Watts(5, 2, 1, "given by --edge-watts")
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [r["layer"] for r in rows][-1] == "fc3"
    assert len(rows) == 17
    assert openpyxl.load_workbook(paths[3]).active.max_row == 18


def test_json_is_the_profile(tmp_path: Path) -> None:
    result = run("profile", "zoo:lenet5", "--threads", 1, "--budget", "1s", "--json")
    assert parse_profile(result.stdout.encode(), "stdout").graph.name == "lenet5"


@pytest.mark.usefixtures("clean")
def test_the_command_asks_a_server(lenet: Model, tmp_path: Path) -> None:
    path = tmp_path / "cloud.profile.json"
    with Server([lenet], engine=open_engine(threads=1), port=0) as server:
        result = run("profile", "--cloud", server.address, "--budget", "1s", "-o", path, "--cache", tmp_path)
    assert result.exit_code == 0
    assert load_profile(path).fingerprint == lenet.fingerprint


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "say which MODEL to measure"),
        (("zoo:lenet5", "--budget", "0"), "--budget is a time like 60s"),
        (("zoo:lenet5", "--budget", "soon"), "--budget is a time like 60s"),
        (("zoo:lenet5", "--edge-watts", "5,2"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "--edge-watts", "5,2,-1"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "--edge-watts", "5,nan,1"), "--edge-watts is COMPUTE,TX,IDLE"),
        (("zoo:lenet5", "-o", "/no/such/folder/p.json"), "there is no folder"),
        (("zoo:lenet5", "--cloud", "127.0.0.1:1", "--note", "x"), "describe this machine"),
    ],
)
def test_wrong_uses_are_one_sentence(args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *args]) in (2, 7)
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
