"""Profiles and a link as the numbers of a problem: against one request's parts added up one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import is_closed

from nets import flattening, load, passing, proto, random_dags, residual, stacked, value, weight
from nets import node as onnx_node
from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality
from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, UsageError
from splitpoint.graph import Cut, Graph, Node
from splitpoint.link import Link
from splitpoint.link.transfer import ANSWER_NBYTES, REQUEST_NBYTES, entry_nbytes
from splitpoint.machine import Machine
from splitpoint.models import load as load_model
from splitpoint.planning.constraints import input_like
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.hosts import Host
from splitpoint.planning.same_model import check
from splitpoint.planning.solve.min_cut import Cutter, least
from splitpoint.planning.solve.problem import Problem, stages
from splitpoint.planning.split_problem import SplitProblem
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.tensors import TensorSpec

LINK = Link(5.85, 20.0, 40.0)
LINKS = (Link(0.13, 0.13, 100), Link(5.85, 20.0, 40.0), Link(100, 100, 3), Link(1000, 1000, 0.3))
CODECS = ("raw", "fp16", "int8", "jpeg:90")


@cache
def graph_of(name: str) -> Graph:
    nets: Mapping[str, Any] = {"residual": residual, "flattening": flattening, "passing": passing}
    return load(nets[name]()).graph if name in nets else load_model(name).graph


def profile_of(graph: Graph, seed: int, speed: float, **more: Any) -> Profile:
    """A profile whose node costs add up exactly: every prefix "measured" as a sum of node times."""
    rng = np.random.default_rng(seed)
    nodes = [0.0 if not n.placed else float(rng.uniform(0.1, 2)) * speed for n in graph.nodes]
    made, done = [], 0.0
    for k, step in enumerate(((), *graph.order)):
        done += sum(nodes[i] for i in step)
        made.append((k, done))
    whole = made[-1][1]

    def stat(ms: float) -> Stat | None:
        return Stat(ms, ms * 0.9, ms * 1.2, 9) if ms > 1e-12 else None

    return Profile(
        fingerprint="f" * 64,
        graph=graph,
        engine="stand-in",
        device="cpu",
        threads=1,
        machine=Machine("Linux", "a processor", 2, 8 << 30, "", "3.11"),
        versions={},
        created="2026-01-01T00:00:00Z",
        complete=True,
        whole=Stat(whole, whole, whole, 9),
        segments=tuple(SegmentCost(k, stat(ms), stat(whole - ms)) for k, ms in made),
        nodes=tuple(nodes),
        codecs={
            "raw": CodecCost(0.01, 0.1, 0.01, 0.1),
            "fp16": CodecCost(0.02 * speed, 0.5 * speed, 0.03 * speed, 0.4 * speed),
            "int8": CodecCost(0.05 * speed, 1.5 * speed, 0.04 * speed, 0.9 * speed),
            "jpeg:90": CodecCost(0.2 * speed, 9.0 * speed, 0.1 * speed, 7.0 * speed),
        },
        **more,
    )


def costs_of(graph: Graph, edge: Profile, cloud: Profile, **more: Any) -> CostModel:
    return CostModel(graph, (Host("device", edge), Host("server", cloud)), **more)


def split_of(
    graph: Graph, *, watts: Watts | None = None, max_drop: float | None = None, keep_input_local: bool = False,
    **more: Any,
) -> SplitProblem:  # fmt: skip
    costs = costs_of(graph, profile_of(graph, 1, 4.0, watts=watts), profile_of(graph, 2, 0.4), **more)
    return SplitProblem(
        costs,
        may_use=lambda tensor, codec: costs.calibrated.allows(tensor, codec, max_drop),
        keep_input_local=keep_input_local,
    )


def chosen_of(split: SplitProblem, link: Link, objective: str = "latency") -> dict[str, str]:
    """The codec of every tensor that may cross, by name."""
    places = split.codecs(link, objective).tolist()
    return {t.name: split.costs.codecs[c] for t, c in zip(split.costs.steps.tensors, places, strict=True)}


# --- one request, part by part --------------------------------------------------------------------------------------


def coded(profile: Profile, codec: str, side: str, nbytes: int) -> float:
    """Milliseconds of coding one tensor."""
    if codec == "raw":
        return 0.0
    cost = msgspec.structs.asdict(profile.codecs[codec])
    return float(cost[f"{side}_fixed_ms"] + cost[f"{side}_ms_per_mb"] * nbytes / 1e6)


def travelling(split: SplitProblem, spec: TensorSpec, codec: str) -> int:
    """Bytes of a tensor in a request, its header's entry included."""
    nbytes = open_codec(codec).nbytes(spec)
    wire = "" if codec == "raw" else codec
    return nbytes + entry_nbytes(spec.dtype, [int(d) for d in spec.shape], nbytes, wire)


