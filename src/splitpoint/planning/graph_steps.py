"""A graph as arrays: its steps, what must come before what, and the tensors that may cross between steps. No costs."""

from __future__ import annotations

from collections.abc import Iterable

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

    def around(self, nodes: Iterable[int]) -> int:
        """The place of the smallest topological prefix that holds these nodes of the graph."""
        return 1 + max((self.step[i] for i in nodes), default=-1)

    def on_edge(self, nodes: Iterable[int]) -> Bools:
        """bool[steps]: the steps that hold these nodes of the graph, such as ``cut.nodes``."""
        steps = np.zeros(len(self.down), bool)
        steps[[self.step[i] for i in nodes]] = True
        return steps
