"""More and more edges that adapt, up to three times what saturates their server: does anything collapse?

    python -m bench.load overload                  # part of bench.load
    python -m bench.load overload --steps 1 8 24 48 --per-edge 4

Read this first. **The devices are emulated**: each computes a segment a few times and from then on waits as long as a
device `--slower` times slower would take, and answers the same; so some dozens of them share a core. They are real
`Edge`s that adapt, one thread each and those of the adapting itself, over loopback; every one wants `--per-edge`
answers a second, as from a camera: what it cannot ask for in time is left out. The server is a real process with a
core of its own. Profiles of both sides are measured first. Edges come, step by step, and stay.

The target: at no step fewer answers a second than 90 % of the most at any step before, wherever they were computed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np

from bench.common import SERVE, helper
from bench.load import cpu_of
from splitpoint.engines import Engine, Session, open_engine
from splitpoint.errors import BusyError, SplitpointError
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.request import Fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.segments import samples_for
from splitpoint.tensors import Array

SOURCE = "zoo:efficientnet_lite0"
STEPS = (1, 4, 8, 12, 16, 24, 32, 48)
KEPT = 0.9
_LOOPBACK = Link(2000, 2000, 0.3)
_PROFILE_S = 15.0
_RUNS = 5


class Recalled:
    """An engine that runs each segment `_RUNS` times, and from then on waits `factor` times the shortest of them and
    gives the same answer: right for who always asks the same. Any number of devices may share one."""

    name, device, threads = "onnxruntime", "cpu", 1

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine, self.factor = engine, factor
        self._lock = threading.Lock()
        self._known: dict[str, tuple[dict[str, Array], float]] = {}

    def compile(self, segment: Segment) -> Session:
        return _Recalling(self, segment)

    def recall(self, segment: Segment, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """The answer, and the seconds that computing it takes."""
        with self._lock:  # the first computes, the others wait for it
            found = self._known.get(segment.key)
            return found or self._known.setdefault(segment.key, self._computed(segment, inputs))

    def _computed(self, segment: Segment, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        session, spent = self._engine.compile(segment), []
        for _ in range(_RUNS):
            began = perf_counter()
            made = session.run(inputs)
            spent.append(perf_counter() - began)
        session.close()
        return made, min(spent)


class _Recalling:
    nbytes = 0

    def __init__(self, engine: Recalled, segment: Segment) -> None:
        self._engine, self._segment = engine, segment
        self.inputs, self.outputs = segment.inputs, segment.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        end = perf_counter()
        made, seconds = self._engine.recall(self._segment, inputs)
        sleep(max(0.0, end + seconds * self._engine.factor - perf_counter()))
        return made

    def close(self) -> None:
        """Nothing is held."""


class Answered(NamedTuple):
    """When a request was due and answered, where, and whether the server had been asked in vain."""

    due_s: float
    ended_s: float
    server: bool
    late: bool


class Device:
    """One edge that adapts and its camera, until `stop`."""

    def __init__(
        self, address: str, model: Model, planner: Planner, engine: Engine, period_s: float, seed: int, adapts: bool
    ) -> None:
        self.answers: list[Answered] = []
        self.failed: list[str] = []
        self._period_s, self._first_s = period_s, perf_counter() + period_s * (seed * 0.618 % 1)
        self._inputs = samples_for(model, 1)[0]
        fallback: Fallback = "local" if adapts else "error"
        self.edge = Edge(
            address, model, at="input", engine=engine, fallback=fallback, patience=Patience(answer_s=60, seed=seed)
        )
        if adapts:
            self.edge.adapt(planner, _LOOPBACK, Watching(seed=seed))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        due_s = self._first_s
        while not self._stop.wait(max(0.0, due_s - perf_counter())):
            try:
                result = self.edge.infer(self._inputs)
            except BusyError as exc:
                self._stop.wait(exc.retry_after_s)
            except SplitpointError as exc:
                self.failed.append(str(exc))
            else:
                remote = bool(result.up_nbytes) and not result.fallback
                self.answers.append(Answered(due_s, perf_counter(), remote, bool(result.fallback)))
            due_s += self._period_s * max(1, -(-(perf_counter() - due_s) // self._period_s))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.edge.close()


@dataclass(frozen=True)
class Step:
    """What `edges` had done in `seconds`: their answers, and the CPU time of the server."""

    edges: int
    seconds: float
    answers: Sequence[Answered]
    cpu_s: float
    failed: int
    switches: int

    @property
    def rate(self) -> float:
        """Answers a second, wherever computed."""
        return len(self.answers) / self.seconds

    def line(self, wanted: float) -> str:
        """A row of the table; `wanted` is what one edge asks for, answers a second."""
        took = [(a.ended_s - a.due_s) * 1e3 for a in self.answers] or [0.0]
        at_server = sum(a.server for a in self.answers)
        late = sum(a.late for a in self.answers)
        return (
            f"{self.edges:>5} {self.edges * wanted:>8.1f} {self.rate:>10.1f} {at_server / self.seconds:>10.1f} "
            f"{1 - at_server / max(1, len(self.answers)):>7.0%} {late:>5} {self.failed:>6} {self.switches:>8} "
            f"{np.percentile(took, 50):>7.0f} {np.percentile(took, 95):>7.0f} {self.cpu_s / self.seconds:>7.0%}"
        )


HEAD = "edges   wanted  answers/s  at server  at home  late failed switches  p50 ms  p95 ms  server"


def measure(steps: Sequence[int], per_edge: float, slower: float, seconds: float, *, adapts: bool = True) -> bool:
    """Whether the target was met. Prints a row a step."""
    model, engine = load(SOURCE), open_engine(threads=1)
    recalled = Recalled(engine, slower)
    with ExitStack() as stack:
        server = stack.enter_context(helper(SERVE, SOURCE))
        assert server.stdout
        address = server.stdout.readline().strip()
        planner = _planner(address, model, engine, slower)
        devices: list[Device] = []
        found: list[Step] = []
        print(HEAD)
        for count in steps:
            for k in range(len(devices), count):
                device = Device(address, model, planner, recalled, 1 / per_edge, k, adapts)
                stack.callback(device.close)
                devices.append(device)
            sleep(seconds)
            found.append(_step(devices, server.pid, seconds))
            print(found[-1].line(per_edge), flush=True)
    return _judged(found)


def _planner(address: str, model: Model, engine: Engine, slower: float) -> Planner:
    from splitpoint.profile.measure import profile_model

    here = profile_model(model, engine, budget_s=_PROFILE_S)
    with Edge(address, model, at="input", engine=engine, patience=Patience(answer_s=120)) as edge:
        there = edge.profile_server(_PROFILE_S)
    print(
        f"overload: {SOURCE} takes {there.whole.median:.1f} ms at the server, {here.whole.median * slower:.0f} ms on a "
        f"device (emulated by waiting, {slower:g}x this core)"
    )
    return Planner(model.graph, (here.slowed(slower), there), constraints=Constraints(codecs=("int8",)))


def _step(devices: Sequence[Device], pid: int, seconds: float) -> Step:
    began_s, cpu_s = perf_counter(), cpu_of(pid)
    failed, switches = _counts(devices)
    sleep(seconds)
    ended_s = perf_counter()
    answers = [a for d in devices for a in list(d.answers) if began_s <= a.ended_s < ended_s]
    now_failed, now_switches = _counts(devices)
    spent_s = cpu_of(pid) - cpu_s
    return Step(len(devices), ended_s - began_s, answers, spent_s, now_failed - failed, now_switches - switches)


def _counts(devices: Sequence[Device]) -> tuple[int, int]:
    """Failed requests and switches so far."""
    switches = sum(len(d.edge.adaptive.switches) for d in devices if d.edge.adaptive is not None)
    return sum(len(d.failed) for d in devices), switches


def _judged(found: Sequence[Step]) -> bool:
    peak = worst = 0.0
    least = 1.0
    for step in found:
        peak = max(peak, step.rate)
        if step.rate / peak < least:
            least, worst = step.rate / peak, step.edges
    where = f" (with {worst:g} edges)" if worst else ""
    print(f"  least share of the best step before it: {least:.3f}{where} (target ≥ {KEPT})", flush=True)
    return least >= KEPT
