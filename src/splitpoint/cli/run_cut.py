"""Where `splitpoint run` cuts: as it is told, as a plan says, or as it plans now; and what is cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import RefusedError, UsageError
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.stream.stream_load import cheaper, judge, window
from splitpoint.survey import placement, survey


@dataclass(frozen=True)
class Placed:
    """How an edge is cut: the option in use, if one is known, and those that are cheaper, each more than the last."""

    option: Option | None = None
    cheaper: tuple[Option, ...] = ()
    streamed: bool = False

    def use(self, edge: Edge, level: int) -> Option:
        """Cuts as the option of `level` says: 0 is the planned one, the others are cheaper."""
        option = (self.option, *self.cheaper)[level]
        assert option is not None
        # In a stream requests also wait for those before them: what is late there is learned.
        predicted_ms = None if self.streamed else option.total.ms
        edge.switch(*placement(edge.model.graph, option), predicted_ms=predicted_ms)
        return option

    def window(self, otherwise: int) -> int:
        """How many requests should be under way in a stream."""
        return otherwise if self.option is None else max(map(window, (self.option, *self.cheaper)))


def follow(edge: Edge, plan: Plan, *, streamed: bool, degrade: bool) -> Placed:
    """Cuts as `plan` says; UsageError if it is for another model. With `degrade`, its cheaper rows are made ready."""
    plan.require(edge.model.fingerprint, edge.model.name)
    placed = Placed(plan.best, cheaper(plan.options, plan.best) if degrade else (), streamed)
    placed.use(edge, 0)
    _ready(edge, placed, degrade)
    return placed


def place(
    edge: Edge,
    engine: Engine,
    codecs: tuple[str, ...],
    budget_s: float,
    cache: Path | None,
    *,
    fresh: bool,
    rate: float,
    degrade: bool,
    watching: Watching | None = None,
) -> Placed:
    """Plans for this device, server and link, says so on standard error, and cuts there.

    `rate` is how many frames a second will arrive: 0, one after the other; inf, as many as are answered. With
    `watching` the plan follows what changes, unless it is changed for overload (`degrade`).
    """
    if any("=" in codec for codec in codecs):
        raise UsageError("with --at auto the planner chooses what crosses: give --codec NAME, not TENSOR=NAME")
    try:
        known = survey(edge, engine, budget_s=budget_s, cache=cache, fresh=fresh, on_step=_say)
    except RefusedError as exc:
        _say(f"no plan: {exc}. Cutting at {edge.middle.name}; --at CUT or --plan FILE says otherwise")
        edge.switch(edge.middle)
        return Placed()
    planner = known.planner(edge.model.graph, constraints=Constraints(codecs=codecs))
    planner, plan, rows = _planned(planner, known.link, rate)
    _say(f"link {plan.link}")
    _say(f"{plan.advice} (splitpoint compare shows the whole table)")
    placed = Placed(plan.best, cheaper(rows, plan.best) if degrade else (), rate > 0)
    placed.use(edge, 0)
    edge.forget()
    _ready(edge, placed, degrade)
    if watching is not None and not placed.cheaper:
        edge.adapt(planner, known.link, watching)
    return placed


def _planned(planner: Planner, link: Link, rate: float) -> tuple[Planner, Plan, tuple[Option, ...]]:
    """(who planned, the plan, all rows looked at): for least latency, or, if `rate` asks for it, most throughput."""
    quick = planner.plan(link, sensitivity=False)
    if not rate:
        return planner, quick, quick.options
    streaming = planner.relaxed(planner.constraints, "throughput")
    many = streaming.plan(link, sensitivity=False)
    load = judge(rate, quick.best, many.best)
    _say(load.why)
    rows = (*quick.options, *many.options)
    return (planner, quick, rows) if load.objective == "latency" else (streaming, many, rows)


def _ready(edge: Edge, placed: Placed, degrade: bool) -> None:
    """Compiles the cheaper options, so that changing to one costs nothing; says which they are."""
    if not degrade:
        return
    if not placed.cheaper:
        _say("no option is cheaper than this one: on overload the oldest frame is dropped")
        return
    for option in placed.cheaper:
        edge.warm(*placement(edge.model.graph, option))
    _say("on overload: " + ", then ".join(option.label for option in placed.cheaper))


def _say(text: str) -> None:
    click.echo(typed(text), err=True)
