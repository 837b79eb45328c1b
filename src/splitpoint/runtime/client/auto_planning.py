"""How an edge plans by itself: a guess before the first request, profiles beside the next ones, and then the plan.

    begin ──► what is known without measuring: profiles that were kept here and there, FLOPs; a short look at the link
      │         └─► guess: the best cut that needs no weights that are not here (all on the server needs none)
      ▼
    first answer ──► both sides are profiled with what requests leave (`profile.spare`)
                        └─► the plan, and the edge goes over to it: between two requests, once its weights are here;
                            until then requests are cut by the guess, which is what `stand` says

While it guesses, the edge adapts as later (`runtime.adapt`): what requests take corrects how fast both sides are taken
to be. Where both profiles are known already, there is no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple, Protocol
from weakref import ReferenceType

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import Engine
from splitpoint.errors import RefusedError
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.planning.choice import least
from splitpoint.planning.constraints import Constraints, check_budget
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.profile.profiles import Profile
from splitpoint.profile.spare import Enough, Spare, aside, longest_s
from splitpoint.runtime.adapt.controller import Adaptive, Watching
from splitpoint.runtime.adapt.switch_policy import gains
from splitpoint.runtime.circuit_breaker import DOWN
from splitpoint.runtime.client.edge_settings import AutoPlan, Objective
from splitpoint.runtime.client.held_weights import SHARE
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.stream.stream_load import Load, judge
from splitpoint.runtime.threads import Jobs
from splitpoint.survey import Basis, Reached, Survey, by_flops, known_here, placement, profile_here, survey
from splitpoint.units import counted, size
from splitpoint.wire import SAID

#: How long the link is looked at before the first request, and the server's word of its speed is waited for.
_LOOK_S, _WORD_S = 0.3, 0.5
#: What a server that has no profile of itself yet is given for a first one: to compile the model and run it.
_SHORT_S = 0.05
#: So much longer than it may take to measure, until a server has begun.
_BEGINS_S = 300.0
#: How often it is looked whether a server that is away is back.
_AGAIN_S = 1.0

Stand = Literal["", "guess", "profiled"]
"""What a plan stands on: nothing yet (there is none), a guess, or profiles of both sides."""


class Plannable(Reached, Protocol):
    """What of an `Edge` is used here."""

    adaptive: Adaptive | None

    @property
    def cut(self) -> Cut: ...

    @property
    def codecs(self) -> Mapping[str, str]: ...

    @property
    def link_state(self) -> str: ...

    @property
    def begun(self) -> int: ...

    def holds(self, cut: Cut) -> bool: ...

    def fetch_first(self, cut: Cut) -> int: ...

    def switch(self, at: Cut, codec: CodecChoice | None = None, *, predicted_ms: float | None = None) -> Cut: ...

    def forget(self) -> None: ...

    def after_answer(self, job: Callable[[], object]) -> None: ...

    def adapt(
        self, planner: Planner, link: Link, watching: Watching | None = None, *, current: Option | None = None
    ) -> Adaptive: ...


class Chosen(NamedTuple):
    """A plan, who made it, all options that it was chosen from, and of a stream why it is for latency or throughput."""

    planner: Planner
    plan: Plan
    options: tuple[Option, ...]
    load: str = ""


class AutoPlanning:
    """Plans for the edge that `edge` refers to, and tells `tell` of it ("planned")."""

    def __init__(
        self, edge: ReferenceType[Plannable], how: AutoPlan, engine: Engine, cache: Path | None, tell: OnEvent,
        calibration: Callable[[], Calibration | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._calibration = calibration
        self._edge, self._how, self._engine, self._cache, self._tell = edge, how, engine, cache, tell
        self.stands_on: Stand = ""
        """What the plan of now stands on."""
        self.chosen: Chosen | None = None
        #: How the edge is cut by a guess that the plan is to take the place of: head, codecs.
        self._guessed: tuple[Set[int], Mapping[str, str]] | None = None
        self._sides: list[Basis] = []
        self._beside: Jobs | None = None
        self._began_s = perf_counter()

    def stand(self) -> Stand:
        """What the cut stands on that a request has which begins now. A plan that waits for weights is not in use."""
        if self._guessed is not None and (edge := self._edge()) is not None:
            if self._guessed == (edge.cut.nodes, edge.codecs):
                return "guess"
            self._guessed = None
        return self.stands_on

    def stop(self) -> None:
        """What is measured beside ends at its next step; what was measured by then is kept."""
        if self._beside is not None:
            self._beside.closed.set()

    def close(self) -> None:
        """Waits until it has ended."""
        if self._beside is not None:
            self._beside.close()

    # --- a guess ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Cuts the edge, by a guess or, where profiles are known or to be made first, by them. ServerError and kin."""
        edge, how = self._edge(), self._how
        if edge is None:
            return
        self.close()
        self.stands_on, self._guessed, self._began_s = "", None, perf_counter()
        if how.profile_first:
            known = survey(
                edge, self._engine, budget_s=how.budget_s / 2, cache=self._cache, fresh=how.fresh, on_step=self._step
            )
            self._cut(edge, known, sure=True)
            return
        half_s = how.budget_s / 2
        self._sides = [
            known_here(edge.model, self._engine, budget_s=half_s, cache=self._cache, on_step=self._step),
            self._word(edge),
        ]
        here, there = self._sides
        # What software adds is in what requests take: they tell of it soon enough.
        link = edge.measure_link(_LOOK_S, software=False)
        known = Survey(here.profile, there.profile, link, edge.shared)
        sure = here.sure and there.sure and not how.fresh
        self._cut(edge, known, sure=sure)
        if not sure and how.budget_s:
            self._beside = beside = Jobs(self._tell)
            edge.after_answer(partial(beside.add, partial(self._profile, beside, known)))

    def _word(self, edge: Plannable) -> Basis:
        """What the server says of its speed, if it does so soon: what it measured before, or one short look."""
        try:
            profile = edge.profile_server(_SHORT_S, within_s=_WORD_S)
        except RefusedError as exc:
            why = f"the server by the model's FLOPs, as it does not profile itself ({exc})"
        except SAID:  # late, busy, or nonsense: it is asked again beside requests, and then that is said
            why = "the server by the model's FLOPs"
        else:
            cuts = counted(profile.measured, "measured cut")
            return Basis(profile, f"the server by its profile ({cuts})", sure=profile.complete)
        return Basis(by_flops(edge.model, self._engine), why)

    # --- what is known ------------------------------------------------------------------------------------------

    def _profile(self, beside: Jobs, guessed: Survey) -> None:
        """In a thread of its own, beside requests: profiles what is not known, and goes over."""
        edge, how = self._edge(), self._how
        if edge is None:
            return
        half_s, model, requests = how.budget_s / 2, edge.model, partial(_begun, self._edge)
        del edge  # it may be forgotten meanwhile
        self._tell(Event("notice", f"profiling beside requests, at most {how.budget_s:g} s in all"))

        def measure(spare: Spare) -> Profile:
            spare.begin(half_s)
            return profile_here(
                model, self._engine, budget_s=half_s, cache=self._cache, fresh=how.fresh, on_step=lambda text: None,
                beside=spare,
            )  # fmt: skip

        with suppress(Enough):
            here = aside(measure, Spare(requests, beside.closed))  # what adapts and switches later is not to step back
            there = self._there(half_s, beside)
            if (edge := self._edge()) is None or beside.closed.is_set():
                return
            link = edge.adaptive.believed.link if edge.adaptive is not None else guessed.link
            known = Survey(here, there or guessed.cloud, link, edge.shared)
            self._cut(edge, known, sure=there is not None)

    def _there(self, half_s: float, beside: Jobs) -> Profile | None:
        """The server's profile of itself, asked for again while it is away; None if there is none to be had, which is
        said."""
        while (edge := self._edge()) is not None:
            try:
                return edge.profile_server(half_s, self._how.fresh, within_s=_BEGINS_S + longest_s(half_s))
            except SAID as exc:
                why = exc
            if beside.closed.is_set():  # which is why
                break
            if isinstance(why, RefusedError) or edge.link_state != DOWN:
                said = f"{why}; the plan stays a guess of the server, corrected by what requests take"
                self._tell(Event("notice", said, {"why": str(why)}))
                return None
            del edge
            if beside.closed.wait(_AGAIN_S):
                break
        return None

    # --- cutting ------------------------------------------------------------------------------------------------

    def _cut(self, edge: Plannable, known: Survey, *, sure: bool) -> None:
        """Plans with what is `known`, and cuts so: at once for the first plan, else when what it takes is here."""
        how, watching = self._how, self._how.watches
        over = self.stands_on == "guess"
        limits = (how.constraints or Constraints()).bounded
        # Without a word on what may be lost, nothing lossy is chosen by itself.
        calibration = self._calibration() if limits.faithful or limits.max_bytes or limits.codecs else None
        check_budget(how.constraints or limits, calibration)
        planner = known.planner(edge.model.graph, constraints=limits, calibration=calibration)
        if (said := planner.nothing_lossy) and not over:
            self._step(said)
        chosen = choose(planner, known.link, watching.rate, how.objective)
        planner, plan, link = chosen.planner, chosen.plan, known.link
        if over:
            option = planner.price(edge.cut, [edge.codecs.get(t.name, "raw") for t in edge.cut.crossing], link)
        else:
            option = plan.best if sure else at_once(edge, chosen)
        self.chosen = chosen
        stand: Stand = "profiled" if sure else "guess"
        if over and how.adapt and sure and gains(watching.policy, option, plan.best, planner.objective):
            self._guessed = edge.cut.nodes, edge.codecs
        self._say(edge, option, link, stand, over=over)
        if over and not how.adapt:
            option = plan.best
        late = sure and watching.predict  # what a guess expects makes no request late
        if not over or not how.adapt or late:
            edge.switch(*placement(edge.model.graph, option), predicted_ms=option.total.ms if late else None)
        if not over:
            edge.forget()
        if how.adapt:
            edge.adapt(planner, link, msgspec.structs.replace(watching, predict=late), current=option)
        self.stands_on = stand  # not before: a request that is begun meanwhile is cut as before

    def _say(self, edge: Plannable, option: Option, link: Link, stand: Stand, *, over: bool) -> None:
        """Tells of the plan, what it stands on, and with which `option` the edge goes on."""
        assert self.chosen is not None
        plan, after_s, sure = self.chosen.plan, perf_counter() - self._began_s, stand == "profiled"
        if sure and self.chosen.load:
            self._step(self.chosen.load)
        fields = {"stands_on": stand, "cut": plan.best.label, "now": option.label, "seconds": after_s}
        if sure and not over:
            self._step(f"link {link}")
            said = plan.advice
        elif not over:
            why = "; ".join(side.why for side in self._sides)
            said = f"a guess to begin with: {option.label} ({why}; link {link})"
        else:
            both = "both sides are" if sure else "this machine is"
            if _alike(option, plan.best):
                then = "as now"
            elif self._guessed is None and self._how.adapt:
                then = f"{option.label} stays, as a change gains too little"
            else:
                then = f"instead of {option.label}, when that is ready"
                nbytes = edge.fetch_first(placement(edge.model.graph, plan.best)[0])
                fields["missing_nbytes"] = nbytes
                if nbytes:
                    then = f"{then}: {self._fetching(nbytes, link)}"
            said = f"after {after_s:.1f} s {both} profiled (link {link}): {plan.advice.rstrip('.')}; {then}"
        self._tell(Event("planned", said, fields))

    def _fetching(self, nbytes: int, link: Link) -> str:
        seconds = nbytes * 8e-6 / link.down_mbps
        if not self._how.adapt:
            return f"fetching {size(nbytes)} of weights for it, about {seconds:.1f} s"
        return (
            f"fetching {size(nbytes)} of weights for it beside requests, about {seconds:.1f} s while none come, "
            f"{seconds / SHARE:.1f} s while they come without a pause"
        )

    def _step(self, text: str) -> None:
        self._tell(Event("notice", text))


