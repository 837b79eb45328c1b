"""What a row says besides its milliseconds, and what rules it out."""

from __future__ import annotations

import msgspec
import pytest
from planning_cases import EFFICIENT, calibrated, live_bytes, planned
from plans import FOUR_G, profile, profiles

import nets
from nets import load
from splitpoint.codecs import PRICED
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.graph_steps import head_memory
from splitpoint.planning.hosts import Host
from splitpoint.planning.planner import Planner, plan


def test_an_unmeasured_jpeg_frame_is_priced_and_named_but_never_chosen() -> None:
    found = planned()
    jpeg = found.option("jpeg")
    assert jpeg is not None
    assert jpeg.codecs == ("jpeg:90",)
    assert jpeg.refused == "its accuracy is not measured (splitpoint calibrate-codecs)"
    assert not jpeg.sized
    assert jpeg.total.ms < found.best.total.ms
    assert "a JPEG frame (q90) to the server would need" in found.advice


def test_a_jpeg_frame_that_is_asked_for_is_an_answer() -> None:
    found = planned(codecs=("jpeg:90",))
    assert found.best.kind == "jpeg"
    assert found.advice.startswith("Do not split: run it all on the server with a JPEG frame")


def test_a_model_that_takes_no_image_has_no_jpeg_row() -> None:
    graph = nets.load(nets.residual()).graph
    found = plan(graph, (profile(graph, 4.0), profile(graph, 0.4)), FOUR_G)
    assert found.option("jpeg") is None


def test_the_devices_memory_bounds_the_head() -> None:
    free, tight = planned(codecs=("int4",)), planned(codecs=("int4",), max_edge_memory=100e3)
    assert free.best.edge_memory > 100e3 >= tight.best.edge_memory
    assert 0 < tight.bound <= tight.best.total.ms
    assert tight.gap < 1e-6
    device = tight.option("device")
    assert device is not None
    assert device.refused.startswith("its head holds about 28.2 MB")


def test_a_deadline_rules_out_what_is_too_slow_for_one_request_in_ten() -> None:
    found = planned(deadline_ms=97.0, objective="bytes", codecs=("int4",))
    device = found.option("device")
    assert device is not None
    assert device.total.ms < 97 < device.total.high
    assert device.refused == "one request in ten takes longer than 99.0 ms"
    assert found.best.total.high <= 97


def test_a_budget_admits_what_is_shown_to_keep_it() -> None:
    known = calibrated({("blocks.5.project.norm", "int8"): 1.0, ("blocks.3.project.norm", "int8"): 0.9})
    found = planned(Link(12, 20, 10), max_drop=0.01, calibration=known)
    assert found.best.cut == "blocks.5.project.norm"
    assert found.best.codecs == ("int8",)
    assert found.best.quality is not None
    assert found.best.quality.inputs == 1000
    assert "a drop of at most 1 %" in found.constraints
    # Without the budget's 10 %, the other cut would not be taken; with one of 20 % it may be.
    loose = planned(Link(12, 20, 10), max_drop=0.2, calibration=known)
    assert {o.cut for o in loose.options if o.codecs == ("int8",)} >= {"blocks.3.project.norm"}


def test_a_budget_that_too_few_inputs_cannot_show_is_marked_as_not_shown() -> None:
    known = calibrated({("blocks.5.project.norm", "int8"): 1.0, ("input", "jpeg:75"): 1.0}, inputs=24)
    found = planned(Link(12, 20, 10), max_drop=0.01, calibration=known)
    assert found.best.exact
    jpeg = found.option("jpeg")
    assert jpeg is not None
    assert jpeg.refused.startswith("not shown by 24 inputs, which allow a drop of ")
    assert jpeg.refused.endswith("calibrate with at least 300")


def test_jpeg_is_priced_at_the_lowest_quality_within_the_budget() -> None:
    rows = {("input", "jpeg:50"): 0.9, ("input", "jpeg:75"): 1.0, ("input", "jpeg:90"): 1.0}
    found = planned(Link(12, 20, 10), max_drop=0.01, calibration=calibrated(rows))
    assert found.best.kind == "jpeg"
    assert found.best.codecs == ("jpeg:75",)
    assert found.best.sized
    assert found.best.crossing[0].nbytes == round(150528 * 0.1)
    # Without a budget: the lowest at which no label changed.
    assert planned(Link(12, 20, 10), calibration=calibrated(rows)).best.codecs == ("jpeg:75",)


def test_a_jpeg_that_changes_labels_loses_without_a_budget() -> None:
    found = planned(Link(12, 20, 10), calibration=calibrated({("input", "jpeg:75"): 0.9}))
    jpeg = found.option("jpeg")
    assert jpeg is not None
    assert jpeg.refused == "10 % of the labels change"


