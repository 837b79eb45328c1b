"""What a row says besides its milliseconds: memory on the device, and how far to trust the number."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from plans import CODECS, FOUR_G, calibration, model_of, profile, profiles

import nets
from nets import load
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.cost_model import high
from splitpoint.planning.head_memory import head_memory
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.planner import Planner, plan
from splitpoint.planning.plans import Option
from splitpoint.planning.scoring import uniform
from splitpoint.profile.profiles import Profile, Stat
from splitpoint.tensors import TensorSpec

EFFICIENT, LENET = "zoo:efficientnet_lite0", "zoo:lenet5"

# --- memory ---------------------------------------------------------------------------------------------------------


def live_bytes(graph: Graph, cut: Cut) -> int:
    """The most that the tensors of a head take at once, node by node from the definition."""
    order = [i for step in graph.order for i in step if i in cut.nodes]
    kept = {t.name for t in cut.crossing} | {t for out in cut.results for t in graph.answer(out)[0]}
    most = 0
    for k, i in enumerate(order):
        made = {t for j in order[:k] for t in graph.nodes[j].outputs} | {t.name for t in graph.inputs}
        needed = {t for j in order[k:] for t in graph.sources(j)} | kept
        alive = (made & needed) | set(graph.nodes[i].outputs)
        most = max(most, sum(graph.tensors[t].nbytes for t in alive))
    return most


@pytest.mark.parametrize("name", [LENET, EFFICIENT])
def test_a_heads_memory_is_its_weights_and_the_tensors_alive_at_once(name: str) -> None:
    graph = model_of(name).graph
    found = head_memory(graph)
    for k in sorted({*range(0, len(found), 12), len(found) - 1}):
        cut = graph.prefixes()[k]
        weights = 4 * sum(graph.nodes[i].params for i in cut.nodes)
        assert found[k] == weights + live_bytes(graph, cut)
    assert found[0] == 0
    assert (np.diff(found) >= 0).all()


def test_half_precision_takes_half() -> None:
    graph = model_of(LENET).graph
    small = {n: TensorSpec(t.name, "float16", t.shape) for n, t in graph.tensors.items()}
    halved = Graph(graph.name, graph.nodes, graph.inputs, graph.outputs, small)
    assert 0.45 < head_memory(halved)[-1] / head_memory(graph)[-1] < 0.55


def test_what_engines_were_measured_to_take_decides_nothing() -> None:
    """A small head reuses what an earlier session freed: a limit that lets the whole through lets all heads through."""
    edge, cloud = profiles(LENET, 90.0, 4.0)
    rss = tuple(msgspec.structs.replace(s, head_nbytes=60 << 20 if s.tail is None else 4600) for s in edge.segments)
    limits = Constraints(max_edge_memory=1e6)
    found = plan(None, (msgspec.structs.replace(edge, segments=rss), cloud), FOUR_G, constraints=limits)
    assert found == plan(None, (edge, cloud), FOUR_G, constraints=limits)
    assert not any("holds" in o.refused for o in found.options)
    device = found.option("device")
    assert device is not None
    assert device.edge_memory == head_memory(edge.graph)[-1]


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
        cut = graph.cut_of(graph.closure([i]))
        weights = 4 * sum(graph.nodes[j].params for j in cut.nodes)
        assert weights + live_bytes(graph, cut) <= planner._scorer.memory_of(cut)


# --- bands ----------------------------------------------------------------------------------------------------------

EXACT, VARYING = Link(6.0, 20.0, 40.0), Link(6.0, 20.0, 40.0, 1e-6)


def priced(codec: str, link: Link = EXACT, rows: Any = None, prefix: int = 0) -> Option:
    """One placement between machines whose own times have no spread."""
    sure = [profile_without_spread(p) for p in profiles(EFFICIENT, 90.0, 4.0)]
    known = calibration(model_of(EFFICIENT), rows) if rows else None
    planner = Planner(None, (sure[0], sure[1]), constraints=Constraints(codecs=(codec,)), calibration=known)
    cut = planner.graph.prefixes()[prefix]
    return planner._scorer.option(cut, uniform(cut, codec), link)


def profile_without_spread(made: Profile) -> Profile:
    def sure(stat: Stat | None) -> Stat | None:
        return stat and Stat(stat.median, stat.median, stat.median, stat.count)

    segments = tuple(msgspec.structs.replace(s, head=sure(s.head), tail=sure(s.tail)) for s in made.segments)
    return msgspec.structs.replace(made, segments=segments)


def test_an_estimated_jpeg_is_not_known_to_a_hair() -> None:
    found = priced("jpeg:90")
    assert not found.sized
    sent = EXACT.up_ms(found.crossing[0].nbytes)
    assert found.stages["up"].error == pytest.approx(0.25 * sent, rel=1e-6)
    assert found.total.error > 0.2 * sent
    calibrated = priced("jpeg:90", rows={(0, "jpeg:90"): 1.0})
    assert calibrated.sized
    assert calibrated.stages["up"].error == 0


def test_times_of_codecs_have_a_width() -> None:
    found = priced("int8", prefix=6)
    assert len(found.crossing) == 1
    encode, nbytes = found.stages["encode"], model_of(EFFICIENT).graph.prefixes()[6].nbytes
    assert encode.ms == pytest.approx(0.02 + 2.0 * nbytes / 1e6)
    assert (encode.low, encode.high) == (pytest.approx(0.75 * encode.ms), pytest.approx(1.25 * encode.ms))
    assert found.stages["server"].error == pytest.approx(0.25 * (0.02 + 1.5 * nbytes / 1e6))
    assert priced("raw", prefix=6).total.error == 0


def test_the_rate_of_a_link_that_varies_has_a_width() -> None:
    found = priced("raw", VARYING)
    assert found.stages["up"].error == pytest.approx(0.05 * VARYING.up_ms(found.up_nbytes), rel=1e-3)
    assert found.stages["down"].error == pytest.approx(0.05 * VARYING.down_ms(found.down_nbytes), rel=1e-3)
    assert priced("raw", EXACT).total.error == 0


@pytest.mark.parametrize("link", [EXACT, VARYING, FOUR_G])
def test_a_deadline_means_the_same_to_the_search_and_to_the_table(link: Link) -> None:
    codecs = ("int8", "int8+zstd", "jpeg:90")
    more = {"int8+zstd": CODECS["int8"]}
    edge, cloud = (msgspec.structs.replace(p, codecs={**p.codecs, **more}) for p in profiles(EFFICIENT, 90.0, 4.0))
    planner = Planner(None, (edge, cloud), constraints=Constraints(codecs=codecs))
    work = planner.costs.grid
    latest = high(work, [link], work.value([link], weights_of("latency", planner.hosts)))
    cuts = planner.graph.prefixes()
    for p in range(0, len(cuts), 17):
        for c, codec in enumerate(planner.costs.codecs):
            option = planner._scorer.option(cuts[p], uniform(cuts[p], codec), link)
            assert option.total.high == pytest.approx(latest[p, c], rel=1e-9)
