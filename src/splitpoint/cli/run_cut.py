"""What `splitpoint run` is asked for: which model runs, and where it is cut: as told, by a plan, or by one made now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.console import fetching, say
from splitpoint.cli.options.codecs import calibration_beside, calibration_for, parse_codecs
from splitpoint.cli.options.model_options import Here
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import CutError, RefusedError, UsageError
from splitpoint.models.model import Model
from splitpoint.planning.codec_at_cut import at_cut
from splitpoint.planning.constraints import Constraints, check_budget
from splitpoint.planning.plans import Option, Plan
from splitpoint.report.plan_table import seed_lines
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan, FindCalibration, ModelPolicy, Objective
from splitpoint.runtime.client.request import LOCAL, WAIT, check_fallback
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.codec_choice import FrameBudget
from splitpoint.runtime.events import Event
from splitpoint.runtime.stream.stream_load import cheaper, window
from splitpoint.security import Security
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
    profile_first: bool
    fresh: bool
    no_adapt: bool
    probe_every_s: float
    codecs: tuple[str, ...]
    agreement: float | None
    max_drop: float | None
    max_bytes: float | None
    model_hash: str | None
    follow_model: bool
    checksum: bool
    here: Here
    objective: Objective | None = None
    calib: Path | None = None
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

    @property
    def asked(self) -> Constraints:
        """What codecs must keep to, as it was said."""
        codecs = () if self.by_tensor else self.codecs
        return Constraints(
            agreement=self.agreement, max_drop=self.max_drop, max_bytes=self.max_bytes, codecs=codecs
        )  # fmt: skip

    @property
    def limits(self) -> Constraints:
        """The same: as nobody looks over what is chosen while it runs, it is held to the calibration's lower end."""
        return self.asked.bounded

    @property
    def by_tensor(self) -> bool:
        """Whether codecs are named for tensors."""
        return any("=" in codec for codec in self.codecs)

    # --- what runs ----------------------------------------------------------------------------------------------

    def local(self, engine: Engine) -> Local:
        """The whole model here."""
        if self.name is None:
            raise UsageError("say which MODEL to run here, or which server has it (--cloud HOST)")
        if self.checksum:
            raise UsageError("--checksum is for what crosses the link: add --cloud HOST")
        bounds = self.limits != Constraints() or self.calib is not None
        asked = self.model_hash or self.codecs or self.plan or self.fallback or self.follow_model or bounds
        if self.at not in (None, "auto", "cut:auto", "output", "cut:output") or asked:
            raise UsageError(
                "--at, --plan, --codec, --calibration, --agreement, --max-drop, --max-bytes, --fallback, --model-hash "
                "and --follow-model are for a server: add --cloud HOST"
            )
        return Local(self.here.opening.load(self.name), engine)

    def edge(self, engine: Engine) -> Edge:
        """The server, reached; cut as it was asked for, or not at all yet."""
        cuts = self.auto or self.plan is not None
        model = self.here.opening.here(self.name)

        def tell(event: Event) -> None:
            say(event)
            if event.kind == "planned" and event.fields.get("stands_on") == "profiled":
                say_plan(edge)

        edge = self._connect(
            model or self.name,
            at="cut:input" if cuts else self.at, codec="raw" if cuts else parse_codecs(self.codecs),
            engine=engine, cache=self.here.cache, on_event=tell, security=self.security,
            calibration=self._calibration(model) if self._lossy else None,
            models=ModelPolicy(self.model_hash, self.follow_model, self.here.opening.allow_domains),
            on_progress=fetching("fetching weights"),
            wire=WireSettings(checksum=self.checksum), budget=FrameBudget(self.max_bytes, self.limits.max_drop),
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

    def _calibration(self, model: Model | None) -> Calibration | FindCalibration | None:
        """That of `model`, or, where the server has it, what lies beside the one with its name here."""
        if model is not None or self.calib is not None:
            return calibration_for(self.name, self.calib, model)
        return lambda theirs: calibration_beside(self.name or theirs.name, theirs.fingerprint)

    @property
    def _lossy(self) -> bool:
        """Whether anything but raw may cross: only then is a calibration worth reading."""
        return bool(self.codecs or self.calib) or self.plan is not None or self.limits != Constraints()

    # --- where it is cut ----------------------------------------------------------------------------------------

    def place(self, edge: Edge, arriving: float, *, degrade: bool, once: bool) -> Placed:
        """Cuts by the plan, or has the edge plan by itself, unless it is said where.

        `arriving` is how many frames a second will come: 0, one after the other; inf, as many as are answered. With
        `degrade`, cheaper options are made ready: they are those of a plan, so both sides are profiled first, and the
        plan is changed for overload instead of following what changes, if there are any. For one photo (`once`) nothing
        is measured beside it, as nothing comes after it.
        """
        if self.plan is not None:
            self.plan.require(edge.model.fingerprint, edge.model.name)
            if not self.plan.best.exact and (why := self.limits.too_lossy(self.plan.best.quality)):
                raise UsageError(f"the plan's {self.plan.best.label} does not keep what is asked for: {why}")
            Placed(self.plan.best, streamed=arriving > 0).use(edge, 0)
            say(*map(typed, seed_lines(self.plan)))
            edge.forget()
            return _ready(edge, self.plan, self.plan.options, streamed=arriving > 0, degrade=degrade)
        if not self.auto:
            self._keep_to(self.limits, edge)
            return Placed()
        if self.limits.faithful:
            check_budget(self.asked, edge.calibration)
        if self.by_tensor:
            raise UsageError("with --at auto the planner chooses what crosses: give --codec NAME, not TENSOR=NAME")
        if self.objective is not None:
            say(f"planned for {self.objective}, as --objective says")
        elif arriving:
            say("planned for what keeps up with the frames (--objective says otherwise)")
        elif not once:
            say("planned for latency: one input after the other (--objective throughput: as many a second as can be)")
        degrade = degrade and edge.reached
        first = self.profile_first or degrade
        how = AutoPlan(
            0.0 if once and not first else self.budget_s, self.limits,
            # In a stream requests also wait for those before them: what is late there is learned.
            Watching(probe_every_s=self.probe_every_s, predict=not arriving, rate=arriving), self.objective, first,
            self.fresh, adapt=not (self.no_adapt or once or degrade),
        )  # fmt: skip
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
        placed = _ready(edge, chosen.plan, chosen.options, streamed=arriving > 0, degrade=degrade)
        if degrade and not (placed.cheaper or self.no_adapt):
            edge.adapt(chosen.planner, chosen.plan.link, how.watches)
        return placed

    def _keep_to(self, limits: Constraints, edge: Edge) -> None:
        """At the cut that was named: takes the codec that keeps to `limits`, or checks the one that was named."""
        if not (limits.faithful or limits.best_that_fits) or self.by_tensor:
            return
        calibration, cut = edge.calibration, edge.cut
        check_budget(self.asked, calibration)
        if calibration is None:  # raw, and what is too large is refused when it is there
            return
        codec, why = at_cut(calibration, edge.model.graph, cut, limits)
        if why:
            which = f"{codec} does not keep" if codec else "no codec keeps"
            raise UsageError(f"at {cut.name} {which} to what is asked for: {why}")
        if codec not in self.codecs:
            say(f"at {cut.name} as {codec}, by the calibration")
            edge.switch(cut, codec)


def say_plan(edge: Edge) -> None:
    """Bandwidth, best latency and best partition point, as `splitpoint plan` prints them."""
    if edge.planning is not None and edge.planning.chosen is not None:
        say(*map(typed, seed_lines(edge.planning.chosen.plan)))


def _ready(edge: Edge, plan: Plan, rows: Sequence[Option], *, streamed: bool, degrade: bool) -> Placed:
    """How `edge` is cut, as `plan` says. With `degrade`, the cheaper ones of `rows` are compiled, so that changing to
    one costs nothing; it is said which they are."""
    placed = Placed(plan.best, cheaper(rows, plan.best) if degrade else (), streamed)
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
