"""What `splitpoint run` is asked for: which model runs, and where it is cut: as told, by a plan, or by one made now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from splitpoint.cli.console import say
from splitpoint.cli.options.codecs import parse_codecs
from splitpoint.cli.options.model_options import Here
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import CutError, RefusedError, UsageError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.request import LOCAL, WAIT, check_fallback
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.stream.stream_load import cheaper, judge, window
from splitpoint.security import Security
from splitpoint.survey import placement, survey
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


@dataclass(frozen=True)
class Asked:
    """What the command line says of the model, and of where and how it runs; `name` and `plan` follow from it."""

    cloud: str | None
    security: Security
    deadline_ms: float | None
    fallback: str | None
    at: str | None
    plan_path: Path | None
    budget_s: float
    fresh: bool
    no_adapt: bool
    probe_every_s: float
    codecs: tuple[str, ...]
    model_hash: str | None
    follow_model: bool
    checksum: bool
    here: Here
    objective: str | None = None
    name: str | None = None
    plan: Plan | None = None

    @property
    def deadline_s(self) -> float:
        """0: an answer may take as long as it does."""
        return (self.deadline_ms or 0.0) / 1e3

    @property
    def auto(self) -> bool:
        """Whether it is to be planned now."""
        return self.at in (None, "auto", "cut:auto") and self.plan is None

    @property
    def has_options(self) -> bool:
        """Whether there will be a plan with more than one option."""
        return self.cloud is not None and (self.auto or self.plan is not None)

    # --- what runs ----------------------------------------------------------------------------------------------

    def local(self, engine: Engine) -> Local:
        """The whole model here."""
        if self.name is None:
            raise UsageError("say which MODEL to run here, or which server has it (--cloud HOST)")
        if self.checksum:
            raise UsageError("--checksum is for what crosses the link: add --cloud HOST")
        asked = self.model_hash or self.codecs or self.plan or self.fallback or self.follow_model
        if self.at not in (None, "auto", "cut:auto", "output", "cut:output") or asked:
            raise UsageError(
                "--at, --plan, --codec, --fallback, --model-hash and --follow-model are for a server: add --cloud HOST"
            )
        return Local(self.here.opening.load(self.name), engine)

    def edge(self, engine: Engine) -> Edge:
        """The server, reached; cut as it was asked for, or not at all yet."""
        cuts = self.auto or self.plan is not None
        edge = self._connect(
            self.here.opening.here(self.name) or self.name,
            at="cut:input" if cuts else self.at, codec="raw" if cuts else parse_codecs(self.codecs),
            engine=engine, cache=self.here.cache, on_event=say, security=self.security,
            models=ModelPolicy(self.model_hash, self.follow_model, self.here.opening.allow_domains),
            wire=WireSettings(checksum=self.checksum),
        )  # fmt: skip
        try:
            if self.at == "auto" and (named := edge.model.graph.meanings("auto")):
                forms = " or ".join(named)
                raise CutError(f"auto is also a name in {edge.model.name}: say --at {forms}, or cut:auto to plan")
            if self.deadline_s and edge.fallback == LOCAL and not edge.local_ready:
                say("fetching all of the model first: only what can be finished here keeps a deadline")
                edge.pull()
            edge.prepare(self.here.opening.on)
        except BaseException:
            edge.close()
            raise
        return edge

    def _connect(self, model: Model | str | None, **options: Any) -> Edge:
        """With the fallback that was asked for; else ``local``, or, if the whole model cannot be had, ``wait``."""
        assert self.cloud is not None
        fallback = LOCAL if self.fallback is None else check_fallback(self.fallback)
        try:
            edge = Edge(self.cloud, model, fallback=fallback, deadline_s=self.deadline_s, **options)
        except RefusedError as exc:
            if self.fallback is not None:
                raise
            say(f"{exc}: taking wait")
            edge = Edge(self.cloud, model, fallback=WAIT, **options)
        if edge.fallback == WAIT:  # who waits gets a late answer, too: from now on its deadline is only counted
            edge.deadline_s = 0.0
        return edge

    # --- where it is cut ----------------------------------------------------------------------------------------

    def place(self, edge: Edge, engine: Engine, arriving: float, *, degrade: bool, once: bool) -> Placed:
        """Cuts by the plan, or by one that is made now and goes on being made, unless it is said where.

        `arriving` is how many frames a second will come: 0, one after the other; inf, as many as are answered. With
        `degrade`, cheaper options are made ready.
        """
        if self.plan is not None:
            self.plan.require(edge.model.fingerprint, edge.model.name)
            return _follow(edge, self.plan, self.plan.options, streamed=arriving > 0, degrade=degrade)
        if not self.auto:
            return Placed()
        watching = None
        if not (self.no_adapt or once):
            # In a stream requests also wait for those before them: what is late there is learned.
            rate = {"latency": 0.0, "throughput": inf}.get(self.objective or "", arriving)
            watching = Watching(probe_every_s=self.probe_every_s, predict=arriving == 0, rate=rate)
        edge.when_reached(partial(self._plan_now, edge, engine, arriving, watching, degrade=False))
        if edge.reached:
            try:
                return self._plan_now(edge, engine, arriving, watching, degrade=degrade)
            except SAID as exc:
                if not edge.does_without:
                    raise
                edge.plan_later(exc)
                return Placed()
        edge.switch("output")
        say("all runs here until the server is there: then it is planned where to cut")
        return Placed()

    def _plan_now(
        self, edge: Edge, engine: Engine, rate: float, watching: Watching | None, *, degrade: bool
    ) -> Placed:  # fmt: skip
        """Plans for this device, server and link, says so on standard error, and cuts there.

        With `watching` the plan follows what changes, unless it is changed for overload (`degrade`).
        """
        if any("=" in codec for codec in self.codecs):
            raise UsageError("with --at auto the planner chooses what crosses: give --codec NAME, not TENSOR=NAME")
        try:
            known = survey(edge, engine, budget_s=self.budget_s, cache=self.here.cache, fresh=self.fresh, on_step=say)
        except RefusedError as exc:
            say(typed(f"no plan: {exc}. Cutting at {edge.middle.name}; --at CUT or --plan FILE says otherwise"))
            edge.switch(edge.middle)
            return Placed()
        planner = known.planner(edge.model.graph, constraints=Constraints(codecs=self.codecs))
        planner, plan, rows = _planned(planner, known.link, rate, self.objective)
        say(f"link {plan.link}")
        say(typed(f"{plan.advice} (splitpoint compare shows the whole table)"))
        placed = _follow(edge, plan, rows, streamed=rate > 0, degrade=degrade)
        if watching is not None and not placed.cheaper:
            edge.adapt(planner, known.link, watching)
        return placed


def _planned(
    planner: Planner, link: Link, rate: float, objective: str | None
) -> tuple[Planner, Plan, tuple[Option, ...]]:  # fmt: skip
    """(planner, plan, all its options): for the `objective`, or, without one, for least latency, or for most
    throughput where `rate` needs that. Says which, and why."""
    quick = planner.plan(link, sensitivity=False)
    if not rate and objective is None:
        say("planned for latency: one input after the other (--objective throughput: as many a second as can be)")
        return planner, quick, quick.options
    streaming = planner.relaxed(planner.constraints, "throughput")
    many = streaming.plan(link, sensitivity=False)
    if objective is None:
        load = judge(rate, quick.best, many.best)
        say(f"{load.why} (--objective says otherwise)")
        objective = load.objective
    else:
        say(f"planned for {objective}, as --objective says")
    rows = (*quick.options, *many.options)
    return (planner, quick, rows) if objective == "latency" else (streaming, many, rows)


def _follow(edge: Edge, plan: Plan, rows: Sequence[Option], *, streamed: bool, degrade: bool) -> Placed:
    """Cuts as `plan` says. With `degrade`, the cheaper ones of `rows` are compiled, so that changing to one costs
    nothing; it is said which they are."""
    placed = Placed(plan.best, cheaper(rows, plan.best) if degrade else (), streamed)
    placed.use(edge, 0)
    edge.forget()
    if degrade and not placed.cheaper:
        say("no option is cheaper than this one: on overload the oldest frame is dropped")
    elif degrade:
        try:
            for option in placed.cheaper:
                edge.warm(*placement(edge.model.graph, option))
        except SAID as exc:
            if not edge.does_without:
                raise
            say(f"{exc}: that cut is made ready when it is needed")
        say("on overload: " + ", then ".join(option.label for option in placed.cheaper))
    return placed
