"""Profiles whose node costs add up exactly, and one request added up part by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
import numpy as np

from nets import flattening, load, passing, residual
from splitpoint.codecs import open_codec
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.machine import Machine
from splitpoint.models import load as load_model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.frame_bytes import ANSWER_NBYTES, REQUEST_NBYTES, frame_entry
from splitpoint.planning.hosts import Host
from splitpoint.planning.placement_search import SplitProblem
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.tensors import TensorSpec

LINK = Link(5.85, 20.0, 40.0)


CODECS = ("raw", "fp16", "int8", "jpeg:90")


@cache
def graph_of(name: str) -> Graph:
    nets: Mapping[str, Any] = {"residual": residual, "flattening": flattening, "passing": passing}
    return load(nets[name]()).graph if name in nets else load_model(name).graph


def profile_of(graph: Graph, seed: int, speed: float, **more: Any) -> Profile:
    """A profile whose node costs add up exactly: every prefix "measured" as a sum of node times."""
    rng = np.random.default_rng(seed)
    nodes = [0.0 if not n.placed else float(rng.uniform(0.1, 2)) * speed for n in graph.nodes]
    made, done = [], 0.0
    for k, step in enumerate(((), *graph.order)):
        done += sum(nodes[i] for i in step)
        made.append((k, done))
    whole = made[-1][1]

    def stat(ms: float) -> Stat | None:
        return Stat(ms, ms * 0.9, ms * 1.2, 9) if ms > 1e-12 else None

    return Profile(
        fingerprint="f" * 64,
        graph=graph,
        engine="stand-in",
        device="cpu",
        threads=1,
        machine=Machine("Linux", "a processor", 2, 8 << 30, "", "3.11"),
        versions={},
        created="2026-01-01T00:00:00Z",
        complete=True,
        whole=Stat(whole, whole, whole, 9),
        segments=tuple(SegmentCost(k, stat(ms), stat(whole - ms)) for k, ms in made),
        nodes=tuple(nodes),
        codecs={
            "raw": CodecCost(0.01, 0.1, 0.01, 0.1),
            "fp16": CodecCost(0.02 * speed, 0.5 * speed, 0.03 * speed, 0.4 * speed),
            "int8": CodecCost(0.05 * speed, 1.5 * speed, 0.04 * speed, 0.9 * speed),
            "jpeg:90": CodecCost(0.2 * speed, 9.0 * speed, 0.1 * speed, 7.0 * speed),
        },
        **more,
    )


def costs_of(graph: Graph, edge: Profile, cloud: Profile, **more: Any) -> CostModel:
    return CostModel(graph, (Host("device", edge), Host("server", cloud)), **more)


def split_of(
    graph: Graph, *, watts: Watts | None = None, max_drop: float | None = None, keep_input_local: bool = False,
    **more: Any,
) -> SplitProblem:  # fmt: skip
    costs = costs_of(graph, profile_of(graph, 1, 4.0, watts=watts), profile_of(graph, 2, 0.4), **more)
    return SplitProblem(
        costs,
        Constraints(max_drop=max_drop, keep_input_local=keep_input_local),
    )


def chosen_of(split: SplitProblem, link: Link, objective: str = "latency") -> dict[str, str]:
    """The codec of every tensor that may cross, by name."""
    places = split.codecs(link, objective).tolist()
    return {t.name: split.costs.codecs[c] for t, c in zip(split.costs.steps.tensors, places, strict=True)}


def coded(profile: Profile, codec: str, side: str, nbytes: int) -> float:
    """Milliseconds of coding one tensor."""
    if codec == "raw":
        return 0.0
    cost = msgspec.structs.asdict(profile.codecs[codec])
    return float(cost[f"{side}_fixed_ms"] + cost[f"{side}_ms_per_mb"] * nbytes / 1e6)


def travelling(split: SplitProblem, spec: TensorSpec, codec: str) -> int:
    """Bytes of a tensor in a request, its header's entry included."""
    nbytes = open_codec(codec).nbytes(spec)
    return nbytes + frame_entry(spec, codec, nbytes)


def cheapest(split: SplitProblem, spec: TensorSpec, codecs: Iterable[str], link: Link) -> tuple[float, str]:
    """The least a tensor costs to send, encoding and decoding included, and its codec."""
    return min(
        (
            coded(split.costs.hosts[0].profile, c, "encode", spec.nbytes)
            + link.up_ms(travelling(split, spec, c))
            + coded(split.costs.hosts[1].profile, c, "decode", spec.nbytes),
            c,
        )
        for c in codecs
        if open_codec(c).accepts(spec)
    )


def request(split: SplitProblem, cut: Cut, link: Link, codecs: Iterable[str]) -> tuple[float, float, float]:
    """Device, link and server of one request at `cut`, added up without arrays."""
    graph, edge, cloud = split.costs.graph, split.costs.hosts[0].profile.costs(), split.costs.hosts[1].profile.costs()
    left = [i for i in graph.placed if i not in cut.nodes]
    device = sum(edge.head[i] for i in cut.nodes) + (edge.head_fixed if len(cut.nodes) else 0.0)
    if not left:
        return float(device), 0.0, 0.0
    answer = ANSWER_NBYTES
    for out in graph.outputs:
        if out.name not in cut.results:
            spec = graph.tensors[out.name]
            answer += spec.nbytes + frame_entry(spec, "raw", spec.nbytes)
    network = link.rtt_ms + link.up_ms(REQUEST_NBYTES) + link.down_ms(answer)
    network += sum(cheapest(split, t, codecs, link)[0] for t in cut.crossing)
    # The server's own overhead is paid once, with the round trip.
    return float(device), float(network + cloud.tail_fixed), float(sum(cloud.tail[i] for i in left))
