"""The device of a scenario, in a process of its own: `splitpoint lab edge`, which `experiment.run` starts.

It says ``ready`` when both halves of every cut are compiled and ``measuring`` when it has warmed up, waits each time
for a line, and then says one line of JSON a request.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import msgspec
from msgspec import structs

from splitpoint.engines import Engine, open_engine
from splitpoint.errors import InputError, ServerError, UsageError
from splitpoint.graph import Cut
from splitpoint.inputs import find_inputs, read_inputs
from splitpoint.lab.scenario import Scenario
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.machine import EMULATED
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import load_plan
from splitpoint.planning.planner import Planner
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.request import Fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.result import Result
from splitpoint.segments import samples_for
from splitpoint.survey import placement, survey
from splitpoint.tensors import Array

Codecs = str | Mapping[str, str]
#: A photo needs ten seconds at 0.13 Mbit/s; a link that was cut is tried again for as long, and so often.
_PATIENCE, _RETRY_S = Patience(answer_s=300.0, connect_s=120.0), 0.2
#: A cut that the planner chooses, one that it goes on choosing, and how long each side profiles itself for that.
AUTO, ADAPT, _PROFILE_S = "auto", "adapt", 15.0
#: Inputs that are drawn where the scenario wants no photos.
_SYNTHETIC = 8


class ScenarioRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request: milliseconds by span of its trace, or why it failed. `at_s` counts from the first request. `ran` is
    where it was really cut, if `cut` does not say."""

    request: int
    cut: str
    input: str
    at_s: float
    error: str = ""
    total_ms: float = 0.0
    spans_ms: dict[str, float] = {}
    up_nbytes: int = 0
    down_nbytes: int = 0
    codecs: dict[str, str] = {}
    clock_error_ms: float = 0.0
    ran: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Changing:
    """A cut that is changed while it runs: `planner` says where to, `link` is believed at first."""

    name: ClassVar[str] = ADAPT
    planner: Planner
    link: Link


#: Where to cut, and how what crosses travels.
Placed = tuple[Cut | Changing, Codecs]


def work(scenario: Scenario, address: str, say: Callable[[str], None], wait: Callable[[], object]) -> None:
    """Runs the scenario's requests against the server at `address`. Errors are those of `Edge` and `load`."""
    model = load(scenario.located)
    cuts = cuts_of(scenario, model, address)
    inputs = inputs_of(scenario, model)
    engine: Engine = open_engine(scenario.device.engine, threads=scenario.device.threads)
    note = os.environ.get(EMULATED, "")
    if scenario.device.stretched:
        engine = stretched = Stretched(engine, scenario.device.slowdown)
        note = "; ".join(filter(None, (note, stretched.note)))
    device = _Device(address, model, engine, cuts, scenario.checksum)
    try:
        for k in range(len(cuts)):
            device.use(k)
        say("ready")
        wait()
        for k in range(scenario.warm_up):
            for c in range(len(cuts)):
                device.use(c).infer(inputs[k % len(inputs)][1])
        say("measuring")
        wait()
        began = time.perf_counter()
        for k in range(scenario.requests):
            name, one = inputs[k % len(inputs)]
            for c, (cut, _) in enumerate(cuts):  # in turns, so that whatever drifts meets all of them
                at_s = round(time.perf_counter() - began, 4)
                row = ScenarioRow(request=k, cut=cut.name, input=name, at_s=at_s, note=note)
                try:
                    row = _answered(row, device.use(c).infer(one))
                except ServerError as exc:
                    row = structs.replace(row, error=str(exc))
                    device.close()
                say(msgspec.json.encode(row).decode())
    finally:
        device.close()


def _answered(row: ScenarioRow, result: Result) -> ScenarioRow:
    return structs.replace(
        row,
        ran=result.cut if row.cut == ADAPT else "",
        total_ms=round(result.total_ms, 4),
        spans_ms={k: round(v, 4) for k, v in result.trace.stages().items()},
        up_nbytes=result.up_nbytes,
        down_nbytes=result.down_nbytes,
        codecs=dict(result.codecs),
        clock_error_ms=round(result.clock_error_ms or 0.0, 4),
    )


