"""The best of all placements under constraints, and its bound."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import LENET, pair, parts, planned, worth
from plans import model_of, profile
from split_cases import (
    CODECS,
    LINK,
    cheapest,
    chosen_of,
    coded,
    costs_of,
    graph_of,
    profile_of,
    request,
    split_of,
    travelling,
)

from nets import load, random_dags, stacked
from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, UsageError
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.frame_bytes import ANSWER_NBYTES, REQUEST_NBYTES, frame_entry
from splitpoint.planning.hosts import Host, check_same_model
from splitpoint.planning.placement_search import SplitProblem
from splitpoint.planning.planner import plan
from splitpoint.planning.solve.min_cut import Cutter, least
from splitpoint.planning.solve.problem import stages
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.tensors import TensorSpec


def test_a_deadline_and_the_least_server_time_are_held_together() -> None:
    free = planned(objective="server-time")
    assert free.best.kind == "device"
    tight = planned(Link(50, 50, 5), objective="server-time", deadline_ms=60.0)
    assert tight.best.kind == "split"
    assert tight.best.total.high <= 60
    edge, cloud = pair()
    link = Link(50, 50, 5)
    for p, cut in enumerate(edge.graph.prefixes()):
        found = parts(edge, cloud, cut, ("raw",) * len(cut.crossing), link)
        if worth(found, "latency") < 50:
            assert worth(found, "server-time") >= tight.best.stages["server"].ms - 1e-9, p


def test_a_streams_bound_counts_the_servers_own_overhead_and_coding() -> None:
    """Milliseconds that every call takes on either side, and codecs that take as long: no gap comes of them."""
    graph = model_of(LENET).graph

    def with_overhead(found: Profile) -> Profile:
        def more(stat: Stat | None) -> Stat | None:
            return None if stat is None else Stat(stat.median + 0.25, stat.p10 + 0.25, stat.p90 + 0.25, stat.count)

        segments = tuple(
            msgspec.structs.replace(s, head=more(s.head), tail=more(s.tail)) for s in found.segments
        )  # fmt: skip
        codecs = {"int8": CodecCost(0.1, 2.0, 0.1, 1.5)}
        return msgspec.structs.replace(found, segments=segments, whole=more(found.whole), codecs=codecs)

    both = with_overhead(profile(graph, 0.13)), with_overhead(profile(graph, 0.13))
    for link in (Link(19862, 18000, 0.06), Link(60, 60, 1), Link(8, 8, 1)):
        found = plan(None, both, link, objective="throughput", constraints=Constraints(codecs=("int8",)))
        assert found.gap < 0.03, link


LINKS = (Link(0.13, 0.13, 100), Link(5.85, 20.0, 40.0), Link(100, 100, 3), Link(1000, 1000, 0.3))


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0", "residual", "flattening", "passing"])
@pytest.mark.parametrize("codecs", [("raw",), CODECS], ids=["raw", "four codecs"])
def test_every_prefix_costs_what_its_parts_cost(name: str, codecs: tuple[str, ...]) -> None:
    graph = graph_of(name)
    split = split_of(graph, codecs=codecs)
    for link in LINKS:
        problem = split.problem(link)
        for cut in graph.prefixes():
            found = stages(problem, split.costs.steps.on_edge(cut.nodes))
            assert (found.edge, found.link, found.cloud) == pytest.approx(request(split, cut, link, codecs), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(random_dags(), st.sampled_from(LINKS))
def test_no_prefix_is_better_than_the_cut_that_is_found(net: Any, link: Link) -> None:
    graph = load(net).graph
    split = split_of(graph, codecs=CODECS)
    problem = split.problem(link)
    found = least(problem)
    prefixes = [stages(problem, split.costs.steps.on_edge(c.nodes)).total for c in graph.prefixes()]
    assert found.value <= min(prefixes) * (1 + 1e-12)
    assert sum(request(split, split.costs.steps.cut(found.on_edge), link, CODECS)) == pytest.approx(
        found.value, rel=1e-9
    )


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0"])
def test_the_best_cut_of_a_chain_is_its_best_prefix(name: str) -> None:
    """Over links of every rate the answer moves from the device through the model to the server."""
    graph = graph_of(name)
    split = split_of(graph, codecs=CODECS)
    cutter = Cutter(split.problem(LINK))
    sizes = []
    for mbps in np.geomspace(1e-4, 2000, 30):
        link = Link(float(mbps), float(mbps), 2)
        found = cutter.least(split.problem(link))
        prefixes = [sum(request(split, c, link, CODECS)) for c in graph.prefixes()]
        assert found.value == pytest.approx(min(prefixes), rel=1e-9)
        sizes.append(int(found.on_edge.sum()))
    assert sizes[0] == len(graph.order)
    assert sizes[-1] < len(graph.order) / 4
    assert sizes == sorted(sizes, reverse=True)


def test_each_tensor_has_the_codec_that_is_cheapest_on_this_link() -> None:
    graph = graph_of("zoo:efficientnet_lite0")
    split = split_of(graph, codecs=CODECS)
    used = set()
    for link in LINKS:
        chosen = chosen_of(split, link)
        for spec in split.costs.steps.tensors:
            assert chosen[spec.name] == cheapest(split, spec, CODECS, link)[1]
        used |= set(chosen.values())
        cut = graph.cut("middle")
        codec = open_codec(chosen[cut.crossing[0].name])
        sent = split.costs.coded(0, cut.crossing[0], codec.name)
        assert sent.codec == codec.name
        assert (sent.nbytes, sent.sized) == (codec.nbytes(cut.crossing[0]), codec.sized)
    assert used == set(CODECS)


def test_raw_may_always_be_used() -> None:
    """A codec that nothing accepts, or that costs more than it saves, changes nothing."""
    graph = graph_of("residual")
    plain, coded_ = split_of(graph), split_of(graph, codecs=("jpeg:90",))
    assert plain.problem(LINK).link.tolist() == coded_.problem(LINK).link.tolist()
    assert set(chosen_of(coded_, LINK).values()) == {"raw"}


def test_energy_of_a_problem_is_watts_times_milliseconds() -> None:
    graph = graph_of("zoo:efficientnet_lite0")
    watts = Watts(compute=7.0, tx=3.0, idle=2.0)
    split = split_of(graph, codecs=CODECS, watts=watts)
    problem = split.problem(LINK, "energy")
    for cut in graph.prefixes():
        chosen = chosen_of(split, LINK, "energy")
        device, _, server = request(split, cut, LINK, CODECS)
        spent = watts.compute * device
        if server:
            sent = REQUEST_NBYTES + sum(travelling(split, t, chosen[t.name]) for t in cut.crossing)
            spec = graph.tensors[graph.outputs[0].name]
            back = ANSWER_NBYTES + spec.nbytes + frame_entry(TensorSpec("y", spec.dtype, (1, 1000)), "raw", spec.nbytes)
            spent += watts.tx * (LINK.up_ms(sent) + LINK.down_ms(back))
            for t in cut.crossing:
                spent += watts.compute * coded(split.costs.hosts[0].profile, chosen[t.name], "encode", t.nbytes)
                spent += watts.idle * coded(split.costs.hosts[1].profile, chosen[t.name], "decode", t.nbytes)
            spent += watts.idle * (server + LINK.rtt_ms + split.costs.hosts[1].profile.costs().tail_fixed)
        assert stages(problem, split.costs.steps.on_edge(cut.nodes)).total == pytest.approx(spent, rel=1e-9)


def test_a_radio_that_costs_nothing_is_no_reason_for_trouble() -> None:
    """0 watts of tx: bytes weigh nothing, and codecs that are not allowed still cost without end."""
    split = split_of(graph_of("zoo:lenet5"), codecs=CODECS, watts=Watts(5, 0, 0))
    problem = split.problem(LINK, "energy")
    assert np.isfinite(problem.link).all()
    assert set(chosen_of(split, LINK, "energy").values()) == {"raw"}


def test_energy_without_watts_is_refused() -> None:
    with pytest.raises(UsageError, match="--edge-watts"):
        split_of(graph_of("zoo:lenet5")).problem(LINK, "energy")


def test_unknown_objectives_are_refused() -> None:
    with pytest.raises(UsageError, match="latency"):
        split_of(graph_of("zoo:lenet5")).problem(LINK, "latnecy")


def test_bytes_count_and_latency_decides_between_equals() -> None:
    """Kept off the device's last step, some cut has the fewest bytes; among equals the fastest one is taken."""
    graph = graph_of("zoo:efficientnet_lite0")
    split = split_of(graph, codecs=CODECS)
    problem, latency = split.problem(LINK, "bytes"), split.problem(LINK)
    last = np.zeros(problem.steps, bool)
    last[-1] = True
    found = least(problem, keep_cloud=last)
    chosen = chosen_of(split, LINK, "bytes")

    def price(cut: Cut) -> tuple[int, float]:
        nbytes = sum(travelling(split, t, chosen[t.name]) for t in cut.crossing)
        return nbytes, stages(latency, split.costs.steps.on_edge(cut.nodes)).total

    best = min((c for c in graph.prefixes()[:-1]), key=price)
    assert price(split.costs.steps.cut(found.on_edge)) == pytest.approx(price(best))
    answer = ANSWER_NBYTES + 4000 + frame_entry(TensorSpec("y", "float32", (1, 1000)), "raw", 4000)
    assert int(found.value) == REQUEST_NBYTES + price(best)[0] + answer
    assert least(problem).on_edge.all()
    assert least(problem).value < 1


