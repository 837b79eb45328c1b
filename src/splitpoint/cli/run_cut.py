"""Where `splitpoint run` cuts: as it is told, as a plan says, or as it plans now; and what is cheaper."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from splitpoint.cli.console import say
from splitpoint.cli.verbs import typed
from splitpoint.errors import RefusedError
from splitpoint.planning.plans import Option, Plan
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan
from splitpoint.runtime.stream.stream_load import cheaper, window
from splitpoint.survey import placement
from splitpoint.wire import SAID


@dataclass(frozen=True)
class Placed:
    """How an edge is cut: the option in use, if a plan has one, and cheaper ones, the cheapest last."""

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


def plan_itself(edge: Edge, how: AutoPlan, *, degrade: bool) -> Placed:
    """Has the edge plan by itself, as `how` says. With `degrade` both sides are profiled first: the cheaper options are
    then those of a plan, and the plan is changed for overload instead of following what changes.
    """
    degrade = degrade and edge.reached
    if degrade:
        how = msgspec.structs.replace(how, profile_first=True, adapt=False)
    try:
        edge.plan_itself(how)
    except RefusedError as exc:
        say(typed(f"no plan: {exc}. Cutting at {edge.middle.name}; --at CUT or --plan FILE says otherwise"))
        edge.switch(edge.middle)
        return Placed()
    planning = edge.planning
    if planning is None or planning.chosen is None or planning.stands_on == "guess":
        return Placed()  # a stream's window is not for a guess to say
    chosen = planning.chosen
    placed = Placed(
        chosen.plan.best, cheaper(chosen.options, chosen.plan.best) if degrade else (),
        how.watching is not None and how.watching.rate > 0,
    )  # fmt: skip
    _ready(edge, placed, degrade)
    return placed


def _ready(edge: Edge, placed: Placed, degrade: bool) -> None:
    """Compiles the cheaper options, so that changing to one costs nothing; says which they are."""
    if not degrade:
        return
    if not placed.cheaper:
        say("no option is cheaper than this one: on overload the oldest frame is dropped")
        return
    try:
        for option in placed.cheaper:
            edge.warm(*placement(edge.model.graph, option))
    except SAID as exc:
        if not edge.does_without:
            raise
        say(f"{exc}: that cut is made ready when it is needed")
    say("on overload: " + ", then ".join(option.label for option in placed.cheaper))
