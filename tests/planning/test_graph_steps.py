"""A graph as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import EFFICIENT, LENET, live_bytes
from plans import FOUR_G, is_closed, model_of, profiles
from split_cases import (
    LINK,
    request,
    split_of,
)

from nets import load, random_dags
from splitpoint.graph import Graph, Node
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.graph_steps import head_memory
from splitpoint.planning.planner import plan
from splitpoint.planning.solve.problem import Problem, stages
from splitpoint.tensors import TensorSpec


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
