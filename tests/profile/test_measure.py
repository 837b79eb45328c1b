"""What is measured is what planning sees: segments as they ran, sums in between, files that are looked at."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from profile_cases import Knowing, Machinery, measured, survey

import nets
from nets import ENGINE, load
from splitpoint.errors import (
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.profile.files import parse_profile, profile_bytes
from splitpoint.profile.measure import (
    ProfileRun,
    Progress,
    _runs_for,
    compiled_anew,
    pause_s,
    profile_model,
    stat_of,
)
from splitpoint.profile.profiles import Stat


def truth(model: Model, machinery: Machinery, k: int) -> tuple[float, float]:
    """What head and tail of the k-th prefix take on that machine."""
    cut = model.graph.prefixes()[k]
    head, tail = model.head(cut), model.tail(cut)
    return (machinery.ms(head) if head.outputs else 0.0, machinery.ms(tail) if tail.outputs else 0.0)


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


def test_what_was_not_measured_is_modelled_from_kernel_times(lenet: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    machinery = Knowing(lenet, fixed=0.5)
    held_out = [c for c in range(len(lenet.graph.prefixes())) if c % 2]
    visited = [k for k in range(len(lenet.graph.prefixes())) if k not in held_out]
    monkeypatch.setattr(ProfileRun, "_candidates", lambda run: visited)
    profile = measured(lenet, machinery)
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
    assert costs.head.sum() + costs.head_fixed == pytest.approx(whole, rel=1e-3)
    assert costs.tail.sum() + costs.tail_fixed == pytest.approx(whole, rel=1e-3)
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

    work = ProfileRun(lenet, machinery, budget_s=1.0, clock=machinery.clock, codecs=lambda *given: {}, pause=pause)
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
    assert [p.what for p in seen[:3]] == ["the whole model", "codecs", "kernel times"]
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
    work = ProfileRun(model, ENGINE, budget_s=20, codecs=lambda *given: {})
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


def test_a_band_is_as_wide_as_what_is_compiled_anew_differs() -> None:
    alike = [[[10.0, 10.0], [10.0, 10.0]]] * 1000
    apart = [[[9.8, 9.8], [10.2, 10.2]]] * 1000  # of two, each is 2.8 % off
    assert compiled_anew(alike) < 0.003 < 0.027 < compiled_anew(apart) < 0.029
    assert compiled_anew([[[10.0]], [], [[10.0], [90.0]]]) == 0.02  # one visit says nothing, nor a disturbed one
    once, twice = (stat_of([[10.0] * 9] * visits, 0.01) for visits in (1, 2))
    assert (once.p90 - 10) / (twice.p90 - 10) == pytest.approx((2 / 1.5) ** 0.5, rel=1e-4)


def test_four_of_five_later_visits_lie_in_the_band_of_few() -> None:
    draw = np.random.default_rng(0)

    def visits(count: int) -> list[list[float]]:
        return [(10 * (1 + 0.02 * draw.standard_normal()) * (1 + 0.01 * draw.standard_normal(11))).tolist()
                for _ in range(count)]  # fmt: skip

    for count, least, most in (1, 0.76, 0.86), (2, 0.8, 0.93):
        held = [
            stat.p10 <= np.median(later) <= stat.p90
            for _ in range(400)
            for stat in [stat_of(visits(count), compiled_anew([]))]
            for [later] in [visits(1)]
        ]
        assert least <= np.mean(held) <= most
