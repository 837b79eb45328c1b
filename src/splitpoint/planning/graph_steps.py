"""A graph as arrays: its steps, what must come before what, what may cross between steps, and what heads hold."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np

from splitpoint.graph import Cut, Graph
from splitpoint.planning.frame_bytes import frame_entry
from splitpoint.planning.hosts import RAW
from splitpoint.planning.solve.problem import Bools, Floats, Ints


class GraphSteps:
    """The steps of `graph` (``graph.order``) as the arrays of a `Problem`.

    `nodes` are the placed nodes step by step, and `owner` their steps; `step` is the same as a mapping. `tensors` may
    cross; `place` is a tensor's index by its name. `down` (float64[steps]) is bytes that come back if a step is on the
    server.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.step = step = {i: k for k, members in enumerate(graph.order) for i in members}
        self.nodes: Ints = np.array([i for members in graph.order for i in members], np.int32)
        self.owner: Ints = np.repeat(np.arange(len(graph.order), dtype=np.int32), [len(m) for m in graph.order])
        pairs = {(step[m], step[i]) for i in step for m in graph.makers(i)}
        users = {t: {step[i] for i in readers} for t, readers in graph.consumers.items()}
        self.down: Floats = np.zeros(len(graph.order))
        for out in graph.outputs:
            values, made_by = graph.answer(out.name)
            behind = sorted({step[i] for i in made_by})
            if not behind:
                continue  # a copy of an input: the device has it
            spec = graph.tensors[out.name]
            self.down[behind[-1]] += spec.nbytes + frame_entry(spec, RAW, spec.nbytes)
            # A copied node may join several tensors to one output. It is then made where the last of them is, and
            # the others must be on the device, too, or travel: they are there when the last one is.
            pairs.update((k, behind[-1]) for k in behind[:-1])
            for t in values:
                users.setdefault(t, set()).add(behind[-1])
        pairs = {(a, b) for a, b in pairs if a != b}
        self.before: Ints
        self.after: Ints
        self.before, self.after = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
        makers = {t: step[graph.producer[t]] if t in graph.producer else -1 for t in users}
        # A tensor whose users are all in its own step never crosses.
        names = [t for t, steps in users.items() if steps - {makers[t]}]
        wanted = [sorted(users[t] - {makers[t]}) for t in names]
        self.tensors = tuple(graph.tensors[t] for t in names)
        self.place = {t: k for k, t in enumerate(names)}
        self.maker: Ints = np.array([makers[t] for t in names], np.int32)
        self.first: Ints = np.cumsum([0, *(len(w) for w in wanted)]).astype(np.int32)
        self.users: Ints = np.array([k for w in wanted for k in w], np.int32)

    def sums(self, node_costs: Floats) -> Floats:
        """What each step costs (float64[steps]), by what each of the graph's nodes does."""
        return np.bincount(self.owner, node_costs[self.nodes], len(self.down)).astype(np.float64)

    def cut(self, on_edge: Bools) -> Cut:
        """The cut with these steps (bool[steps]) on the device; `prefix:…` or the layer's name where it has one."""
        return self.graph.cut_of(self.nodes[on_edge[self.owner]].tolist())

    def around(self, cut: Cut) -> int:
        """The place of the smallest topological prefix that holds the nodes of `cut`."""
        count = len(cut.nodes)
        place = int(self.owner[count - 1]) + 1 if count else 0
        if self.graph.prefixes()[place] is cut:  # all prefixes are asked for, and their nodes are many
            return place
        return 1 + max((self.step[i] for i in cut.nodes), default=-1)

    def on_edge(self, nodes: Iterable[int]) -> Bools:
        """bool[steps]: the steps that hold these nodes of the graph, such as ``cut.nodes``."""
        steps = np.zeros(len(self.down), bool)
        steps[[self.step[i] for i in nodes]] = True
        return steps


def head_memory(graph: Graph) -> Floats:
    """Bytes that the head of each prefix holds: its weights, and the most that its tensors take at any one time.

    Nodes run in the graph's order; a tensor is held from when it is made to its last use on the device, and, if it
    crosses or is part of the answer, to the end. A weight that several nodes read counts for each of them. The engine's
    own base, its copies of weights in another layout and its scratch memory are not in it. It grows with the prefix,
    and no set of nodes inside a prefix takes more than the prefix. What an engine is measured to take would not tell
    cuts apart: memory that one session freed is used by the next, so that a small head seems to take nothing.

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
    makers = (graph.producer.get(t) for t in node.inputs)
    stored = (graph.nodes[m].op for m in makers if m is not None and not graph.nodes[m].placed)
    if node.op.startswith("QLinear") or node.op.endswith("Integer") or "DequantizeLinear" in stored:
        return node.params
    halves = any(t in graph.tensors and graph.tensors[t].dtype == "float16" for t in node.outputs)
    return node.params * (2 if halves else 4)