class _Device:
    """An edge that connects again after its link was cut."""

    def __init__(self, address: str, model: Model, engine: Engine, cuts: Sequence[Placed], checksum: bool) -> None:
        self._address, self._model, self._engine, self._cuts = address, model, engine, cuts
        self._checksum = checksum
        self._edges: dict[bool, Edge] = {}  # the one that is cut by hand, and the one that adapts

    def use(self, number: int) -> Edge:
        """The edge, cut at the cut of this number; for the one that changes, an edge of its own."""
        cut, codec = self._cuts[number]
        adapts = isinstance(cut, Changing)
        edge = self._edges.get(adapts)
        if isinstance(cut, Changing):
            if edge is None:
                edge = self._edges[adapts] = self._connect("cut:input", "raw", fallback="local")
                edge.adapt(cut.planner, cut.link)
        elif edge is None:
            edge = self._edges[adapts] = self._connect(cut, codec)
        else:
            edge.switch(cut, codec)
        return edge

    def _connect(self, cut: Cut | str, codec: Codecs, fallback: Fallback = "error") -> Edge:
        end = time.monotonic() + _PATIENCE.connect_s
        while True:
            try:
                return Edge(
                    self._address, self._model, at=cut, codec=codec, engine=self._engine, fallback=fallback,
                    patience=_PATIENCE, wire=WireSettings(checksum=self._checksum),
                )  # fmt: skip
            except ServerError:
                if time.monotonic() > end:
                    raise
                time.sleep(_RETRY_S)

    def close(self) -> None:
        while self._edges:
            self._edges.popitem()[1].close()


def cuts_of(scenario: Scenario, model: Model, address: str = "") -> list[Placed]:
    """Where to cut, and how what crosses travels; ``auto`` is what a plan for the server at `address` says, and
    ``adapt`` what it says from moment to moment.

    CutError for a name that the model does not have.
    """
    if scenario.plan:
        plan = load_plan(scenario.path(scenario.plan))
        plan.require(model.fingerprint, model.name, scenario.plan)
        nodes = model.graph.nodes
        if not all(0 <= k < len(nodes) for k in plan.best.on_edge):
            raise InputError(f"{scenario.plan}: best.on_edge names nodes that {model.name} does not have")
        cut = model.graph.cut_of(frozenset(plan.best.on_edge))
        return [(cut, {c.name: c.codec for c in plan.best.crossing})]
    placed: list[Placed] = []
    for name in scenario.at:
        if name not in (AUTO, ADAPT):
            placed.append((model.graph.cut(name), scenario.codec))
            continue
        planner, link = _planner(scenario, model, address)
        if name == ADAPT:
            placed.append((Changing(planner, link), "raw"))
        else:
            placed.append(placement(model.graph, planner.plan(link, sensitivity=False).best))
    return placed


def _planner(scenario: Scenario, model: Model, address: str) -> tuple[Planner, Link]:
    """Plans for the emulated device and the server, and the scenario's link as it is when it begins: it is not shaped
    while the cuts are made ready."""
    shaped = scenario.shaped()
    link = shaped if isinstance(shaped, Link) else shaped.at(0.0)
    engine = open_engine(scenario.device.engine, threads=scenario.device.threads)
    with Edge(address, model, at="cut:input", engine=engine, patience=_PATIENCE) as edge:
        known = survey(edge, engine, budget_s=_PROFILE_S, link=link)
    if scenario.device.stretched:
        known = dataclasses.replace(known, edge=known.edge.slowed(scenario.device.slowdown))
    codecs = () if scenario.codec == "raw" else (scenario.codec,)
    return known.planner(model.graph, constraints=Constraints(codecs=codecs)), link


def inputs_of(scenario: Scenario, model: Model) -> list[tuple[str, Mapping[str, Array]]]:
    """What the requests ask about, decoded already: (name, input). InputError for what does not fit the model."""
    if scenario.inputs == "synthetic":
        drawn = samples_for(model, min(_SYNTHETIC, scenario.requests), scenario.seed)
        return [(f"synthetic {k}", one) for k, one in enumerate(drawn)]
    if scenario.inputs == "photos":
        return [(p.name, read_inputs(model, p)) for p in photos()]
    named = (scenario.inputs,) if isinstance(scenario.inputs, str) else scenario.inputs
    paths = [scenario.path(p) for p in named]
    if not paths:
        raise UsageError('inputs is "photos", "synthetic", or files and folders: it is empty')
    return [(p.name, read_inputs(model, p)) for p in find_inputs(paths).files]
