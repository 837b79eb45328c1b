"""What a head holds in the device's memory, estimated from the graph alone: the same for every machine and every run.

What an engine is measured to take does not tell cuts apart: memory that one session freed is used by the next, so a
small head seems to take nothing, and the process itself (some 60 MB with ONNX Runtime) is there whatever the cut.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from splitpoint.graph import Graph, Node
from splitpoint.planning.solve.problem import Floats


def head_memory(graph: Graph) -> Floats:
    """Bytes that the head of each prefix holds: its weights, and the most that its tensors take at any one time.

    Nodes run in the graph's order; a tensor is held from when it is made to its last use on the device, and, if it
    crosses or is part of the answer, to the end. A weight that several nodes read counts for each of them. The engine's
    own base, its copies of weights in another layout and its scratch memory are not in it. It grows with the prefix,
    and no set of nodes inside a prefix takes more than the prefix.

    >>> [round(n) for n in head_memory(load("zoo:lenet5").graph)[:5]]
    [0, 2048, 5120, 8196, 8200]
    """
    weights = accumulate((sum(_weights(graph, i) for i in step) for step in graph.order), initial=0)
    peaks = accumulate(_working(graph), max, initial=0)
    return np.array([w + p for w, p in zip(weights, peaks, strict=True)], np.float64)


def _working(graph: Graph) -> list[int]:
    """Bytes of the tensors that are there at once while each step runs, at its worst node.

    A tensor is needed until its last reader has run, wherever that runs: what the server reads is held to be sent.
    """
    sizes = {name: spec.nbytes for name, spec in graph.tensors.items()}
    left = {t: len(readers) for t, readers in graph.consumers.items()}
    for out in graph.outputs:  # read by whoever asked
        for t in graph.answer(out.name)[0]:
            left[t] = left.get(t, 0) + 1
    held = sum(sizes.get(t.name, 0) for t in graph.inputs if left.get(t.name))
    worst = []
    for step in graph.order:
        most = 0
        for i in step:
            outputs = graph.nodes[i].outputs
            held += sum(sizes.get(t, 0) for t in outputs)
            most = max(most, held)
            for t in graph.sources(i):
                left[t] -= 1
            held -= sum(sizes.get(t, 0) for t in {*outputs, *graph.sources(i)} if not left.get(t))
        worst.append(most)
    return worst


def _weights(graph: Graph, index: int) -> int:
    """Bytes of the weights that a node reads; the graph knows how many there are, and by its operator of what type."""
    node = graph.nodes[index]
    return node.params * _item_size(graph, node)


def _item_size(graph: Graph, node: Node) -> int:
    makers = (graph.producer.get(t) for t in node.inputs)
    stored = (graph.nodes[m].op for m in makers if m is not None and not graph.nodes[m].placed)
    if node.op.startswith("QLinear") or node.op.endswith("Integer") or "DequantizeLinear" in stored:
        return 1
    halves = any(t in graph.tensors and graph.tensors[t].dtype == "float16" for t in node.outputs)
    return 2 if halves else 4