def cheapest(split: SplitProblem, spec: TensorSpec, codecs: Iterable[str], link: Link) -> tuple[float, str]:
    """The least a tensor costs to send, encoding and decoding included, and its codec."""
    return min(
        (
            coded(split.costs.hosts[0].profile, c, "encode", spec.nbytes)
            + link.up_ms(travelling(split, spec, c))
            + coded(split.costs.hosts[1].profile, c, "decode", spec.nbytes),
            c,
        )
        for c in codecs
        if open_codec(c).accepts(spec)
    )


def request(split: SplitProblem, cut: Cut, link: Link, codecs: Iterable[str]) -> tuple[float, float, float]:
    """Device, link and server of one request at `cut`, added up without arrays."""
    graph, edge, cloud = split.costs.graph, split.costs.hosts[0].profile.costs(), split.costs.hosts[1].profile.costs()
    left = [i for i in graph.placed if i not in cut.nodes]
    device = sum(edge.head[i] for i in cut.nodes) + (edge.head_fixed if len(cut.nodes) else 0.0)
    if not left:
        return float(device), 0.0, 0.0
    answer = ANSWER_NBYTES
    for out in graph.outputs:
        if out.name not in cut.results:
            spec = graph.tensors[out.name]
            answer += spec.nbytes + entry_nbytes(spec.dtype, [int(d) for d in spec.shape], spec.nbytes)
    network = link.rtt_ms + link.up_ms(REQUEST_NBYTES) + link.down_ms(answer)
    network += sum(cheapest(split, t, codecs, link)[0] for t in cut.crossing)
    # The server's own overhead is paid once, with the round trip.
    return float(device), float(network + cloud.tail_fixed), float(sum(cloud.tail[i] for i in left))


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


def placements(problem: Problem, seed: int, count: int) -> Iterable[Any]:
    """Random closed sets of steps."""
    rng = np.random.default_rng(seed)
    order = sorted(zip(problem.after.tolist(), problem.before.tolist(), strict=True))
    for _ in range(count):
        on_edge = rng.random(problem.steps) < rng.uniform(0.3, 1)
        for after, before in order:
            on_edge[after] &= on_edge[before]
        yield on_edge


@settings(max_examples=60, deadline=None)
@given(random_dags(), st.integers(0, 99))
def test_what_crosses_is_what_the_cut_says(net: Any, seed: int) -> None:
    """Random graphs with copied nodes, groups, sequences and shapes that cross in headers; random placements, not
    prefixes alone: the problem's tensors are the graph's own, and so is every number.
    """
    graph = load(net).graph
    split = split_of(graph, codecs=("raw", "fp16"))
    problem = split.problem(LINK)
    for on_edge in placements(problem, seed, 8):
        assert is_closed(problem, on_edge)
        cut = split.costs.steps.cut(on_edge)  # the graph itself refuses what is not closed
        assert split.costs.steps.on_edge(cut.nodes).tolist() == on_edge.tolist()
        found = stages(problem, on_edge)
        expected = request(split, cut, LINK, ("raw", "fp16"))
        assert (found.edge, found.link, found.cloud) == pytest.approx(expected, rel=1e-9)


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


