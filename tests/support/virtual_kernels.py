"""An engine in virtual time that says what its kernels take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitpoint.models.model import Segment
from splitpoint.predict.calibrate.collect import collect
from splitpoint.predict.calibrate.collection import Collection, started
from splitpoint.tensors import Array, TensorSpec

#: What each node takes in virtual time, and what the whole takes more than its nodes.
NODE_MS, FIXED_MS, COMPILE_S = 0.2, 0.05, 0.5


@dataclass
class VirtualEngine:
    """Runs nothing: every node takes `NODE_MS`, or `slow` times as long for the segments (by number) that are named."""

    name: str = "onnxruntime"
    device: str = "cpu"
    threads: int = 1
    now_s: float = 0.0
    compiled: int = 0
    profiled: int = 0
    slow: Mapping[int, float] = field(default_factory=dict)

    def compile(self, segment: Segment) -> VirtualSession:
        self.now_s += COMPILE_S
        self.compiled += 1
        return VirtualSession(self, len(segment.proto.graph.node) * NODE_MS + FIXED_MS, segment.inputs)

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        factor = self.slow.get(self.profiled, 1.0)
        self.profiled += 1
        times = [(node.name, NODE_MS * factor) for node in segment.proto.graph.node]
        self.now_s += COMPILE_S + (runs + warm) * sum(ms for _, ms in times) / 1e3
        return times

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class VirtualSession:
    engine: VirtualEngine
    ms: float
    inputs: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert all(t.name in inputs for t in self.inputs)
        self.engine.now_s += self.ms / 1e3
        return {}

    def close(self) -> None:
        pass


def collected(engine: VirtualEngine, budget_s: float, begun: Collection | None = None, **options: Any) -> Collection:
    found = begun or started(engine)  # type: ignore[arg-type]
    for latest in collect(found, engine, budget_s=budget_s, clock=engine.clock, pause=engine.pause, **options):  # type: ignore[arg-type]
        found = latest
    return found
