"""How long the exact search takes: a real graph, a synthetic one, a new link, and every prefix priced one by one.

Costs are stand-ins (times by FLOPs, a device ten times slower than the server): how long the search takes depends on
the graph and on where the best cut lies, not on who measured. So links of every rate are planned for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnx

import splitpoint as sp
from bench.common import header
from splitpoint.graph import Graph
from splitpoint.machine import this_machine
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.hosts import Host
from splitpoint.planning.placement_search import SplitProblem
from splitpoint.planning.solve.min_cut import Cutter, least
from splitpoint.planning.solve.problem import Problem, stages
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat

#: Real graphs that need no download: 1,746 nodes with 668 placed (onnx ships it), and one of the zoo.
MODELS = (
    str(Path(onnx.__file__).parent / "backend/test/data/light/light_densenet121.onnx"),
    "zoo:efficientnet_lite0",
)
CODECS = ("raw", "fp16", "int8")
LINKS = tuple(sp.Link(float(m), float(m), 5.0) for m in np.geomspace(0.1, 1000, 25))
TARGETS = {"first plan": 10.0, "new link": 3.0, "2,000 steps": 20.0}


def main(rounds: int = 9) -> None:
    print(
        f"planning: medians over 25 links from 0.1 to 1000 Mbit/s, each the best of {rounds} rounds; ms, SciPy loaded"
    )
    least(synthetic(10, 0))  # SciPy is imported
    for name in MODELS:
        real(name, rounds)
    for n in (900, 2000, 5000):
        made(n, 10)


def made(n: int, rounds: int) -> None:
    """Times of synthetic problems of `n` steps, each planned for the first time."""
    problems = [synthetic(n, seed) for seed in range(rounds)]
    times = [timed(lambda p=p: least(p), 3) for p in problems]  # type: ignore[misc]
    pairs = [(Cutter(p), p) for p in problems]
    again = [timed(lambda c=c, p=p: c.least(p), 3) for c, p in pairs]  # type: ignore[misc]
    target = f" (target ≤ {TARGETS['2,000 steps']:g})" if n == 2000 else ""
    print(f"  synthetic, {n} steps with skips and random costs: first plan {median(times):.2f}, worst {max(times):.2f}"
          f"{target}; again {median(again):.2f}, worst {max(again):.2f}")  # fmt: skip


def real(name: str, rounds: int) -> None:
    """Times of one real graph."""
    graph = sp.load(name).graph
    edge, cloud = stand_in(graph, 1e-6), stand_in(graph, 1e-7)
    hosts = Host("device", edge), Host("server", cloud)
    made_ms = timed(lambda: SplitProblem(CostModel(graph, hosts, codecs=CODECS)), rounds)
    split = SplitProblem(CostModel(graph, hosts, codecs=CODECS))
    cutter = Cutter(split.problem(LINKS[0]))
    first = [timed(lambda x=x: least(split.problem(x)), rounds) for x in LINKS]  # type: ignore[misc]
    again = [timed(lambda x=x: cutter.least(split.problem(x)), rounds) for x in LINKS]  # type: ignore[misc]
    cuts = [split.costs.steps.on_edge(c.nodes) for c in graph.prefixes()]
    problem = split.problem(LINKS[12])
    prefixes = timed(lambda: min(stages(problem, c).total for c in cuts), rounds)
    solutions = [cutter.least(split.problem(x)) for x in LINKS]
    kinds = sorted({int(s.on_edge.sum()) for s in solutions})
    print(f"  {graph.name}: {len(graph.nodes)} nodes, {problem.steps} steps; best cuts after {kinds} of them")
    print(f"    made once for two profiles {made_ms:.1f}")
    print(f"    first plan {median(first):.2f}, worst {max(first):.2f} (target ≤ {TARGETS['first plan']:g})")
    print(f"    new link   {median(again):.2f}, worst {max(again):.2f} (target ≤ {TARGETS['new link']:g})")
    print(
        f"    all {len(cuts)} prefixes one by one {prefixes:.1f}; "
        f"proven gap at most {max(s.gap for s in solutions):.0e}"
    )


def timed(action: Callable[[], object], rounds: int) -> float:
    """Milliseconds: the best of some rounds, which other processes disturbed least."""
    taken = []
    for _ in range(rounds):
        start = perf_counter()
        action()
        taken.append((perf_counter() - start) * 1e3)
    return min(taken)


def stand_in(graph: Graph, ms_per_flop: float) -> Profile:
    """A profile whose times follow FLOPs: not measured."""
    nodes = tuple(0.001 + n.flops * ms_per_flop if n.placed else 0.0 for n in graph.nodes)
    whole = sum(t for t, n in zip(nodes, graph.nodes, strict=True) if n.placed)
    stat = Stat(whole, whole, whole)
    cost = CodecCost(0.01, 0.5, 0.01, 0.5)
    return Profile(
        fingerprint="0" * 64, graph=graph, engine="stand-in", device="cpu", threads=1, machine=this_machine(),
        versions={}, created="", complete=True, whole=stat, segments=(SegmentCost(len(graph.order), head=stat),),
        nodes=nodes, codecs=dict.fromkeys(CODECS, cost), note="times by FLOPs, not measured",
    )  # fmt: skip


def synthetic(n: int, seed: int) -> Problem:
    """A chain with a skip connection from every step, whose best cut lies inside."""
    rng = np.random.default_rng(seed)
    makers = np.arange(n - 1)
    skips = np.minimum(n - 1, makers + rng.integers(2, 20, n - 1))
    before, after = np.concatenate([[makers, makers + 1], [makers, skips]], axis=1).astype(np.int32)
    problem = Problem(
        edge=rng.lognormal(0, 1.5, n) * np.linspace(0.2, 5, n),
        cloud=rng.lognormal(0, 1.5, n) * np.linspace(5, 0.2, n),
        before=before,
        after=after,
        maker=np.arange(-1, n - 1, dtype=np.int32),
        link=rng.lognormal(1, 2, n),
        first=np.array([0, *range(1, 2 * n, 2)], np.int32),
        users=np.concatenate([[0], np.stack([makers + 1, skips], axis=1).ravel()]).astype(np.int32),
        down=np.zeros(n),
    )
    return dataclasses.replace(problem, cloud_fixed=5.0)


if __name__ == "__main__":
    print(header())
    main()
