"""The device's side: runs heads here, sends what crosses, and knows where every millisecond went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import inf
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final, Literal, cast
from weakref import ReferenceType, proxy, ref

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import BusyError, RefusedError, ServerError, UsageError
from splitpoint.graph import Cut
from splitpoint.images import InputSpec
from splitpoint.lifetime import Closable
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Shared
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.profile.files import parse_profile
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.adapt.controller import Adaptive, Watching
from splitpoint.runtime.adapt.switch_log import Switch
from splitpoint.runtime.circuit_breaker import DOWN, LinkState
from splitpoint.runtime.client import Remote, RemoteProvider
from splitpoint.runtime.client.auto_planning import AutoPlanning
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.edge_requests import EdgeStats, Inference
from splitpoint.runtime.client.edge_settings import At, AutoPlan, FindCalibration, Inputs, ModelPolicy
from splitpoint.runtime.client.model_binding import Binding, Followed, Means
from splitpoint.runtime.client.ready_cuts import COMPILE_S, Cuts
from splitpoint.runtime.client.reconnect import Line
from splitpoint.runtime.client.request import ERROR, LOCAL, Fallback, Ticket, check_deadline, check_fallback
from splitpoint.runtime.client.timeouts import PATIENCE, Patience
from splitpoint.runtime.client.wire_remote import WireProvider, WireSettings
from splitpoint.runtime.codec_choice import UNBOUNDED, CodecChoice, FrameBudget
from splitpoint.runtime.events import Event, OnEvent, ignore, teller
from splitpoint.runtime.probe.link_probe import Glimpse, glimpse, measure_link
from splitpoint.runtime.probe.software import software_ms
from splitpoint.runtime.result import Request, Result, Watcher
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.runtime.threads import Jobs
from splitpoint.security import OPEN, Security
from splitpoint.segments import samples_for
from splitpoint.survey import placement
from splitpoint.transports import Connection
from splitpoint.wire import MOST_BODY, SAID, Kind, ModelInfo, Profiled, ProfileRequest

#: What becomes of an edge with the fallback ``error`` whose connection has ended.
_FOR_GOOD = "with the fallback error no connection is made again: begin anew, or choose the fallback wait or local"
#: How long a server that is busy measuring is asked again, beside some of our own budgets, and how often.
_BUSY_S, _BUSY_BUDGETS = 60.0, 6
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 30.0


class Edge(Closable):
    """A model cut in two: the head runs here, the tail at `server`.

    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address, at="pool1") as edge:
    ...         result = edge.infer(digit)
    >>> list(result.trace.stages())
    ['head', 'encode', 'up', 'decode', 'queue', 'tail', 'reply', 'down']

    `server` is an address, a connection, or whoever else computes tails (`runtime.client`). `model` is a `Model` that
    is here, and whose fingerprint the server must have; or a name or fingerprint (its first digits suffice) that it
    has, not needed if it has one model: the graph and the weights of the head are then fetched into `cache` once. A
    name of several versions needs a fingerprint, here or in `models`, which also says what is done about a newer one.
    `at` names a cut; at ``"input"`` all is computed on the server, at ``"output"`` all here. `codec` is how crossing
    tensors travel: one name (``"int8"``) for all that it takes, the others raw, or names by tensor. One that needs
    tables (``"klt:60"``) has those of `calibration`, or of what that gives for the model, if the server has them too,
    or fetches the server's; where there are none it is int8, which `on_event` is told. `budget` is how many bytes a
    request may send, and what it may lose where a coarser step keeps it to that, or to its deadline. A `Plan` says cut
    and codecs (`from_plan`); ``"auto"``, or an `AutoPlan` with its bounds, chooses the cut by a guess, then by profiles
    that it makes beside requests (`plan_itself`), and goes on choosing (`adapt`).

    `fallback` is what becomes of a request when the server is late, gone, busy or wrong: ``"error"`` raises that, and a
    connection that is lost stays lost; ``"wait"`` asks again, on a new connection if need be, until the deadline or for
    ever; ``"local"`` finishes it here from the tensors that are here. That takes the whole model's weights: a local
    `Model`, or they are fetched after the first answer, with what requests leave of the link; until then it is
    ``"wait"``.
    A server that is not there yet is waited for (``"wait"``), or, with ``"local"`` and a local `Model`, done without
    until it comes. So is one that refuses (the token, that model, anything), which is mostly a mistake of who began:
    `on_event` is told, or, where that is not given, it is warned of.
    `deadline_s` is when an answer should be there, counted from the call; 0 is none.

    `engine` is ONNX Runtime on the CPU if not given. `patience` says how long a server is waited for, and when an
    answer is late; `security`, whom to trust and what to show (TLS, tokens): an address ``tls://host`` is enough where
    this system knows the authority that signed the server's certificate. `wire` is for our own servers. `on_progress`
    is told how many bytes of weights have come, and of how many.

    Raises ServerError and its kin if the server is not there or refuses, CutError for an unknown cut, UsageError for
    a codec that makes no sense, StorageError for the cache, RefusedError for the fallback ``"local"`` if the server
    does not hand the model out. Any number of threads may call `infer`; a process that forks makes one after it (in the
    child, use of one that was made before is a UsageError).
    """

    def __init__(
        self,
        server: str | Connection | RemoteProvider,
        model: Model | str | None = None,
        *,
        at: At | None = None,
        codec: CodecChoice = "raw",
        plan: Plan | AutoPlan | Literal["auto"] | None = None,
        fallback: Fallback = ERROR,
        deadline_s: float = 0.0,
        engine: Engine | None = None,
        cache: Path | None = None,
        calibration: Calibration | FindCalibration | None = None,
        budget: FrameBudget = UNBOUNDED,
        models: ModelPolicy = ModelPolicy(),  # noqa: B008 (frozen)
        patience: Patience = PATIENCE,
        security: Security = OPEN,
        wire: WireSettings = WireSettings(),  # noqa: B008
        on_event: OnEvent = ignore,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.fallback: Final[Fallback] = check_fallback(fallback)
        """What becomes of a request that the server lets down."""
        self.deadline_s = check_deadline(deadline_s)
        auto = _check_plan(plan, at, codec)
        if not isinstance(server, (str, RemoteProvider)) and fallback != ERROR:
            raise UsageError(f"fallback {fallback} makes connections again: give an address, not a connection")
        if models.follow and fallback == ERROR:
            raise UsageError("a model is followed over a new connection: choose the fallback wait or local")
        untold = on_event is ignore
        self._tell = on_event = teller(on_event)  # and only that from here on
        self._jobs = Jobs(on_event)
        self.planning: AutoPlanning | None = None
        """Who plans, after `plan_itself`, and what that stands on."""
        self.adaptive: Adaptive | None = None
        """Who keeps the cut right, after `adapt`."""
        self._switched = 0  # times that those before it have switched
        self.watchers: list[Watcher] = []
        """Told of all that happens to requests; added to and removed from at any time."""
        provider = server if isinstance(server, RemoteProvider) else WireProvider(
            server, security, wire, patience.answer_s
        )  # fmt: skip
        engine_of = (lambda: engine) if engine is not None else lru_cache(open_engine)  # opened at its first use
        edge = ref(self)  # threads that go on behind must not keep alive an edge that is forgotten
        self._means = means = Means(
            provider, engine_of, self.fallback, patience, models, cache, self.watchers, on_event, on_progress,
            arrived=lambda: _told(edge, Edge._arrived),
            changed=lambda models: _told(edge, lambda e: e._followed.changed(models, e._leave, e._run_jobs)),
            calibration=calibration, budget=budget,
            fits=lambda left_s: inf if (e := edge()) is None or e.adaptive is None else e.adaptive.fits(left_s),
        )  # fmt: skip
        self._followed = followed = Followed(
            means, model, self._jobs, codec, deadline_s=self.deadline_s, untold=untold
        )  # fmt: skip
        self._inference = Inference(followed, lambda: _told(edge, Edge.check), self.watchers)
        self._met = self.reached
        self._opened(at_exit=True)
        try:
            if isinstance(plan, Plan):
                at, codec = placement(self.model.graph, plan.best)
            elif auto is not None:
                at = "cut:input" if self.reached else "cut:output"
            followed.switch(self.middle if at is None else at, codec)
            if fallback != ERROR:
                followed.binding.survive()
            if auto is not None:
                self.plan_itself(auto)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_plan(
        cls, plan: Plan, server: str | Connection | RemoteProvider, model: Model | None = None,
        *, fallback: Fallback = ERROR, deadline_s: float = 0.0, engine: Engine | None = None, cache: Path | None = None,
        patience: Patience = PATIENCE, security: Security = OPEN, on_event: OnEvent = ignore,
    ) -> Edge:  # fmt: skip
        """An edge that cuts as `plan` says. ModelError if the server does not have the model that it is for.

        >>> best = Planner(None, (edge, cloud)).plan(PRESETS["4g"])
        >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
        ...     with Edge.from_plan(best, server.address) as device:
        ...         print(device.cut.nodes == set(best.best.on_edge))
        True
        """
        return cls(
            server, model, plan=plan, models=ModelPolicy(pinned=plan.fingerprint), fallback=fallback,
            deadline_s=deadline_s, engine=engine, cache=cache, patience=patience, security=security, on_event=on_event,
        )  # fmt: skip

    def _end(self) -> None:
        """Ends the connection and frees what is compiled here; requests that are under way get an error."""
        self._jobs.closed.set()
        if self.planning is not None:
            self.planning.stop()
        if self.adaptive is not None:
            self.adaptive.close()
        self._followed.close(str(self._over))
        self._jobs.close()
        if self.planning is not None:
            self.planning.close()

    # --- a server that comes later, or with another model -------------------------------------------------------

    @property
    def reached(self) -> bool:
        """Whether the server has been there yet."""
        return self._line.connections > 0

    @property
    def begun(self) -> int:
        """How many requests were asked so far."""
        return self._inference.tally.counts(self._followed.under_way).asked

    def after_answer(self, job: Callable[[], object]) -> None:
        """Has `job` done when a request has ended, by whoever asked it: it must be quick."""
        self._binding.requests.then(job)

    def _arrived(self) -> None:
        """From the thread of the line: the server is there (again)."""
        if not self._met:
            self._met = True
            self._jobs.add(self._run_jobs)

    def _run_jobs(self) -> None:
        try:
            if self.planning is not None:
                self.planning.begin()
        except ServerError:
            if self.link_state == DOWN:  # it has gone again: another time
                self._met = False
            raise

    def _leave(self) -> None:
        """Another model is about to take the place of this one: who planned for this one stops."""
        if self.planning is not None:
            self.planning.stop()
            self.planning.close()
        self._stop_adapting()

    def _stop_adapting(self) -> None:
        adaptive, self.adaptive = self.adaptive, None
        if adaptive is not None:
            adaptive.close()
            self._switched += len(adaptive.switches)

    # --- the server and its model -------------------------------------------------------------------------------

    @property
    def _binding(self) -> Binding:
        return self._followed.binding

    @property
    def _line(self) -> Line:
        return self._binding.line

    @property
    def _cuts(self) -> Cuts:
        return self._binding.cuts

    @property
    def _remote(self) -> Remote:
        self.check()
        return self._line.remote

    @property
    def _channel(self) -> Channel:
        return self._remote.channel()

    @property
    def model(self) -> Model:
        """The model, as its inputs are made here."""
        return self._followed.model

    def prepare(self, how: Callable[[Model], Model]) -> None:
        """Has inputs made as `how` says (``lambda model: model.with_input_spec(spec)``), for one that follows too."""
        self._followed.prepare(how)

    @property
    def info(self) -> ModelInfo:
        """What the server says of the model."""
        return self._binding.info

    @property
    def served(self) -> tuple[ModelInfo, ...]:
        """The models that the server has; none while it has not been there yet."""
        return tuple(self._line.remote.offer.models)

    @property
    def cut(self) -> Cut:
        """Where the model is cut now."""
        return self._cuts.current.placement.cut

    @property
    def shared(self) -> Shared | None:
        """The deepest cut that can be used, where the server shares no more than a head of the model."""
        return self._cuts.shared

    @property
    def middle(self) -> Cut:
        """The cut to begin with where no plan says better."""
        middle, shared = self.model.graph.middle(), self.shared
        return middle if shared is None or not shared.refusal(middle, self.model.graph) else shared.cut

    @property
    def codecs(self) -> Mapping[str, str]:
        """How what crosses now travels, by tensor name; what travels raw is not in it."""
        return {name: codec.name for name, codec in self._cuts.current.encoding.codecs.items()}

    @property
    def calibration(self) -> Calibration | None:
        """This device's own calibration, without what was measured with other tables than the server has."""
        return self._cuts.tables.usable(self._line.remote)

    @property
    def input_spec(self) -> InputSpec | None:
        """How photos become the model's input."""
        return self.model.input_spec

    @property
    def cache(self) -> BlobCache:
        """Where weights are kept on this device."""
        return self._binding.holding.cache

    @property
    def link_state(self) -> LinkState:
        """Whether requests go to the server: ``up``, ``down``, or ``trying`` (one goes, to see whether it is well)."""
        return self._line.state

    @property
    def local_ready(self) -> bool:
        """Whether a request at the current cut can be finished here now."""
        return self._binding.local.ready(self._cuts.current.placement)

    @property
    def does_without(self) -> bool:
        """Whether every request can be answered without the server: the fallback is ``local``, and all weights here."""
        return self.fallback == LOCAL and self._binding.local.possible()

    @property
    def clock_error_ms(self) -> float:
        """How well the server's clock is known now; infinite while the server has not been there yet."""
        return self._line.remote.clock.error_s(perf_counter()) * 1e3

    @property
    def round_trip_ms(self) -> float:
        """The shortest of the recent pings."""
        return self._line.remote.clock.round_trip_s * 1e3

    def ping(self) -> float | None:
        """The seconds of a round trip to the server; None if none was made in time."""
        return self._remote.ping(self._means.patience.pong_s)

    def doubt(self) -> None:
        """Has the connection tried with a ping, and given up if nothing moves on it; not with the fallback ``error``,
        which makes no other."""
        self._line.doubt(0.0)

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse | None:
        """What `nbytes` over an idle link tell of it; None if no answer came within `timeout_s`."""
        channel = self._channel
        return glimpse(channel, lambda: channel.clock.offset_s, nbytes, timeout_s)

    def measure_link(self, budget_s: float = 3.0, *, software: bool = True) -> Link:
        """The link to the server, measured by sending over it (`probe.link_probe`), and then `with_software`, which
        may take a second more. ServerError if it ends."""
        link = measure_link(self._channel, budget_s).link
        return self.with_software(link) if software else link

    def with_software(self, link: Link) -> Link:
        """`link`, which was measured just now, with what software adds to requests on it, by some with made-up inputs
        (`probe.software`). As it is where the current cut sends nothing, or not raw. ServerError if the link ends."""
        binding, route = self._binding, self._cuts.current
        if not route.placement.remote or route.encoding.codecs:
            return link
        request = Request(samples_for(self.model, 1)[0])

        def ask() -> Result | None:
            if not route.placement.hold():
                return None
            requests = binding.requests  # as all others, but nobody's: they are not counted
            try:
                return requests.finish(requests.send(requests.begin(route, request, 0.0, more=False)))
            except BusyError:
                return None

        return msgspec.structs.replace(link, software_ms=software_ms(ask, link))

    def profile_server(self, budget_s: float = 60.0, fresh: bool = False, *, within_s: float | None = None) -> Profile:
        """What every cut costs on the server, which measures itself for up to `budget_s` (less, if it says so).

        It keeps the result: asking again costs nothing, unless with `fresh` or, if it did not get to the end, with a
        larger budget. While it has too many others to measure, it is asked again for a while, which `on_event` is told
        of; where requests can be answered without it, for twice the budget and a little (or `within_s`, which is also
        how long its answer is waited for). RefusedError if it does not
        measure itself or has nothing to say of it, BusyError if it stays busy, ServerError if it fails, InputError for
        a profile that makes no sense.
        """
        if not 0 < budget_s < float("inf"):
            raise UsageError(f"a profile's time budget is a number of seconds above 0, not {budget_s}")
        # Compiling a large model once is not interrupted, and the server may be slow, or measure others first.
        limit_s, busy_s = COMPILE_S + 2 * budget_s, _BUSY_S + _BUSY_BUDGETS * budget_s
        if within_s is not None:
            limit_s = busy_s = within_s
        elif self.does_without and not self._jobs.mine:
            limit_s = busy_s = 2 * budget_s + self._means.patience.profile_s
        channel, info = self._channel, self.info
        request, most = ProfileRequest(info.fingerprint, budget_s, fresh), MOST_BODY[Kind.PROFILED]
        end, told = monotonic() + busy_s, False
        while True:
            try:
                _, frame = channel.ask(
                    Kind.PROFILE, request, Profiled, limit_s, most=most, pause=self._jobs.closed.wait
                )
                break
            except BusyError as exc:
                pause_s = min(max(exc.retry_after_s, _LEAST_PAUSE_S), _MOST_PAUSE_S)
                left_s = end - monotonic()
                if left_s < pause_s:
                    raise
                if not told:
                    told, said = True, f"{exc}; asking again for up to {left_s:.0f} s"
                    self._tell(Event("notice", said, {"why": str(exc), "seconds": left_s}))
            if self._jobs.closed.wait(pause_s):
                raise ServerError(CLOSED)
        data = bytes(frame.tensors[0].data) if frame.tensors else b""
        profile = parse_profile(data, "what the server sent")
        profile.require(info.fingerprint, info.name)
        return profile

    def pull(self, at: str | int | Cut | None = None) -> int:
        """Fetches the weights of the head at `at`, or of the whole model, into the cache; returns bytes fetched. With
        all of them requests can be finished here from then on, if that is the fallback. RefusedError if the server does
        not hand them out; StorageError for the cache."""
        self.check()
        holding = self._binding.holding
        if holding.local:
            return 0
        if at is None:
            if (shared := self.shared) is not None:
                raise RefusedError(
                    f"this server hands out a head of {self.info.name}, not the whole model: give --at "
                    f"{shared.cut.name}, or a cut before it"
                )
            fetched = holding.pull(tuple(self.model.blobs))
            if self.fallback == LOCAL:
                self._binding.complete()
            return fetched
        cut = self._followed.cut(at)
        wanted = self.model.head(cut).blobs
        if not holding.has(wanted) and (why := self._cuts.refusal(cut)):
            raise RefusedError(why)
        return holding.pull(wanted)

    # --- cuts ---------------------------------------------------------------------------------------------------

    def warm(self, at: At, codec: CodecChoice | None = None) -> Cut:
        """Makes the cut `at` ready, head here and tail there, without switching to it."""
        self.check()
        return self._followed.route(self._binding, at, codec).placement.cut

    def switch(self, at: At, codec: CodecChoice | None = None, *, predicted_ms: float | None = None) -> Cut:
        """Cuts at `at` from the next request on. A cut that is ready (`warm`, or used before) costs < 1 ms.

        Without `codec` tensors travel as before; those that it gave to tensors by name go on while these cross. What
        takes much longer than `predicted_ms` there is late; without it that is learned.
        """
        self.check()
        placement = self._followed.switch(at, codec).placement
        if placement.remote and placement.remote_tail is None:  # it goes on being asked for
            self._line.lost(self._line.remote, self._line.why or "the server has not opened this cut yet")
        placement.times.plan((predicted_ms or 0.0) / 1e3)
        if self.does_without:
            self._binding.local.prepare_soon(placement)
        return placement.cut

    def forget(self, at: At | None = None) -> None:
        """Frees the compiled halves of `at`, or of every cut but the current one, here and on the server."""
        self.check()
        self._cuts.forget(None if at is None else self._followed.cut(at))

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        return self._cuts.holds(cut) or (self._binding.local.possible() and not self._cuts.refusal(cut))

    def fetch_first(self, cut: Cut) -> int:
        """Has what the head at `cut` needs fetched before other weights, where they are fetched behind requests
        (`adapt`, the fallback ``"local"``); returns how many bytes of that are not here."""
        return self._binding.fetch_first(cut)

    # --- adapting -----------------------------------------------------------------------------------------------

    def plan_itself(self, how: AutoPlan) -> None:
        """Cuts by a guess, then by profiles of both sides (`auto_planning`), as `how` says; does so anew for a newer
        model, and all here until the server is there. ServerError and its kin, where that cannot be done without it."""
        self.check()
        means, edge = self._means, ref(self)
        self.planning = planning = AutoPlanning(
            ref(self), how, means.engine(), means.cache, self._tell,
            lambda: None if (alive := edge()) is None else alive.calibration,
        )  # fmt: skip
        if not self.reached:
            self.switch("cut:output")
            self._tell(Event("notice", "all runs here until the server is there: then it is planned where to cut"))
            return
        try:
            planning.begin()
        except SAID as exc:
            if not self.does_without:
                raise
            # What is to be done when it is reached is done behind, with more patience.
            self._tell(Event("notice", f"{exc}; all runs here until it is planned where to cut", {"why": str(exc)}))
            self.switch("cut:output")
            self._jobs.add(self._run_jobs)

    def adapt(
        self, planner: Planner, link: Link, watching: Watching | None = None, *, current: Option | None = None
    ) -> Adaptive:
        """Cuts as `planner` says for `link`, and from then on for link, load and device as they are seen to be. Where
        it is cut as `current` says, it goes over when that is worth it and what it takes is here.

        The next likely cuts are made ready in the background, and a switch happens between two requests; each is told
        to `on_event` ("switched") and is in `switches`. Called again, it begins anew.
        """
        self.check()
        self._stop_adapting()
        self._binding.fetch_behind()
        self._line.attach()  # what it watches is the link, also while no request goes over it
        # Its threads must not keep alive an edge that is forgotten.
        self.adaptive = adaptive = Adaptive(
            cast("Edge", proxy(self)), planner, link, watching, current=current, on_event=self._tell
        )
        adaptive.start()
        if self._over is not None:
            adaptive.close()
            self.check()
        return adaptive

    @property
    def switches(self) -> Sequence[Switch]:
        """What `adapt` has switched so far."""
        return tuple(self.adaptive.switches) if self.adaptive is not None else ()

    def stats(self) -> EdgeStats:
        """What has been done so far, and how things are now: all counters in one snapshot, for once a second."""
        line, adaptive = self._line, self.adaptive
        return EdgeStats(
            requests=self._inference.tally.counts(self._followed.under_way),
            connections=line.connections,
            switches=self._switched + len(self.switches),
            cut=self.cut.name,
            link_state=line.state,
            round_trip_ms=self.round_trip_ms,
            believed=adaptive.believed if adaptive is not None else None,
            outside=self._cuts.tables.outside,
        )

    # --- running ------------------------------------------------------------------------------------------------

    def infer(
        self,
        inputs: Inputs,
        *,
        deadline_s: float | None = None,
        at: str | int | Cut | None = None,
        codec: CodecChoice | None = None,
        more: bool = False,
    ) -> Result:
        """The model's outputs for `inputs`: an array if it has one input, else arrays by name; or a `Request`.

        With `at` (and `codec`) this one request is cut there, whatever the others are; `warm` makes that ready.
        `more` tells the server that others follow before this one is answered: it receives them meanwhile.
        `deadline_s` (the edge's own if None, 0 for none): a server that cannot begin by then refuses instead of
        computing in vain. With the fallback ``"local"`` the answer is then finished here, in time if the device can;
        with ``"wait"`` it is a ServerError. Raises InputError for inputs that do not fit, and with the fallback
        ``"error"`` BusyError and ServerError; none of them costs an answer that was given before.
        """
        if self._over is not None:
            self.check()
        limit_s = self.deadline_s if deadline_s is None else check_deadline(deadline_s)
        inference = self._inference
        try:
            ticket = inference.begin(inputs, limit_s, more, at, codec)
            return inference.finish(inference.send(ticket), at, codec)
        except Exception as exc:
            self.check()
            if type(exc) is ServerError and self.fallback == ERROR and self._line.remote.ended:
                raise ServerError(f"{exc}; {_FOR_GOOD}") from exc
            raise

    def stream(self, items: Iterable[Inputs], *, window: int = 4, deadline_s: float | None = None) -> Iterator[Result]:
        """Results of `items` in order, with up to `window` of them under way at once.

        While one is at the server and another on the wire, the head of the next computes and the one after it is taken
        from `items`. An exception, the caller's included, ends all of it; results before it are delivered first.
        """
        self.check()
        if window < 1:
            raise UsageError(f"a stream needs a window of at least 1, not {window}")
        limit_s = self.deadline_s if deadline_s is None else check_deadline(deadline_s)
        window = min(window, self._remote.offer.in_flight or window)

        def begin(item: Inputs) -> Ticket:
            self.check()
            return self._inference.begin(item, limit_s, window > 1)

        return stream(items, (begin, self._inference.send, self._inference.finish), self._inference.abandon, window)

    def shadow(self, inputs: Inputs, at: str | int | Cut, codec: CodecChoice | None = None) -> bool:
        """Sends a request over the cut `at`, which is warm, beside the others; only `watchers` hear of its answer.
        Nothing is sent while the last one has no answer yet, or while the link or the cut's tail is down: False says
        that none is under way. UsageError if the cut is not warm."""
        self.check()
        binding, cut = self._binding, self._followed.cut(at)
        if cut not in binding.cuts:
            raise UsageError(f"{cut.name} is not warm: nothing is compiled for a request that nobody waits for")
        binding.line.attach()  # nobody may be there to read the answer
        route = self._followed.route(binding, cut, codec)
        if not route.placement.remote or not route.placement.hold():
            return False
        return binding.requests.shadow(route, inputs if isinstance(inputs, Request) else Request(inputs))


def _told(edge: ReferenceType[Edge], what: Callable[[Edge], None]) -> None:
    if (alive := edge()) is not None:
        what(alive)


def _check_plan(plan: object, at: object, codec: CodecChoice) -> AutoPlan | None:
    """How the edge plans by itself, if it does. UsageError for what makes no sense."""
    if plan is None:
        return None
    if not isinstance(plan, (Plan, AutoPlan)) and plan != "auto":
        raise UsageError(f'plan is "auto", an AutoPlan or a Plan, not {plan}')
    if at is not None or codec != "raw":
        raise UsageError("with a plan the cut and its codecs are the planner's choice: at and codec say nothing")
    return None if isinstance(plan, Plan) else plan if isinstance(plan, AutoPlan) else AutoPlan()