# --- codecs ---------------------------------------------------------------------------------------------------------


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


def calibration_of(graph: Graph, rows: Iterable[CalibrationRow]) -> Calibration:
    return Calibration(
        model=graph.name, fingerprint="f" * 64, inputs=1000, classifier=True, output="logits", rows=tuple(rows)
    )


class Shown(Quality, frozen=True):
    """A quality whose bound is given: how it is made is the calibration's own affair."""

    @property
    def bound(self) -> float:
        return 1 - self.cosine


def shown(bound: float) -> Quality:
    return Shown(inputs=1000, agreement=1.0, cosine=1 - bound, error=0.0)


def test_codecs_within_a_budget_are_those_that_are_shown_to_be() -> None:
    """int8 is shown to keep within 1 % at one tensor, not at another, and never measured at the rest."""
    graph = graph_of("zoo:lenet5")
    good, bad = graph.prefixes()[7], graph.prefixes()[9]
    rows = [CalibrationRow(7, "int8", (1000,), 1000, shown(0.004)), CalibrationRow(9, "int8", (300,), 300, shown(0.02))]
    split = split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows), max_drop=0.01)
    slow = Link(0.001, 0.001, 1)
    chosen = chosen_of(split, slow)
    assert {t for t, c in chosen.items() if c == "int8"} == {good.crossing[0].name}
    assert chosen[bad.crossing[0].name] == "raw"
    free = chosen_of(split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows)), slow)
    assert free[bad.crossing[0].name] == "int8"


def test_without_a_calibration_a_budget_leaves_only_exact_codecs() -> None:
    split = split_of(graph_of("zoo:lenet5"), codecs=CODECS, max_drop=0.01)
    assert set(chosen_of(split, Link(0.001, 0.001, 1)).values()) == {"raw"}


def test_measured_bytes_count_instead_of_estimated_ones() -> None:
    graph = graph_of("zoo:lenet5")
    rows = [CalibrationRow(0, "jpeg:90", (321,), 400, shown(0.001))]
    split = split_of(graph, codecs=("jpeg:90",), calibration=calibration_of(graph, rows))
    assert chosen_of(split, Link(0.01, 1, 1))["image"] == "jpeg:90"
    sent = split.costs.coded(0, graph.tensors["image"], "jpeg:90")
    assert (sent.codec, sent.nbytes, sent.sized) == ("jpeg:90", 321, True)


def test_other_jpeg_qualities_take_the_times_of_the_nearest() -> None:
    graph = graph_of("zoo:lenet5")
    split = split_of(graph, codecs=("jpeg:75",))
    t = [t.name for t in split.costs.steps.tensors].index("image")
    assert split.costs.codecs == ("raw", "jpeg:75")
    assert split.costs.tables[0].encode_ms[t, 1] == pytest.approx(
        coded(split.costs.hosts[0].profile, "jpeg:90", "encode", 1024)
    )


# --- constraints and objectives -------------------------------------------------------------------------------------


def test_the_input_stays_and_so_does_what_still_shows_it() -> None:
    """EfficientNet's image, transposed, cast and normalised; what its first convolution made may go."""
    graph = graph_of("zoo:efficientnet_lite0")
    assert input_like(graph) == {
        "image", "normalize.transpose", "normalize.cast", "normalize.sub", graph.prefixes()[4].crossing[0].name,
    }  # fmt: skip
    split = split_of(graph, keep_input_local=True)
    fast = Link(1e6, 1e6, 0)
    problem = split.problem(fast)
    totals = [stages(problem, split.costs.steps.on_edge(c.nodes)).total for c in graph.prefixes()]
    assert [t == inf for t in totals] == [k < 5 for k in range(len(totals))]
    assert least(problem).value == min(totals)
    assert not least(split_of(graph).problem(fast)).on_edge.any()


