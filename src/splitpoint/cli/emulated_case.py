"""Part of the demo: a slower device behind another link, emulated, planned, and then run for real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec
from rich.console import Console

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.console import out, steps
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.graph import Graph
from splitpoint.lab.relay import Relay
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.link.presets import PRESETS
from splitpoint.measured_cuts import CompareRow, compare, verdict
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints, input_like
from splitpoint.planning.plans import KINDS, Option, Plan
from splitpoint.profile.profiles import Profile
from splitpoint.report.bars import bar_lines
from splitpoint.report.plan_table import range_lines
from splitpoint.runtime.client.edge import Edge
from splitpoint.survey import Survey, placement
from splitpoint.tensors import Array
from splitpoint.units import mbps, ms, size

#: The emulated device takes about so long for the whole network, ms: a small board. As a time and not as a factor, so
#: that the same answers are best on faster and slower machines than ours.
DEVICE_MS = 160.0
#: The least share of answers that pictures and codecs must keep alike.
AGREEMENT = 0.95
#: Requests of each option: as few as can tell medians apart.
_REQUESTS = 6
#: While both halves are made ready.
_READY = Link(1e6, 1e6, 0.0, 0.0, "unshaped")
#: Characters of a line.
_WIDTH = 100


@dataclass(frozen=True)
class Case:
    """A link in words, and as numbers."""

    words: str
    link: Link

    def __str__(self) -> str:
        rates = f"{mbps(self.link.up_mbps)} Mbit/s up, {mbps(self.link.down_mbps)} down"
        return f"{self.words} ({rates}, {self.link.rtt_ms:g} ms)"


#: One where a cut inside is the fastest answer, and one where it is not.
GAIN = Case("a DSL line", Link(2.0, 8.0, 20.0))
NO_GAIN = Case("Wi-Fi", PRESETS["wifi"])


def slowdown(here: Profile) -> int:
    """How many times slower than this machine the emulated device is: 1 or more."""
    return max(1, round(DEVICE_MS / here.whole.median))


def plan_for(known: Survey, model: Model, calibration: Calibration | None, link: Link) -> Plan:
    """The plan for the emulated device behind `link`, with the same for all: `AGREEMENT` of the answers stay."""
    slow = Survey(known.edge.slowed(slowdown(known.edge)), known.cloud, known.link)
    constraints = Constraints(agreement=AGREEMENT if calibration is not None else None)
    planner = slow.planner(model.graph, constraints=constraints, calibration=calibration)
    return planner.plan(msgspec.structs.replace(link, software_ms=known.link.software_ms))


def ways(plan: Plan, graph: Graph) -> list[Option]:
    """The best of each kind that is allowed, those that do not split first: what a person would try. A split where
    nothing crosses but the input, rearranged, is left out if there is another one and it is not the best."""
    shown = input_like(graph)
    allowed = [plan.best, *(o for o in plan.options if not o.refused)]
    inside = [o for o in allowed if not all(t.name in shown for t in o.crossing)]
    options = [next((o for o in [*inside, *allowed] if o.kind == kind), None) for kind in KINDS if kind != "opponent"]
    return [plan.best if o is not None and o.kind == plan.best.kind else o for o in options if o is not None]


def narrow() -> Console:
    """Standard output, no wider than a page."""
    console = out()
    console.width = min(console.width, _WIDTH)
    return console


def show_case(
    case: Case, address: str, engine: Engine, known: Survey, model: Model, calibration: Calibration | None,
    inputs: Sequence[Mapping[str, Array]],
) -> Plan:  # fmt: skip
    """Prints what is planned for `case`, then runs it: the server at `address` behind a relay, and the heads of this
    machine's `engine` slowed. What is computed and sent is real. Returns the plan."""
    factor = slowdown(known.edge)
    plan = plan_for(known, model, calibration, case.link)
    console = narrow()
    title = (
        f"Emulated: a device {factor} times slower ({ms(known.edge.whole.median * factor)} ms for all of it), {case}"
    )
    console.print(f"\n{title}", style="bold")
    console.print(f"Planned: {typed(plan.advice)}")
    options = ways(plan, model.graph)
    with Relay(address, _READY) as relay:
        slow = Stretched(engine, 1.0)
        with Edge(relay.address, model, at="input", engine=slow, calibration=calibration) as edge:
            for option in options:
                edge.warm(*placement(model.graph, option))
            relay.set_link(case.link)
            slow.factor = float(factor)
            # The planned one first: `verdict` is about that.
            planned = [plan.best, *(o for o in options if o != plan.best)]
            with steps("measuring") as on_progress:
                rows = compare(edge, planned, inputs, repeat=_REQUESTS, on_progress=on_progress)
    shown = sorted(rows, key=lambda row: options.index(row.option))
    for line in bar_lines([(r.option, r.measured.ms, r.up_nbytes) for r in shown], plan.best, console.width):
        console.print(line, crop=False, overflow="ignore", no_wrap=True)
    console.print(f"Measured: {verdict(rows)}{_sent(rows)}.", style="bold")
    return plan


def _sent(rows: Sequence[CompareRow]) -> str:
    """How many bytes the planned cut sends beside the picture that keeps as many answers."""
    planned = rows[0]
    picture = next((r for r in rows if r.option.kind == "jpeg"), None)
    if planned.option.kind != "split" or picture is None:
        return ""
    return f"; it sends {size(planned.up_nbytes)}, the JPEG {size(picture.up_nbytes)}"


def band(plan: Plan) -> str:
    """At which rates of the uplink which kind of answer is planned, in a line."""
    words = {**KINDS, "split": "a split", "jpeg": "a JPEG to the server", "server": "the raw input to the server"}
    stretches = [list(of) for _, of in groupby(plan.sensitivity, key=lambda r: r.kind)]
    merged = [msgspec.structs.replace(of[0], up_mbps_to=of[-1].up_mbps_to) for of in stretches]
    told = [f"{rates} {words.get(r.kind, r.label)}" for r, (rates, _) in zip(merged, range_lines(merged), strict=True)]
    return "; ".join(told)
