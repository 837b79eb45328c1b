"""Hand-made profiles and calibrations that planning tests share: node times in proportion to their work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from typing import Any

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality
from splitpoint.codecs import open_priced
from splitpoint.graph import Graph
from splitpoint.link import Link
from splitpoint.machine import Machine
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.planning.solve.problem import Bools, Problem
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat

FOUR_G = Link(5.85, 20.0, 40.0, 8.0, "4g")

DEVICE = Machine("Linux", "Cortex-A72", 4, 4 << 30, "performance", "3.11.0")
SERVER = Machine("Linux", "Xeon", 16, 64 << 30, "", "3.11.0")

CODECS: Mapping[str, CodecCost] = {
    "fp16": CodecCost(0.01, 0.5, 0.01, 0.5),
    "int8": CodecCost(0.02, 2.0, 0.02, 1.5),
    "int4": CodecCost(0.02, 2.5, 0.02, 2.0),
    "jpeg:90": CodecCost(0.3, 8.0, 0.3, 6.0),
}


@cache
def model_of(name: str) -> Model:
    return load(name)


def profile(graph: Graph, whole_ms: float, fingerprint: str = "ab" * 32, **more: Any) -> Profile:
    """A profile of every prefix whose node times add up: p10 is 5 % below the median, p90 10 % above."""
    work = [n.flops + 1.0 if n.placed else 0.0 for n in graph.nodes]
    nodes = [whole_ms * w / sum(work) for w in work]
    done = list(accumulate((sum(nodes[i] for i in step) for step in graph.order), initial=0.0))
    params = list(accumulate((sum(graph.nodes[i].params for i in step) for step in graph.order), initial=0))
    last = len(done) - 1

    def stat(ms: float) -> Stat:
        return Stat(ms, ms * 0.95, ms * 1.1, 9)

    segments = tuple(
        SegmentCost(k, stat(ms) if k else None, stat(whole_ms - ms) if k < last else None, 4 * params[k] if k else 0)
        for k, ms in enumerate(done)
    )
    known: dict[str, Any] = {
        "engine": "onnxruntime", "device": "cpu", "threads": 1, "machine": DEVICE, "versions": {},
        "created": "2026-01-01T00:00:00Z", "complete": True, "codecs": dict(CODECS),
    }  # fmt: skip
    return Profile(
        fingerprint=fingerprint, graph=graph, whole=stat(whole_ms), segments=segments, nodes=tuple(nodes),
        **(known | more),
    )  # fmt: skip


def profiles(name: str, edge_ms: float, cloud_ms: float, **more: Any) -> tuple[Profile, Profile]:
    """A slow device and a fast server for a model of the zoo."""
    model = model_of(name)
    edge = profile(model.graph, edge_ms, model.fingerprint, **more)
    return edge, profile(model.graph, cloud_ms, model.fingerprint, machine=SERVER)


def calibration(
    model: Model, rows: Mapping[tuple[int, str], float], inputs: int = 1000, share: float = 0.5
) -> Calibration:
    """(prefix, codec) → agreement; what a codec makes of unknown size has `share` of its tensor's bytes."""
    made = []
    for (prefix, codec), agreement in rows.items():
        crossing = model.graph.prefixes()[prefix].crossing
        known = open_priced(codec)
        sizes = [known.nbytes(t) if known.sized else round(t.nbytes * share) for t in crossing]
        quality = Quality(inputs, agreement, 0.99, 0.01)
        made.append(CalibrationRow(prefix, codec, tuple(sizes), sum(sizes), quality))
    return Calibration(
        model=model.name, fingerprint=model.fingerprint, inputs=inputs, classifier=True, output="logits",
        rows=tuple(made),
    )  # fmt: skip


def is_closed(problem: Problem, on_edge: Bools) -> bool:
    """Whether every step on the device has all it needs there."""
    return not bool((on_edge[problem.after] & ~on_edge[problem.before]).any())