def test_what_is_mixed_with_another_tensor_shows_only_if_that_does() -> None:
    net = proto(
        [
            onnx_node("Relu", ["x"], ["r"], name="relu"),
            onnx_node("MatMul", ["x", "w"], ["m"], name="mix"),
            onnx_node("Add", ["r", "x"], ["still"], name="both"),
            onnx_node("Concat", ["still", "m"], ["half"], name="half", axis=1),
        ],
        [value("x", [1, 4])],
        [value("half", [1, 8])],
        [weight("w", np.eye(4, dtype=np.float32) + 1)],
    )
    assert input_like(load(net).graph) == {"x", "r", "still"}


def test_energy_is_watts_times_milliseconds() -> None:
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
            back = ANSWER_NBYTES + spec.nbytes + entry_nbytes(spec.dtype, [1, 1000], spec.nbytes)
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
    answer = ANSWER_NBYTES + 4000 + entry_nbytes("float32", [1, 1000], 4000)
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
    """What a `Cutter` compares is the very same arrays."""
    split = split_of(graph_of("zoo:efficientnet_lite0"), codecs=CODECS)
    a, b = (split.problem(link) for link in LINKS[:2])
    assert all(getattr(a, k) is getattr(b, k) for k in ("before", "after", "maker", "first", "users"))


# --- what does not belong together ----------------------------------------------------------------------------------


def test_profiles_of_two_models_are_refused() -> None:
    graph = graph_of("zoo:lenet5")
    other = msgspec.structs.replace(profile_of(graph, 1, 1.0), fingerprint="e" * 64)
    with pytest.raises(InputError, match="both must be of one model"):
        check(graph, (Host("device", profile_of(graph, 1, 1.0)), Host("server", other)), None)


def test_a_profile_of_another_graph_is_refused() -> None:
    small = profile_of(graph_of("residual"), 1, 1.0)
    with pytest.raises(InputError, match=r"the device's profile has 8 nodes and .* has 16"):
        SplitProblem(costs_of(graph_of("zoo:lenet5"), small, small))


def test_a_codec_without_times_is_refused() -> None:
    graph = graph_of("zoo:lenet5")
    with pytest.raises(InputError, match="the device's profile has no times for the codec int4"):
        split_of(graph, codecs=("int4",))


def test_a_calibration_of_another_model_is_refused() -> None:
    graph = graph_of("zoo:lenet5")
    for row in (CalibrationRow(99, "int8", (1,), 1, shown(0.1)), CalibrationRow(3, "int8", (1, 2), 3, shown(0.1))):
        with pytest.raises(InputError, match="another model"):
            split_of(graph, calibration=calibration_of(graph, [row]))


def test_an_output_joined_from_two_tensors_by_a_copied_node() -> None:
    """It is made where the last of both is: the other is there, too, or travels. By hand: no ONNX operator is so."""
    x, a, b, y = (TensorSpec(name, "float32", (1, 1000)) for name in "xaby")
    graph = Graph(
        "joined",
        (
            Node("a", "Conv", "a", ("x",), ("a",)),
            Node("b", "Conv", "b", ("x",), ("b",)),
            Node("y", "Join", "y", ("a", "b"), ("y",), placed=False),
        ),
        (x,),
        (y,),
        {t.name: t for t in (x, a, b, y)},
    )
    split = split_of(graph)
    problem = split.problem(LINK)
    assert [s.name for s in split.costs.steps.tensors] == ["x", "a"]
    for nodes in ((), (0,), (0, 1)):
        on_edge = split.costs.steps.on_edge(nodes)
        assert is_closed(problem, on_edge)
        found = stages(problem, on_edge)
        expected = request(split, graph.cut_of(nodes), LINK, ("raw",))
        assert (found.edge, found.link, found.cloud) == pytest.approx(expected, rel=1e-9)
    assert not is_closed(problem, split.costs.steps.on_edge((1,)))