def choose(planner: Planner, link: Link, rate: float, objective: Objective | None = None) -> Chosen:
    """The plan for the `objective`; without one for least latency, or, where `rate` frames a second (0: no stream) need
    it, for most throughput."""
    quick = planner.plan(link, sensitivity=False)
    if not rate and objective is None:
        return Chosen(planner, quick, quick.options)
    streaming = planner.relaxed(planner.constraints, "throughput")
    many = streaming.plan(link, sensitivity=False)
    options = (*quick.options, *many.options)
    load = Load(objective, "") if objective is not None else judge(rate, quick.best, many.best)
    light = load.objective == "latency"
    return Chosen(planner if light else streaming, quick if light else many, options, load.why)


def at_once(edge: Plannable, chosen: Chosen) -> Option:
    """The best option for which nothing is to be fetched first; the best of all if there is none."""
    graph, best = edge.model.graph, chosen.plan.best
    ready = [o for o in (best, *chosen.options) if edge.holds(placement(graph, o)[0])]
    return least(ready, chosen.planner.objective) or best


def _alike(one: Option, other: Option) -> bool:
    return (one.on_edge, one.codecs) == (other.on_edge, other.codecs)


def _begun(edge: ReferenceType[Plannable]) -> int:
    """How many requests were begun so far."""
    return alive.begun if (alive := edge()) is not None else 0
