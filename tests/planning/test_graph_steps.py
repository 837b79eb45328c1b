"""A graph as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import is_closed
from split_cases import (
    LINK,
    request,
    split_of,
)

from nets import load, random_dags
from splitpoint.graph import Graph, Node
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