def test_refused_rows_are_those_above_the_limit_and_the_bound_is_below_all_others() -> None:
    edge, cloud = profiles(EFFICIENT, 90.0, 4.0)
    memory = head_memory(edge.graph)
    for limit in (1e6, 5e6, 15e6):
        planner = Planner(None, (edge, cloud), constraints=Constraints(max_edge_memory=limit, codecs=("int4",)))
        found = planner.plan(FOUR_G)
        for option in found.options:
            assert ("its head holds about" in option.refused) == (option.edge_memory > limit)
        allowed = [k for k in range(len(memory)) if memory[k] <= limit]
        assert found.best.edge_memory <= limit
        assert found.bound <= found.best.total.ms * (1 + 1e-9)
        assert found.best.total.ms <= min(planner._candidates.scores(FOUR_G)[0][allowed].min(axis=1)) + 1e-6


def test_a_cut_inside_a_prefix_takes_no_more_than_the_prefix() -> None:
    model = load(nets.residual())
    graph = model.graph
    planner = Planner(None, (profile(graph, 9.0), profile(graph, 1.0)))
    for i in graph.placed:
        cut = graph.cut_of(nets.closed(graph, [i]))
        weights = 4 * sum(graph.nodes[j].params for j in cut.nodes)
        assert weights + live_bytes(graph, cut) <= planner._scorer.memory_of(cut)


def test_an_agreement_is_what_was_measured_and_a_drop_what_is_ruled_out() -> None:
    known = calibrated({("blocks.5.project.norm", "int8"): 0.99})  # of 1000: a drop of 1.6 % is not ruled out
    asked = {"agreement": 0.99}, {"agreement": 0.991}, {"max_drop": 0.01}, {"max_drop": 0.02}
    taken = [planned(Link(12, 20, 10), calibration=known, **one).best.codecs == ("int8",) for one in asked]
    assert taken == [True, False, False, True]
    both = planned(Link(12, 20, 10), calibration=known, agreement=0.95, max_drop=0.01)
    assert both.best.exact
    assert both.constraints == ("an agreement of at least 95 %", "a drop of at most 1 %")


def test_each_row_is_priced_at_the_cheapest_setting_that_keeps_the_agreement() -> None:
    rows = {
        ("input", "jpeg:75"): 0.8, ("input", "jpeg:90"): 0.9, ("input", "jpeg:98"): 0.97, ("input", "webp:95"): 0.95,
        ("input", "webp:100"): 0.985, ("input", "webp-lossless"): 1.0, ("blocks.5.project.norm", "int8"): 0.99,
        ("blocks.5.project.norm", "int4"): 0.93,
    }  # fmt: skip
    known = calibrated(rows)
    chosen = {}
    for share in (0.9, 0.95, 0.98, 1.0):
        found = planned(Link(2, 20, 10), calibration=known, agreement=share)
        jpeg, other, split = (found.option(kind) for kind in ("jpeg", "opponent", "split"))
        assert jpeg is not None
        assert other is not None
        assert split is not None
        chosen[share] = jpeg.codecs, other.codecs, split.codecs
        assert (jpeg.refused == "") == (share < 0.98)
        assert other.refused.startswith("splitpoint does not send")
    # All pictures have the same bytes here, and the lossless one takes longest.
    assert chosen[0.95] == (("jpeg:98",), ("webp:95",), ("int8",))
    assert chosen[0.9][0] in (("jpeg:90",), ("jpeg:98",))
    assert chosen[0.98] == (("jpeg:98",), ("webp:100",), ("int8",))
    assert chosen[1.0][1] == ("webp-lossless",)


def test_an_opponent_is_told_of_and_never_chosen() -> None:
    known = calibrated({("input", "jpeg:98"): 0.97, ("input", "webp:95"): 1.0})
    found = planned(Link(12, 20, 10), calibration=known)
    other = found.option("opponent")
    assert other is not None
    assert other.label == "all on the server, WebP q95 (priced only)"
    assert other.refused == "splitpoint does not send WebP q95"
    assert other.total.ms < found.best.total.ms
    assert found.best.kind != "opponent"
    assert "; WebP q95 to the server would need " in found.advice
    assert found.advice.endswith("but is not sent.")
    assert planned(Link(12, 20, 10)).option("opponent") is None, "what nobody measured is no opponent"


def test_pictures_that_no_profile_measured_take_as_many_times_what_jpeg_takes() -> None:
    edge, _ = profiles(EFFICIENT, 90.0, 4.0)
    host = Host("device", edge)
    table, jpeg = PRICED["webp"].cost, PRICED["jpeg"].cost
    took, measured = host.codec("webp:90"), host.codec("jpeg:90")
    times = (measured.encode_fixed_ms + 0.15 * measured.encode_ms_per_mb) / (jpeg[0] + 0.15 * jpeg[1])
    assert took.encode_fixed_ms + 0.15 * took.encode_ms_per_mb == pytest.approx(times * (table[0] + 0.15 * table[1]))
    assert host.knows("jpeg444:75")
    assert not Host("device", msgspec.structs.replace(edge, codecs={})).knows("webp:90")
