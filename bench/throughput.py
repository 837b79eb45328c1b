"""Heavy load: how near the placement of the least slowest stage is to the proven bound, and how long the search takes.

    python -m bench.throughput [MODEL …]

Costs come from a model's FLOPs, not from a machine: what is measured here is the search. The server is taken to
do 100 GFLOP/s, move 2 GB/s and start 200 nodes a ms; the device is slower by 2, 4 or 16 times, the uplink has
1 … 1000 Mbit/s. `block` is the widest block of the series decomposition, `split` counts the problems whose best
placement uses both machines; times are of this process alone, on whatever else the machine does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import numpy as np

import splitpoint as sp
from bench.common import header
from splitpoint.graph import Graph
from splitpoint.planning.solve.blocks import StepOrder
from splitpoint.planning.solve.problem import Problem, stages
from splitpoint.planning.solve.search import search

SLOWER = (2, 4, 16)
MBPS = (1, 3, 10, 30, 100, 300, 1000)
FLOPS_PER_MS = 100e6
BYTES_PER_MS = 2e6
DISPATCH_MS = 0.005
ROUND_TRIP_MS = 10.0


def main(names: list[str]) -> None:
    print(
        f"{'model':24} {'steps':>5} {'block':>5} {'problems':>8} {'split':>5} {'worst gap':>10} "
        f"{'ms median':>9} {'worst':>7}"
    )
    for name in names or ["zoo:efficientnet_lite0", "zoo:lenet5"]:
        report(name, sp.load(name).graph)


def report(name: str, graph: Graph) -> None:
    """One line: the worst gap and the time over all speeds and links."""
    gaps, times, split = [], [], 0
    for slower in SLOWER:
        for mbps in MBPS:
            problem = problem_of(graph, slower, mbps)
            start = perf_counter()
            solution = search(problem, "slowest")
            times.append((perf_counter() - start) * 1e3)
            gaps.append(solution.gap)
            split += bool(solution.on_edge.any() and not solution.on_edge.all())
            assert math.isclose(stages(problem, solution.on_edge).slowest, solution.value)
    widest = max(end - first for first, end in StepOrder(problem).blocks)
    print(
        f"{name.rsplit('/')[-1]:24} {problem.steps:5} {widest:5} {len(gaps):8} {split:5} {max(gaps):10.4%} "
        f"{median(times):9.2f} {max(times):7.1f}",
        flush=True,
    )


def problem_of(graph: Graph, slower: float, mbps: float) -> Problem:
    """Heavy load on a graph: costs from FLOPs and bytes, the device `slower` times the server's."""
    step_of = {i: k for k, step in enumerate(graph.order) for i in step}
    work = np.array([sum(cost_ms(graph, i) for i in step) for step in graph.order])
    pairs = sorted(set(precedences(graph, step_of)))
    maker, link, first, users = [], [], [0], []
    for name, consumers in graph.consumers.items():
        made = graph.producer.get(name)
        maker.append(-1 if made is None else step_of[made])
        link.append(graph.tensors[name].nbytes * 8 / (mbps * 1e3))
        users += sorted({step_of[i] for i in consumers})
        first.append(len(users))
    down = np.zeros(len(work))
    for out in graph.outputs:
        made = graph.producer.get(out.name)
        if made in step_of:
            down[step_of[made]] += graph.tensors[out.name].nbytes * 8 / (mbps * 1e3)
    before, after = np.array(pairs, np.int32).reshape(-1, 2).T
    return Problem(
        edge=work * slower,
        cloud=work,
        before=before,
        after=after,
        maker=np.array(maker, np.int32),
        link=np.array(link),
        first=np.array(first, np.int32),
        users=np.array(users, np.int32),
        down=down,
        edge_fixed=0.1,
        # A round trip keeps nothing busy: the next request travels meanwhile.
        cloud_fixed=0.0,
    )


def cost_ms(graph: Graph, index: int) -> float:
    node = graph.nodes[index]
    moved = sum(graph.tensors[t].nbytes for t in (*node.inputs, *node.outputs) if t in graph.tensors)
    return node.flops / FLOPS_PER_MS + moved / BYTES_PER_MS + DISPATCH_MS


def precedences(graph: Graph, step_of: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Pairs of steps, the first of which must be on the device if the second is."""
    for i in graph.placed:
        for needed in graph.makers(i):
            yield step_of[needed], step_of[i]


if __name__ == "__main__":
    print(header())
    main(sys.argv[1:])
