"""What a profile says of a cut."""

from __future__ import annotations

import msgspec
import pytest
from profile_cases import Knowing, example, measured, row, wired

import nets
from nets import load
from splitpoint.errors import (
    CutError,
    InputError,
)
from splitpoint.models.model import Model
from splitpoint.profile.files import parse_profile
from splitpoint.profile.profiles import Profile, SegmentCost, Stat


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


def test_a_modelled_cut_has_the_spread_of_its_neighbours_and_the_error_of_the_model(lenet: Model) -> None:
    profile = example(lenet)
    stat = profile.head(6)
    assert stat.count == 0
    assert 0.6 < stat.p10 / stat.median < 0.89
    assert 1.26 < stat.p90 / stat.median < 1.6
    assert profile.head(4).p90 == pytest.approx(1.25 * profile.head(4).median)


def test_a_whole_that_takes_longer_than_its_kernels_says_nothing_of_what_a_first_cut_takes(lenet: Model) -> None:
    """Held back to an eighth, ResNet-50 took 642 ms, its kernels 498: a head of 0.15 ms was said to take 143.9 ± 3.4.

    Whether the rest is paid by every segment or shared out is not known: both lie within the band.
    """
    profile = example(lenet)
    last = len(lenet.graph.order)
    kernels, whole = last / 2, last / 2 + 30
    stat = Stat(whole, 0.99 * whole, 1.01 * whole, 9)
    ends = (SegmentCost(0, None, stat), SegmentCost(last, stat, None))
    alone = msgspec.structs.replace(profile, whole=stat, segments=ends)
    for k in range(1, last):
        for side, done in ((alone.head(k), k), (alone.tail(k), last - k)):
            assert side.count == 0
            assert side.median == pytest.approx(whole * done / last)
            assert side.p10 <= whole * done / last < kernels * done / last + 30 <= side.p90 * (1 + 1e-9)
    # A short one that was measured settles it.
    known = msgspec.structs.replace(alone, segments=(*ends, SegmentCost(2, Stat(1.1, 1.09, 1.11, 9), None)))
    assert known.head(1).p90 < 1.0


def test_a_cut_that_is_no_prefix_is_as_unsure_as_the_prefixes_of_its_length(lenet: Model) -> None:
    graph = load(nets.proto(
        [nets.node("Relu", ["x"], ["a"], name="a"), nets.node("Neg", ["a"], ["b"], name="b"),
         nets.node("Exp", ["a"], ["c"], name="c"), nets.node("Add", ["b", "c"], ["y"], name="d")],
        [nets.value("x", [1, 8])], [nets.value("y", [1, 8])],
    ))  # fmt: skip
    profile = measured(graph, Knowing(graph))
    ends = tuple(s for s in profile.segments if s.prefix in (0, 4))
    alone = msgspec.structs.replace(profile, segments=ends)
    branch = next(c for c in (graph.graph.cut_of([0, 1]), graph.graph.cut_of([0, 2]))
                  if c.nodes != graph.graph.prefixes()[2].nodes)  # fmt: skip
    assert alone.head(branch).p90 - alone.head(branch).median == pytest.approx(alone.head(2).p90 - alone.head(2).median)
    assert profile.head(branch).p90 - profile.head(branch).median < 0.5 * (
        alone.head(branch).p90 - alone.head(branch).median
    )


def test_a_profile_of_another_model_is_refused(lenet: Model) -> None:
    with pytest.raises(InputError, match=r"this profile is of lenet5 \w{12}, not of resnet aaaaaaaaaaaa: make one"):
        example(lenet).require("a" * 64, "resnet")
