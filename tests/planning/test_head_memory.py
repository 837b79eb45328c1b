"""What a head holds in the memory of the device."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from planning_cases import EFFICIENT, LENET, live_bytes
from plans import FOUR_G, model_of, profiles

from splitpoint.graph import Graph
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.head_memory import head_memory
from splitpoint.planning.planner import plan
from splitpoint.tensors import TensorSpec


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
