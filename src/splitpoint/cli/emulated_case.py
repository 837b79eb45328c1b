"""Part of the demo: a slower edge behind another link, emulated, planned, and then run for real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

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
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import KINDS, Option, Plan
from splitpoint.profile.profiles import Profile
from splitpoint.report.bars import bar_lines
from splitpoint.report.plan_table import draw
from splitpoint.runtime.client.edge import Edge
from splitpoint.survey import Survey, placement
from splitpoint.tensors import Array
from splitpoint.units import mbps, ms, size

#: The emulated edge takes about so long for the whole network, ms: a small board. As a time and not as a factor, so
#: that the same answers are best on faster and slower machines than ours.
DEVICE_MS = 160.0
#: The least share of answers that pictures and codecs must keep alike.
AGREEMENT = 0.95
#: Requests of each option: as few as can tell medians apart.
_REQUESTS = 6
#: And those that this cannot tell apart, each photo six times.
_AGAIN = 24
#: While both halves are made ready.
_READY = Link(1e6, 1e6, 0.0, 0.0, "unshaped")
#: Characters of a line.
_WIDTH = 100


#: One where a cut inside is the fastest answer, and one where it is not.
GAIN = Link(2.0, 8.0, 20.0, name="DSL")
NO_GAIN = PRESETS["wifi"]


def slowdown(here: Profile) -> int:
    """How many times slower than this machine the emulated edge is: 1 or more."""
    return max(1, round(DEVICE_MS / here.whole.median))


def planner_for(known: Survey, model: Model, calibration: Calibration | None) -> Planner:
    """Plans for the emulated edge, with the same for all: `AGREEMENT` of the answers stay."""
    slow = Survey(known.edge.slowed(slowdown(known.edge)), known.cloud, known.link)
    constraints = Constraints(agreement=AGREEMENT if calibration is not None else None)
    return slow.planner(model.graph, constraints=constraints, calibration=calibration)


def inside(option: Option, graph: Graph) -> bool:
    """Whether it splits where something else crosses than the input, rearranged."""
    shown = input_like(graph)
    return option.kind == "split" and not all(t.name in shown for t in option.crossing)


def ways(plan: Plan, graph: Graph) -> list[Option]:
    """The best of each kind that is allowed, those that do not split first: what a person would try. Of the splits it
    is one inside, if there is one and no other is the plan."""
    allowed = sorted((o for o in plan.options if not o.refused), key=lambda o: (o != plan.best, not inside(o, graph)))
    least = {o.kind: o for o in reversed(allowed)}
    return [least[kind] for kind in KINDS if kind in least]


def narrow() -> Console:
    """Standard output, no wider than a page."""
    console = out()
    console.width = min(console.width, _WIDTH)
    return console


def show_case(
    link: Link, address: str, engine: Engine, known: Survey, model: Model, calibration: Calibration | None,
    inputs: Sequence[Mapping[str, Array]], png: Path | None = None,
) -> Plan:  # fmt: skip
    """Prints what is planned behind `link`, then runs it: the server at `address` behind a relay, and the heads of this
    machine's `engine` slowed. What is computed and sent is real. With `png`, draws what is planned by the uplink's
    rate, and what was measured. Returns the plan."""
    factor = slowdown(known.edge)
    planner = planner_for(known, model, calibration)
    plan = planner.plan(msgspec.structs.replace(link, software_ms=known.link.software_ms))
    console = narrow()
    rates = f"{mbps(link.up_mbps)} Mbit/s" + f" up, {mbps(link.down_mbps)} down" * (link.up_mbps != link.down_mbps)
    options = ways(plan, model.graph)
    alone = next((f" ({ms(o.total.ms)} ms for the network)" for o in options if o.kind == "device"), "")
    title = f"an edge {factor} times slower{alone}, {link.name} ({rates}, {link.rtt_ms:g} ms)"
    console.print(f"\nEmulated: {title}", style="bold")
    console.print(f"Planned: {typed(plan.advice)}")
    with Relay(address, _READY) as relay:
        slow = Stretched(engine, 1.0)
        with Edge(relay.address, model, at="input", engine=slow, calibration=calibration) as edge:
            for option in options:
                edge.warm(*placement(model.graph, option))
            relay.set_link(link)
            slow.factor = float(factor)
            # The planned one first: `verdict` is about that.
            planned = [plan.best, *(o for o in options if o != plan.best)]
            with steps("measuring") as on_progress:
                rows = compare(edge, planned, inputs, repeat=_REQUESTS, again=_AGAIN, on_progress=on_progress)
    shown = sorted(rows, key=lambda row: options.index(row.option))
    for line in bar_lines([(r.option, r.measured.ms, r.up_nbytes) for r in shown], plan.best, console.width):
        console.print(line, crop=False, overflow="ignore", no_wrap=True)
    console.print(f"Measured: {verdict(rows)}{_sent(rows)}.", style="bold")
    if png is not None:
        draw(plan, planner.curves(plan.link), png, [(r.option.kind, r.measured.ms) for r in shown])
    return plan


def _sent(rows: Sequence[CompareRow]) -> str:
    """How many bytes the planned cut sends beside the picture that keeps as many answers."""
    planned = rows[0]
    picture = next((r for r in rows if r.option.kind == "jpeg"), None)
    if planned.option.kind != "split" or picture is None:
        return ""
    return f"; it sends {size(planned.up_nbytes)}, the JPEG {size(picture.up_nbytes)}"


def band(plan: Plan) -> str:
    """What is planned from the slowest uplink to the fastest, and up to how many Mbit/s."""
    words = {"device": "all on the edge", "server": "the raw input", "jpeg": "a JPEG"}
    stretches = [list(of) for _, of in groupby(plan.sensitivity, key=lambda r: r.kind)]
    told = [
        f"{words.get(of[0].kind, 'a split')} up to {mbps(float(f'{of[-1].up_mbps_to:.2g}'))}" for of in stretches[:-1]
    ]
    last = words.get(stretches[-1][0].kind, "a split")
    return ", ".join([*told, f"{last} above" if told else f"{last} at any rate"])
