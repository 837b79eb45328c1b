"""The engine's own kernel times → a time for every node of the graph.

An engine runs fewer and other kernels than the graph has nodes: Conv, Add and Relu in one, layout changes in between.
Nodes are given names that are found again in a kernel's; one that fused several nodes is shared among them by FLOPs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from splitpoint.graph import Graph
from splitpoint.models.model import Model, Segment
from splitpoint.profile.costs import Floats

#: What a processor of today does in a ms: only where there are no kernel times, and only for shares.
_FLOPS_A_MS, _BYTES_A_MS = 2e7, 1e7
_TOKEN = re.compile(r"@(\d+)@")
#: ONNX Runtime's channel-blocked kernels are called like the tensor they make, with this and perhaps a number behind.
_NCHWC = re.compile(r"_nchwc(_token_\d+)?(_\d+)?$")


def node_times(model: Model, kernels: Sequence[tuple[str, float]]) -> Floats:
    """Milliseconds of each node in ``model.graph.nodes`` (0 for copied ones), their sum that of `kernels`.

    `kernels` are those of the `marked` whole model. Without any, shares of 1 ms by FLOPs and bytes.
    """
    graph = model.graph
    total = sum(ms for _, ms in kernels)
    if not kernels or total <= 0:
        return estimated(graph)
    times: dict[int, float] = defaultdict(float)
    ends: set[int] = set()
    last, waiting = -1, 0.0
    for name, ms in kernels:
        index, is_end = _node_of(graph, name)
        if index < 0:  # a change of layout: belongs to what ran before it
            waiting, ms = (waiting, ms) if last >= 0 else (waiting + ms, 0.0)
            index = last
        else:
            last, ms, waiting = index, ms + waiting, 0.0
            if is_end:
                ends.add(index)
        if index >= 0:
            times[index] += ms
    if not times:
        return estimated(graph) * total
    return _shared(graph, times, ends)


def marked(model: Model) -> Segment:
    """The whole model with nodes called ``@3@``: by their place in ``model.graph.nodes``, which fused names keep."""
    import onnx

    segment = model.whole()
    proto = onnx.ModelProto()
    proto.CopyFrom(segment.proto)
    for node in proto.graph.node:
        output = next((o for o in node.output if o in model.graph.producer), None)
        if output is not None:
            node.name = f"@{model.graph.producer[output]}@"
    return replace(segment, proto=proto)


def typical_ms(graph: Graph) -> Floats:
    """What each node would take on a core like many: by its FLOPs, and by the bytes it reads and writes; 0 for copied
    nodes."""
    weights = np.zeros(len(graph.nodes))
    for i in graph.placed:
        node = graph.nodes[i]
        touched = (graph.tensors[t].nbytes for t in (*node.inputs, *node.outputs) if t in graph.tensors)
        moved = 4 * node.params + sum(touched)
        weights[i] = node.flops / _FLOPS_A_MS + moved / _BYTES_A_MS + 1e-6
    return weights


def estimated(graph: Graph) -> Floats:
    """The same as shares, 1 together."""
    weights = typical_ms(graph)
    total = weights.sum()
    return weights / total if total else weights


def is_estimated(graph: Graph, node_ms: Sequence[float]) -> bool:
    """Whether node times are `estimated` shares of some total, for want of the engine's own."""
    total = sum(node_ms)
    return total <= 0 or bool(np.allclose(np.array(node_ms) / total, estimated(graph), rtol=1e-3, atol=1e-9))


def _node_of(graph: Graph, kernel: str) -> tuple[int, bool]:
    """(index of a placed node the kernel stands for, whether that is the last of those it fused); −1 if none."""
    token = _TOKEN.search(kernel)
    if token is not None:
        index, is_end = int(token.group(1)), False
    else:
        index, is_end = graph.producer.get(_NCHWC.sub("", kernel), -1), True
    if not 0 <= index < len(graph.nodes) or not graph.nodes[index].placed:
        return -1, False
    return index, is_end


def _shared(graph: Graph, times: Mapping[int, float], ends: set[int]) -> Floats:
    """Times of kernels → of all nodes: those without a kernel were fused into a neighbour's."""
    owner = {i: i for i in times}
    for end in sorted(ends):  # named after the last of its nodes: the ones before it have none
        todo = list(_makers(graph, end))
        while todo:
            i = todo.pop()
            if i not in owner:
                owner[i] = end
                todo.extend(_makers(graph, i))
    for i in graph.placed:
        if i not in owner:
            before = next((owner[m] for m in _makers(graph, i) if m in owner), None)
            if before is not None:
                owner[i] = before
    members: dict[int, list[int]] = defaultdict(list)
    for i, kernel in owner.items():
        members[kernel].append(i)
    node_ms = np.zeros(len(graph.nodes))
    for kernel, inside in members.items():
        share = np.array([float(graph.nodes[i].flops) for i in inside])
        total = share.sum()
        node_ms[inside] = times[kernel] * (share / total if total > 0 else np.full(len(inside), 1 / len(inside)))
    return node_ms


def _makers(graph: Graph, node: int) -> tuple[int, ...]:
    """The placed nodes that make what `node` reads."""
    return tuple(graph.producer[t] for t in graph.sources(node) if t in graph.producer)