def test_of_equal_bytes_the_fastest_cut_is_taken() -> None:
    """Every tensor of this chain has the same size: only latency tells its cuts apart."""
    graph = load(stacked(12, 64)).graph
    last = np.arange(12) == 11
    found = set()
    for seed in range(8):
        split = SplitProblem(costs_of(graph, profile_of(graph, seed, 1.0), profile_of(graph, seed + 100, 1.0)))
        latency = split.problem(LINK)
        best = min(graph.prefixes()[:-1], key=lambda c: stages(latency, split.costs.steps.on_edge(c.nodes)).total)
        on_edge = least(split.problem(LINK, "bytes"), keep_cloud=last).on_edge
        assert split.costs.steps.cut(on_edge).nodes == set(best.nodes)
        found.add(len(best.nodes))
    assert len(found) > 3


def test_of_equal_server_time_the_fastest_cut_is_taken() -> None:
    """Steps that cost the server nothing may be anywhere: the fewest bytes for the least work on the device decide."""
    graph = graph_of("zoo:lenet5")
    n = len(graph.order)
    idle = Stat(2.0, 2.0, 2.0)
    cloud = msgspec.structs.replace(
        profile_of(graph, 1, 1.0), nodes=(0.0,) * (n - 1) + (2.0,), whole=idle,
        segments=tuple(SegmentCost(k, tail=idle) for k in range(n)),
    )  # fmt: skip
    split = SplitProblem(costs_of(graph, profile_of(graph, 2, 0.5), cloud))
    slow = Link(0.02, 0.02, 1)
    latency = split.problem(slow)
    best = min(graph.prefixes()[:-1], key=lambda c: stages(latency, split.costs.steps.on_edge(c.nodes)).total)
    found = least(split.problem(slow, "server-time"), keep_cloud=np.arange(n) == n - 1)
    assert found.value == pytest.approx(2.0, abs=1e-5)
    assert split.costs.steps.cut(found.on_edge).nodes == set(best.nodes)
    assert 0 < len(best.nodes) < n - 1


