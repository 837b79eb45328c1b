"""Changes the cut of an edge when another one is better: watches its requests, decides ten times a second, and acts.

    requests ──(Watcher)──► Observer ──► Conditions ──► Adapter ──► Decision ──► Edge.switch
                               ▲                           └─► the next likely cuts ──► Edge.warm
                    a probe of an idle link,
                    an extra request (`Edge.shadow`)

Here is what needs an edge: `Adaptive.tick` does all that is due at one moment, and `start` calls it from a thread. What
takes long (compiling, probing) is done in a second thread, so that the first one hears of a late answer meanwhile.
Requests are served all the time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from math import isfinite
from queue import SimpleQueue
from random import Random
from time import perf_counter
from typing import Protocol

import msgspec

from splitpoint.errors import SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.conditions import Conditions, Observer, Ran
from splitpoint.runtime.adapt.link_belief import FrameTime
from splitpoint.runtime.adapt.prewarm import RETRY_S, LikelyCuts, Placing
from splitpoint.runtime.adapt.probe_schedule import ProbeSchedule
from splitpoint.runtime.adapt.switch_log import Gaps, Switch
from splitpoint.runtime.adapt.switch_policy import Adapter, Decision, Policy
from splitpoint.runtime.circuit_breaker import DOWN, UP
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.events import Event, OnEvent, ignore, teller
from splitpoint.runtime.probe.link_probe import Glimpse
from splitpoint.runtime.result import Request, Result, Watcher
from splitpoint.runtime.threads import persist
from splitpoint.survey import placement

#: How often a decision is made, at most; what is urgent (a late answer, a lost connection) does not wait for it.
TICK_S = 0.1
#: How long an answer to a probe is waited for.
_PROBE_WAIT_S = 2.0
#: The likely cuts are looked up again when the conditions or the cut are others, but not more often than this: it takes
#: as long as several decisions.
_LIKELY_S = 1.0
#: An extra request may cost the device this share of what a request takes now.
_COSTS_LITTLE = 0.1
#: A switch is reported without the gap around it if no answer has come after so long.
_GAP_S = 10.0
#: The job that compiles.
_WARM = "getting ready"
#: Notes of what happened that wait for the next tick: more than any edge answers in one.
_HEARD = 4096


class Adaptable(Protocol):
    """What is used of an `Edge`: tests bring one in virtual time."""

    @property
    def watchers(self) -> list[Watcher]: ...

    @property
    def cut(self) -> Cut: ...

    @property
    def link_state(self) -> str: ...

    def switch(self, at: Cut, codec: CodecChoice | None = None, *, predicted_ms: float | None = None) -> Cut: ...

    def warm(self, at: Cut, codec: CodecChoice | None = None) -> Cut: ...

    def forget(self, at: Cut) -> None: ...

    def holds(self, cut: Cut) -> bool: ...

    def shadow(self, inputs: Request, at: Cut, codec: CodecChoice | None = None) -> bool: ...

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse | None: ...


class Watching(msgspec.Struct, frozen=True):
    """How an edge adapts. UsageError for what makes no sense.

    `probe_every_s` 0 sends no probes, `explore_every` 0 no extra requests; `policy` and `seed` are the `Adapter`'s.
    Without a seed each edge draws its own, as edges that share a server should. With `predict` the edge is told what a
    request should take, so that it knows when one is late; without, it learns that from its answers, as it must where
    requests wait for one another. `rate` is how many frames a second a stream brings (0: it is none, inf: as many as
    are answered): see `Adapter`.
    """

    probe_every_s: float = 1.0
    explore_every: int = 20
    policy: Policy = Policy()
    seed: int | None = None
    predict: bool = True
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.probe_every_s) and self.probe_every_s >= 0):
            raise UsageError(f"an idle link is probed every so many seconds, or never (0): not {self.probe_every_s:g}")
        if not self.rate >= 0:
            raise UsageError(f"a stream brings so many frames a second, from 0, not {self.rate:g}")
        if self.explore_every < 0:
            raise UsageError(f"one request in so many goes over the wire too, or none (0): not {self.explore_every}")


class Adaptive:
    """Watches `edge` and switches its cut as `planner` says for the link, the load and the device as they are now.

    `link` is believed at first, and the edge is cut for it at once; or, if it is cut as `current` says already, when
    that is worth it and what it takes is here. `switches` are those made since. Times are seconds of `clock`, which
    must be the one that results are stamped with. `beside` is given the jobs that take long: a test without threads
    runs them at once.
    """

    def __init__(
        self, edge: Adaptable, planner: Planner, link: Link, watching: Watching | None = None,
        *, current: Option | None = None, on_event: OnEvent = ignore, clock: Callable[[], float] = perf_counter,
        beside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:  # fmt: skip
        watching, planner = watching or Watching(), planner.bounded()
        self._edge, self._planner = edge, planner
        self._tell, self._now = teller(on_event), clock
        first = current or planner.best(link) or planner.local(link)
        self._observer = Observer(link)
        self._here, self._there = (host.profile for host in planner.hosts)  # the profiles of device and server
        seed = watching.seed if watching.seed is not None else Random().getrandbits(32)
        self._adapter = Adapter(planner, current=first, policy=watching.policy, seed=seed, rate=watching.rate)
        self._schedule = ProbeSchedule(watching.probe_every_s, watching.explore_every)
        self._ready, self._gaps = LikelyCuts(), Gaps()
        self.switches: list[Switch] = []
        self._open: list[tuple[int, float]] = []  # switches whose gap is not known: (place in the list, when)
        self._heard: deque[Callable[[], None]] = deque(maxlen=_HEARD)
        self._wake, self._closed = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._put = beside or self._jobs.put
        self._working: set[str] = set()
        self._cuts: dict[str, Cut] = {}
        self._sample: Request | None = None
        self.believed = Conditions(link=link)
        """What is believed of link, device and server, as of the last decision."""
        self._looked_up = self.believed
        self._likely_s = float("-inf")
        self._barred: dict[Set[int], float] = {}  # cuts that could not be switched to, and until when not to try
        self._likely_at: Set[int] | None = None
        self._likely: list[Placing] = []
        self.began_s = clock()
        self._predict = watching.predict
        if current is None:
            predicted_ms = first.total.ms if self._predict else None
            edge.switch(*self._placing(first), predicted_ms=predicted_ms)  # whatever it takes to fetch

    @property
    def option(self) -> Option:
        """What the edge runs with, at the price when it was last looked at."""
        return self._adapter.current

    def fits(self, left_s: float) -> float:
        """How many bytes the device can send for an answer in `left_s`, as link and server are believed to be."""
        option, link = self._adapter.current, self.believed.link
        besides_ms = option.total.ms - option.stages["edge"].ms - link.up_ms(option.up_nbytes)
        return (left_s * 1e3 - besides_ms) / link.up_ms(1)

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to watch, in threads of its own."""
        self._edge.watchers.append(self)
        for name, step in (("adapting", self._run), ("beside", self._work)):
            work = (step, name, self._tell, self._closed.wait)
            thread = threading.Thread(target=persist, args=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)  # not before: it may be joined

    def close(self) -> None:
        """Stops watching; the cut stays what it is. Switches that wait for the gap around them are reported."""
        self._closed.set()
        with suppress(ReferenceError):  # an edge that was forgotten is gone already
            if self in self._edge.watchers:
                self._edge.watchers.remove(self)
        self._wake.set()
        self._jobs.put(lambda: None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)
        self._settle(float("inf"))

    def _run(self) -> bool:
        self._wake.wait(TICK_S)
        self._wake.clear()
        if self._closed.is_set():
            return False
        try:
            self.tick(self._now())
        except ReferenceError:  # the edge was forgotten
            return False
        except Exception as exc:  # whatever it is, this thread goes on
            if not self._closed.is_set():
                self._tell(Event("notice", f"adapting: {exc}"))
        return True

    def _work(self) -> bool:
        if not self._closed.is_set():
            self._jobs.get()()
        return not self._closed.is_set()

    # --- what the edge tells, from any thread: noted at once, looked at in the next tick ------------------------

    def answered(self, result: Result, remote_ms: float) -> None:
        self._heard.append(partial(self._learn, result, remote_ms, disturbed=self._compiling))

    def computed(self, cut: Cut, head_ms: float) -> None:
        if not self._compiling:
            head = Ran(head_ms, self._here.head(cut).median, self._here.whole.median)
            self._heard.append(partial(self._observer.computed, self._now(), head))

    def overdue(self, up_nbytes: int, age_ms: float) -> None:
        self._urgent(partial(self._observer.overdue, self._now(), up_nbytes, age_ms))

    def failed(self, why: str) -> None:
        now_s = self._now()
        self._urgent(partial(self._observer.failed, now_s))
        self._heard.append(partial(self._schedule.used, now_s))

    def state(self, state: str) -> None:
        self._urgent(partial(self._observer.reachable, self._now(), state == UP))

    def delivered(self, request: Request, result: Result) -> None:
        self._gaps.answered(result.marks.started, result.marks.ended)
        if not result.up_nbytes and not result.fallback:
            self._heard.append(partial(self._schedule.ran_alone, result.marks.ended))
            self._sample = request

    def _urgent(self, note: Callable[[], None]) -> None:
        self._heard.append(note)
        self._wake.set()

    @property
    def _compiling(self) -> bool:
        """Whether device and server compile for us: what runs meanwhile says nothing of how fast they are."""
        return _WARM in self._working

    def _learn(self, result: Result, remote_ms: float, *, disturbed: bool) -> None:
        """Tells the observer of an answer; of one that compiling has `disturbed`, only what it shows of the link."""
        if result.offset is None or not result.offset.pinged or not result.up_nbytes:
            return
        now_s, stages, t = result.marks.ended, result.trace.stages(), result.times
        if disturbed:
            stages, remote_ms, t = {**stages, "tail": 0.0, "queue": 0.0}, 0.0, t._replace(load_queue_s=0.0)
        up_ms, rtt_ms = stages["up"], 2e3 * result.offset.error_s
        self._schedule.used(now_s)
        self._schedule.saw(now_s, self.believed.link.up_ms(result.up_nbytes) + rtt_ms / 2, up_ms)
        if result.cut not in self._cuts:
            now = self._edge.cut
            self._cuts[result.cut] = now if now.name == result.cut else self._planner.graph.cut(result.cut)
        cut = self._cuts[result.cut]
        tail = Ran(stages["tail"], self._there.tail(cut).median, self._there.whole.median)
        self._observer.answered(
            now_s, FrameTime(result.up_nbytes, up_ms), FrameTime(result.down_nbytes, stages["down"]), tail,
            queue_ms=stages["queue"], load_queue_ms=t.load_queue_s * 1e3, utilisation=t.utilisation,
            rtt_ms=rtt_ms, remote_ms=remote_ms, decode_ms=stages["decode"],
        )  # fmt: skip

    # --- deciding -----------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Everything that is to be done at `now_s`: learn, decide, switch, get ready, look at the link, report."""
        while self._heard:
            self._heard.popleft()()
        self.believed = conditions = self._observer.conditions(now_s)
        before = self._adapter.current
        decision = self._adapter.decide(now_s, conditions)
        if decision.switch:
            self._switch(now_s, before, decision)
        self._prepare(now_s, conditions)
        self._look(now_s, conditions)
        self._settle(now_s)

    def _switch(self, now_s: float, old: Option, decision: Decision) -> None:
        """Switches as decided. A cut that cannot be switched to is reported, and not tried again for a while."""
        new = decision.option
        cut, codecs = self._placing(new)
        if self._barred.get(cut.nodes, now_s) > now_s or not self._edge.holds(cut):
            self._adapter.revert(now_s)
            return
        try:
            self._edge.switch(cut, codecs, predicted_ms=new.total.ms if self._predict else None)
        except SplitpointError as exc:
            self._adapter.revert(now_s)
            self._barred[cut.nodes] = now_s + RETRY_S
            self._tell(Event("notice", f"could not switch to {new.label}: {exc}"))
            return
        self._open.append((len(self.switches), self._now()))
        at_s = now_s - self.began_s
        self.switches.append(
            Switch(at_s, old.label, new.label, decision.why, decision.gain_ms, gain_rate=decision.gain_rate)
        )

    def _prepare(self, now_s: float, conditions: Conditions) -> None:
        """Has the likely next cuts compiled in the other thread, and frees those not likely for long."""
        moved = self._edge.cut.nodes != self._likely_at
        if moved or (now_s - self._likely_s >= _LIKELY_S and conditions.differs(self._looked_up)):
            self._looked_up, self._likely_at, self._likely_s = conditions, self._edge.cut.nodes, now_s
            likely = [self._adapter.current, *self._adapter.likely(conditions)]
            self._likely = [self._placing(option) for option in likely]
        self._ready.likely(now_s, [p for p in self._likely if self._ready.has(p[0]) or self._edge.holds(p[0])])
        if self._edge.link_state != DOWN and (wanted := self._ready.next(now_s)) is not None:
            self._do(_WARM, partial(self._warm, *wanted))
        for cut in self._ready.spare(now_s, self._edge.cut):
            self._do(f"forget {cut.name}", partial(self._edge.forget, cut))

    def _look(self, now_s: float, conditions: Conditions) -> None:
        state = self._edge.link_state
        if state == DOWN:
            return
        sample = self._sample
        if sample is not None and self._schedule.wants_request(now_s, hurry=state != UP):
            self._sample = None
            option = self._beside(conditions)
            if option is not None:
                self._schedule.sent_request(now_s)
                self._do("request beside", partial(self._shadow, sample, *self._placing(option)))
            return
        nbytes = self._schedule.probe_nbytes(now_s, conditions.link.up_mbps) if state == UP else 0
        if nbytes:
            self._schedule.sent_probe(now_s, nbytes)
            self._do("probe", partial(self._probe, nbytes))

    def _beside(self, conditions: Conditions) -> Option | None:
        """The option for an extra request: the best one, unless its head would keep the device busy for long; then all
        on the server, if that is allowed."""
        best = self._adapter.explore(conditions)
        if best is None or best.stages["edge"].ms <= _COSTS_LITTLE * self._adapter.current.total.ms:
            return best
        plain = self._planner.graph.prefixes()[0]
        option = self._planner.price(plain, ["raw"] * len(plain.crossing), conditions.link)
        return best if option.refused else option

    def _settle(self, now_s: float) -> None:
        """Reports the switches around which the answers are known now."""
        left = []
        for place, at_s in self._open:
            gap_ms = self._gaps.across(at_s)
            if gap_ms is None and now_s - at_s < _GAP_S:
                left.append((place, at_s))
                continue
            switch = msgspec.structs.replace(self.switches[place], gap_ms=gap_ms, usual_ms=self._gaps.usual(at_s))
            self.switches[place] = switch
            self._tell(Event("switched", str(switch)))
        self._open = left

    # --- what takes long, in the other thread -------------------------------------------------------------------

    def _do(self, name: str, job: Callable[[], None]) -> None:
        """Has `job` done in the other thread, unless one of that name is waiting or running."""
        if name in self._working:
            return
        self._working.add(name)

        def run() -> None:
            try:
                job()
            except ReferenceError:  # the edge was forgotten
                return
            except Exception as exc:  # an engine's, too: this thread goes on
                if not self._closed.is_set() and self._edge.link_state != DOWN:  # that has been told
                    self._tell(Event("notice", f"{name}: {exc}"))
            finally:
                self._working.discard(name)

        self._put(run)

    def _warm(self, cut: Cut, codecs: Mapping[str, str]) -> None:
        try:
            self._edge.warm(cut, codecs)
        except SplitpointError:
            self._ready.failed(self._now(), cut)
            raise
        self._ready.compiled(cut)
        self._wake.set()

    def _shadow(self, request: Request, cut: Cut, codecs: Mapping[str, str]) -> None:
        sent = False
        try:
            self._edge.warm(cut, codecs)
            sent = self._edge.shadow(request, cut, codecs)
        finally:
            if not sent:
                self._heard.append(partial(self._schedule.not_sent, self._now()))

    def _probe(self, nbytes: int) -> None:
        seen = self._edge.glimpse(nbytes, _PROBE_WAIT_S)
        self._urgent(partial(self._glimpsed, self._now(), nbytes, seen))

    def _glimpsed(self, now_s: float, nbytes: int, seen: Glimpse | None) -> None:
        """Tells the observer what a probe showed; one that was not answered in time shows that the link is slow."""
        if seen is None:
            self._observer.overdue(now_s, nbytes, _PROBE_WAIT_S * 1e3)
            return
        self._schedule.saw(now_s, self.believed.link.up_ms(seen.up_nbytes) + seen.rtt_ms / 2, seen.up_ms)
        self._observer.probed(now_s, seen)

    # --- names --------------------------------------------------------------------------------------------------

    def _placing(self, option: Option) -> Placing:
        cut, codecs = placement(self._planner.graph, option)
        self._cuts[cut.name] = cut
        return cut, codecs
