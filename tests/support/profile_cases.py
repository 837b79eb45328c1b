"""A machine whose speed is known, and profiles made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

import nets
from nets import load
from splitpoint.errors import (
    EngineError,
)
from splitpoint.machine import Machine
from splitpoint.models.model import Model, Segment
from splitpoint.profile.files import profile_bytes
from splitpoint.profile.measure import ProfileRun
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.tensors import Array


class Machinery:
    """A clock and an engine on it: a segment takes `fixed` ms and what its nodes cost, fused pairs less."""

    name, device, threads = "fake", "cpu", 3

    def __init__(self, model: Model, *, compile_s: float = 0.05, scale: float = 1.0, fixed: float = 0.0) -> None:
        self.now = 100.0
        self.compile_s, self.fixed = compile_s, fixed
        self.costs = {n.name: scale * (1 + i % 5) for i, n in enumerate(model.graph.nodes)}
        self.slow: Callable[[float], float] = lambda now: 1.0
        self.open = self.most_open = self.compiled = 0
        self.refuses: Callable[[Segment], bool] = lambda segment: False

    def clock(self) -> float:
        return self.now

    def ms(self, segment: Segment) -> float:
        return self.fixed + sum(self.costs.get(n.name, 0.0) for n in segment.proto.graph.node)

    def compile(self, segment: Segment) -> Run:
        if self.refuses(segment):
            raise EngineError("no kernel for this")
        self.now += self.compile_s
        self.compiled += 1
        return Run(self, segment)


class Run:
    def __init__(self, machinery: Machinery, segment: Segment) -> None:
        self.machinery, self.segment = machinery, segment
        self.inputs, self.outputs = segment.inputs, segment.outputs
        self.nbytes = 1000
        machinery.open += 1
        machinery.most_open = max(machinery.most_open, machinery.open)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert {t.name for t in self.inputs} <= set(inputs)
        self.machinery.now += self.machinery.ms(self.segment) / 1e3 * self.machinery.slow(self.machinery.now)
        return {t.name: np.zeros(t.bind({"batch": 1}).shape, t.dtype) for t in self.outputs}

    def close(self) -> None:
        self.machinery.open -= 1


class Knowing(Machinery):
    """One that says what its kernels cost."""

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        names = list(self.costs)
        return [(n.name, self.costs[names[int(n.name.strip("@"))]]) for n in segment.proto.graph.node]


def survey(model: Model, machinery: Machinery, budget_s: float, **more: Any) -> ProfileRun:
    return ProfileRun(
        model,
        machinery,
        budget_s=budget_s,
        clock=machinery.clock,
        codecs=lambda *given: {},
        pause=lambda seconds: None,
        **more,
    )


def measured(model: Model, machinery: Machinery, budget_s: float = 1e3, **more: Any) -> Profile:
    work = survey(model, machinery, budget_s, **more)
    work.prepare()
    for _ in work.visits():
        pass
    return work.profile()


def example(model: Model, **changes: Any) -> Profile:
    graph = model.graph
    nodes = [0.5 if n.placed else 0.0 for n in graph.nodes]
    last = len(graph.order)

    def stat(ms: float) -> Stat:
        return Stat(ms, 0.9 * ms, 1.25 * ms, 9)

    return msgspec.structs.replace(
        Profile(
            fingerprint=model.fingerprint, graph=graph, engine="onnxruntime", device="cpu", threads=2,
            machine=Machine("Linux", "a chip", 2, 1 << 30, "", "3.11"), versions={"onnxruntime": "1"},
            created="2026-01-01T00:00:00Z", complete=False, whole=stat(last / 2),
            segments=(
                SegmentCost(0, None, stat(last / 2)),
                SegmentCost(4, stat(2.0), stat(last / 2 - 2)),
                SegmentCost(last, stat(last / 2), None),
            ),
            nodes=tuple(nodes), codecs={"int8": CodecCost(0.01, 1.5, 0.01, 0.7)}, watts=Watts(5.0, 2.0, 1.0),
        ),
        **changes,
    )  # fmt: skip


Wire = tuple[str, str, list[str], list[str], bool, int]


def wired(lenet: Model, nodes: Sequence[Wire], output: str) -> bytes:
    """A profile of a graph from x to `output`; a node is (name, operator, inputs, outputs, placed, group)."""

    def spec(name: str) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": [1]}

    fields = ("name", "op", "inputs", "outputs", "placed", "group")
    made = [dict(zip(fields, node, strict=True)) | {"layer": node[0]} for node in nodes]
    tensors = {t: spec(t) for n in made for t in ("x", *n["outputs"])}
    graph = {"name": "g", "nodes": made, "inputs": [spec("x")], "outputs": [spec(output)], "tensors": tensors}
    data = json.loads(profile_bytes(example(lenet)))
    return json.dumps(data | {"graph": graph, "nodes": [1.0] * len(made), "segments": []}).encode()


def row(length: int, group: int = -1) -> list[Wire]:
    return [(f"t{k}", "Relu", [f"t{k - 1}" if k else "x"], [f"t{k}"], True, group) for k in range(length)]


def quantised() -> Model:
    """Two convolutions in int8 as quantisers write them: every weight and activation through QuantizeLinear."""
    rng = np.random.default_rng(0)
    nodes = [nets.node("QuantizeLinear", ["x", "s", "z"], ["x.q"], name="x.q")]
    weights = [nets.weight("s", 0.05, np.float32), nets.weight("z", 0, np.int8)]
    came = "x.q"
    for k, (wide, read) in enumerate(((16, 3), (16, 16))):
        weights.append(nets.weight(f"w{k}", rng.integers(-90, 90, (wide, read, 3, 3)), np.int8))
        nodes += [
            nets.node("DequantizeLinear", [came, "s", "z"], [f"a{k}"], name=f"a{k}"),
            nets.node("DequantizeLinear", [f"w{k}", "s", "z"], [f"w{k}.f"], name=f"w{k}.f"),
            nets.node("Conv", [f"a{k}", f"w{k}.f"], [f"c{k}"], name=f"conv{k}", pads=[1, 1, 1, 1]),
            nets.node("QuantizeLinear", [f"c{k}", "s", "z"], [f"q{k}"], name=f"q{k}"),
        ]
        came = f"q{k}"
    nodes.append(nets.node("DequantizeLinear", [came, "s", "z"], ["y"], name="y"))
    return load(nets.proto(nodes, [nets.value("x", [1, 3, 12, 12])], [nets.value("y", [1, 16, 12, 12])], weights))