def test_server_time_counts_and_latency_decides_between_equals() -> None:
    graph = graph_of("zoo:lenet5")
    split = split_of(graph)
    problem = split.problem(LINK, "server-time")
    assert least(problem).on_edge.all()
    kept = np.zeros(problem.steps, bool)
    kept[5] = True
    found = least(problem, keep_cloud=kept)
    assert found.on_edge.tolist() == [k < 5 for k in range(problem.steps)]
    assert found.value == pytest.approx(
        split.costs.hosts[1].profile.costs().tail[5:].sum() + split.costs.hosts[1].profile.costs().tail_fixed,
        abs=1e-5,
    )


def test_a_stream_does_not_wait_for_the_round_trip() -> None:
    split = split_of(graph_of("zoo:lenet5"))
    one, stream = split.problem(LINK), split.problem(LINK, "throughput")
    assert one.cloud_fixed - stream.cloud_fixed == pytest.approx(LINK.rtt_ms)
    assert one.link.tolist() == stream.link.tolist()


def test_a_new_link_leaves_the_graph_alone() -> None:
    """A `Cutter` is made once: the problems of all links have the same wiring."""
    split = split_of(graph_of("zoo:efficientnet_lite0"), codecs=CODECS)
    a, b = (split.problem(link) for link in LINKS[:2])
    assert all(getattr(a, k) is getattr(b, k) for k in ("before", "after", "maker", "first", "users"))


def test_a_profile_of_another_graph_is_refused() -> None:
    small = profile_of(graph_of("residual"), 1, 1.0)
    with pytest.raises(InputError, match=r"the device's profile lacks node .* of lenet5"):
        check_same_model(graph_of("zoo:lenet5"), (Host("device", small), Host("server", small)), None)
