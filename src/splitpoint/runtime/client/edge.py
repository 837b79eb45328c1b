"""The device's side: runs heads here, sends what crosses, and knows where every millisecond went."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import NamedTuple, cast
from weakref import ReferenceType, proxy, ref

from splitpoint import wire
from splitpoint.callbacks import call
from splitpoint.engines import Engine, Session, open_engine
from splitpoint.errors import (
    BusyError,
    RefusedError,
    ServerError,
    SplitpointError,
    UnreachableError,
    UsageError,
)
from splitpoint.graph import Cut
from splitpoint.images import InputSpec
from splitpoint.lifetime import Closable
from splitpoint.link import Link
from splitpoint.models.model import Model, Segment
from splitpoint.planning.constraints import Constraints, Shared
from splitpoint.planning.planner import Planner
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.adapt.controller import Adaptive, Watching, planned
from splitpoint.runtime.adapt.switch_log import Switch
from splitpoint.runtime.circuit_breaker import DOWN
from splitpoint.runtime.client import plain_request as plain
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.held_weights import Background
from splitpoint.runtime.client.local_tail import Here
from splitpoint.runtime.client.model_binding import Binding, Dialler, Means, reach, same_ends
from splitpoint.runtime.client.opened_cut import Route
from splitpoint.runtime.client.ready_cuts import Cuts
from splitpoint.runtime.client.reconnect import REFUSALS, Line, gone
from splitpoint.runtime.client.remote_profile import ask_profile
from splitpoint.runtime.client.request import (
    ERROR,
    LOCAL,
    WAIT,
    Moved,
    Survivor,
    Ticket,
    check_deadline,
    check_fallback,
)
from splitpoint.runtime.client.timeouts import PATIENCE, Patience
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.events import Event, OnEvent, ignore, teller
from splitpoint.runtime.model_choice import choose_model, info_of
from splitpoint.runtime.probe.link_probe import measure_link
from splitpoint.runtime.probe.quick_probe import Glimpse, glimpse
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.runtime.threads import begin
from splitpoint.runtime.watcher import Watcher
from splitpoint.security import OPEN, Security
from splitpoint.tensors import Array
from splitpoint.transports import Connection
from splitpoint.wire import Limits, ModelInfo

Inputs = Mapping[str, Array] | Array | Request
#: How long closing waits for what is done beside, and how often whoever waits for requests to end looks.
_JOIN_S, _LOOK_S = 10.0, 0.05
#: What becomes of an edge with the fallback ``error`` whose connection has ended.
_FOR_GOOD = "with the fallback error no connection is made again: begin anew, or choose the fallback wait or local"


class Edge(Closable):
    """A model cut in two: the head runs here, the tail at `address`.

    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address, at="pool1") as edge:
    ...         result = edge.infer(digit)
    >>> list(result.trace.stages())
    ['head', 'encode', 'up', 'decode', 'queue', 'tail', 'reply', 'down']

    `model` is a name or fingerprint (its first digits suffice) that the server has (it may be left out if there is
    one), or a `Model` that is here already and whose fingerprint the server must have. Without one, the graph and the
    weights of the head are fetched into `cache` once. `model_hash` pins the fingerprint (its first digits suffice):
    another one is refused. A name that several versions have needs one of the two. A graph with operators that are not
    run (`models.operators`) is refused, too, but for those of `allow_domains`.
    `at` names a cut; at ``"input"`` all is computed on the server, at ``"output"`` all here. `codec` is how crossing
    tensors travel: one name (``"int8"``) for all that it takes, the others raw, or names by tensor. `engine` is ONNX
    Runtime on the CPU if not given. `timeout_s` is how long any answer may take. With `checksum` every frame carries a
    CRC-32, and one that was changed on its way ends the connection instead of giving a wrong answer; without it that is
    left to TCP, whose checksum has 16 bits. `security` says whom to trust and what to show (TLS, tokens); an address
    ``tls://host`` is enough where the server's certificate is signed by an authority that this system knows.

    `fallback` is what becomes of a request when the server is late, gone, busy or wrong: ``"error"`` raises that;
    ``"wait"`` asks again, on a new connection if need be, until the deadline or for ever; ``"local"`` finishes it here
    from the tensors that are here. That takes the whole model's weights: a local `Model`, or they are fetched
    after the first answer, with a tenth of the link; until then it is ``"wait"``, and `on_event` is told so.
    A server that is not there yet is waited for (``"wait"``: until the deadline, or for ever), or done without until it
    comes, or does what it should (``"local"``, with a local `Model`); with `need_server` it is an error. So with
    ``"local"`` is one that refuses (the token, that model, anything), which is mostly a mistake of who began: what it
    said is told to `on_event` at once, or warned of where that is not given, and it is tried again. One that comes
    back with a newer model of that name is told of; with `follow_model` the newer one is fetched and taken, between two
    requests, if it takes and gives the same.
    `deadline_s` is when an answer should be there, counted from the call; 0 is none. `patience` says what *late*
    means, and `seed` draws the pauses before a lost server is tried again.

    ``plan="auto"`` chooses the cut, and goes on choosing (`adapt`): both sides are profiled for up to `budget_s` (what
    an earlier run kept counts) and the link is measured, which is told to `on_event`; `constraints` are what the plan
    keeps to. `watching` says how often the link is looked at. With the fallback ``"error"`` a connection that is lost
    stays lost: from then on all runs here.

    Raises ServerError and its kin if the server is not there or refuses, CutError for an unknown cut, UsageError for
    a codec that makes no sense, StorageError for the cache, RefusedError for the fallback ``"local"`` if the server
    does not hand the model out. Any number of threads may call `infer`; a process that forks makes one after it (in the
    child, use of one that was made before is a UsageError).
    """

    def __init__(
        self,
        address: str | Connection,
        model: Model | str | None = None,
        *,
        at: str | int | Cut | None = None,
        codec: CodecChoice = "raw",
        plan: str = "",
        budget_s: float = 10.0,
        constraints: Constraints | None = None,
        watching: Watching | None = None,
        fallback: str = ERROR,
        deadline_s: float = 0.0,
        engine: Engine | None = None,
        cache: Path | None = None,
        model_hash: str | None = None,
        allow_domains: Collection[str] = (),
        follow_model: bool = False,
        need_server: bool = False,
        timeout_s: float = 30.0,
        connect_s: float = 5.0,
        checksum: bool = False,
        security: Security = OPEN,
        limits: Limits | None = None,
        patience: Patience = PATIENCE,
        seed: int | None = None,
        on_event: OnEvent = ignore,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._fallback, self.deadline_s = check_fallback(fallback), check_deadline(deadline_s)
        auto = _check_plan(plan, at, codec)
        if fallback != ERROR and not isinstance(address, str):
            raise UsageError(f"fallback {fallback} makes connections again: give an address, not a connection")
        if follow_model and model_hash is not None:
            raise UsageError("a model that is pinned by its fingerprint cannot be followed: drop one of the two")
        if follow_model and fallback == ERROR:
            raise UsageError("a model is followed over a new connection: choose the fallback wait or local")
        self._untold = on_event is ignore
        self._tell = on_event = teller(on_event)  # and only that from here on
        self._codec = codec
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._when_reached: list[Callable[[], object]] = []
        self._beside: threading.Thread | None = None
        self._old: list[Binding] = []
        self.adaptive: Adaptive | None = None
        """Who keeps the cut right, after `adapt`."""
        self.watchers: list[Watcher] = []
        """Told of all that happens to requests; added to and removed from at any time."""
        self.on_result: Callable[[Request, Result], None] | None = None
        """Told of every answer, with its request, as it is given to whoever asked, while there are watchers."""
        self._engine_here = _first_use(engine)
        edge = ref(self)  # threads that go on behind must not keep alive an edge that is forgotten
        self._means = means = Means(
            Dialler(address, limits, checksum, security), self._engine_here, fallback, timeout_s, patience, seed, cache,
            self.watchers, on_event, on_progress, follow_model,
            arrived=lambda: _told(edge, Edge._arrived),
            changed=lambda models: _told(edge, lambda found: found._changed(models)),
            allowed=frozenset(allow_domains),
        )  # fmt: skip
        local = model if isinstance(model, Model) else None
        if local is not None:
            choose_model((info_of(local),), model, model_hash)  # pinned to another: that is no server's doing
        channel, why = self._first_channel(connect_s, local, alone=fallback != ERROR and not need_server)
        try:
            served = channel.welcome.models if not channel.ended or local is None else (info_of(local),)
            self.info = choose_model(served, model, model_hash)
            self._check_shared(channel, local)
            channel.timeout_s = timeout_s
            self._binding = binding = Binding(means, channel, self.info, local, why)
        except BaseException:
            channel.close()
            raise
        self._met = self.reached
        self._opened(at_exit=True)
        try:
            self.model = binding.model
            if auto:
                self._when_reached.append(partial(_plan, edge, budget_s, constraints, cache, watching))
            first = self._cut(
                ("cut:input" if self.reached else "cut:output") if auto else self.middle if at is None else at
            )
            binding.cuts.switch(first, self._codecs_at(first, codec))
            if fallback != ERROR:
                binding.survive()
            if auto and self.reached:
                try:
                    self._when_reached[0]()
                except wire.SAID as exc:
                    if not self.does_without:
                        raise
                    self.plan_later(exc)
        except BaseException:
            self.close()
            raise

    def _first_channel(self, connect_s: float, local: Model | None, *, alone: bool) -> tuple[Channel, str]:
        """The server; or, where requests are answered without (`alone`), a stand-in and why it is not there."""
        means = self._means
        if not alone:
            return _timed(means.dial(connect_s)), ""
        if self._fallback == WAIT:
            wait_s = self.deadline_s or float("inf")
            return _timed(reach(means, connect_s, wait_s=wait_s, pause=self._stopped.wait)), ""
        if local is None:
            try:
                return _dial_in_time(means.dial, connect_s), ""
            except (UnreachableError, BusyError) as exc:
                raise ServerError(
                    f"{exc}; and nothing can be answered here without the model's own file: give that, or choose the "
                    "fallback wait"
                ) from exc
        channel: Channel | None = None
        try:
            channel = _dial_in_time(means.dial, connect_s)
            choose_model(channel.welcome.models, local, None)
        except wire.SAID as exc:
            if channel is not None:
                channel.close()
            refused = isinstance(exc, REFUSALS)
            text = f"{exc}; until {'that is mended' if refused else 'it is there'}, requests are answered here"
            self._tell(Event("notice", text))
            if refused and self._untold:
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            return Channel.absent(str(means.dial.address), exc), gone(exc, met=False)
        return channel, ""

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        """Ends the connection and frees what is compiled here; requests that are under way get an error."""
        self._stopped.set()
        if self.adaptive is not None:
            self.adaptive.close()
        for binding in (self._binding, *self._old):
            binding.close(str(self._over))
        beside = self._beside
        if beside is not None and beside is not threading.current_thread():
            beside.join(_JOIN_S)

    def _check_shared(self, channel: Channel, local: Model | None) -> None:
        """RefusedError if the rest of the model can never be here, and is to be."""
        if self._fallback == LOCAL and local is None and channel.welcome.share != "model":
            shared = "only a head" if channel.welcome.share == "head" else "no models"
            raise RefusedError(
                f"this server hands out {shared}, so no request can be finished here: "
                "give the model's own file, or choose the fallback wait"
            )

    def _surviving(self, binding: Binding) -> Survivor:
        """Whoever answers requests that are watched, or that have a fallback."""
        if binding.survivor is None:
            with self._lock:
                return binding.surviving()
        return binding.survivor

    # --- a server that comes later, or with another model -------------------------------------------------------

    @property
    def reached(self) -> bool:
        """Whether the server has been there yet."""
        return self._binding.line.met

    def when_reached(self, job: Callable[[], object]) -> None:
        """Has `job` done, in a thread of its own, when the server is there for the first time or with a model that has
        changed."""
        self._when_reached.append(job)

    def _arrived(self) -> None:
        """From the thread of the line: the server is there (again)."""
        if not self._met:
            self._met = True
            self._do_beside(self._run_jobs)

    def _run_jobs(self) -> None:
        try:
            for job in tuple(self._when_reached):
                job()
        except ServerError:
            if self.link_state == DOWN:  # it has gone again: another time
                self._met = False
            raise

    def _do_beside(self, work: Callable[[], None]) -> None:
        """Does what takes long in a thread of its own, after what is done there."""
        with self._lock:
            before = self._beside

            def run() -> None:
                if before is not None:
                    before.join()
                if self._stopped.is_set():
                    return
                try:
                    work()
                except Exception as exc:  # an engine's, too
                    if not self._stopped.is_set():
                        self._tell(Event("notice", str(exc)))

            thread = threading.Thread(target=run, name="beside", daemon=True)
            thread.start()
            self._beside = thread  # not before: it may be joined

    def _changed(self, models: Sequence[ModelInfo]) -> None:
        """From the thread of the line: the server is there, without the model."""
        binding = self._binding
        named = [m for m in models if m.name == self.info.name]
        if self._means.follows and named and not binding.following and binding.follow_failed is None:
            binding.following = True
            self._do_beside(partial(self._follow, binding))

    def _follow(self, old: Binding) -> None:
        """Goes over to the newer model of the same name: between two requests, when all is ready for it."""
        new: Binding | None = None
        try:
            new = self._bound_anew(old)
        except BaseException as exc:
            if isinstance(exc, REFUSALS):  # else it is tried again when the server is
                old.follow_failed = exc
            raise
        finally:
            if new is None:
                old.following = False
        adaptive, self.adaptive = self.adaptive, None
        if adaptive is not None:
            adaptive.close()
        with self._lock:
            self._old.append(old)
            model = new.model
            spec = self.model.input_spec
            if spec is not None and spec != old.model.input_spec:  # how inputs are made was said here: so it stays
                model = model.with_input_spec(spec)
            self._binding, self.info, self.model = new, new.info, model
        old.leave()
        cut = self.cut.name
        fingerprints = f"{new.info.fingerprint[:12]} instead of {old.info.fingerprint[:12]}"
        self._tell(Event("changed", f"following {new.info.name}: {fingerprints} from now on, cut at {cut}"))
        while old.survivor is not None and old.survivor.busy and not self._stopped.wait(_LOOK_S):
            pass
        old.close()
        with suppress(ValueError):
            self._old.remove(old)
        self._run_jobs()

    def _bound_anew(self, old: Binding) -> Binding:
        """The newer model of the same name, as ready as `old` is."""
        means = self._means
        channel = means.dial(means.patience.greet_s)
        try:
            info = choose_model(channel.welcome.models, old.info.name, None)
            same_ends(old.info, info)
            self._check_shared(channel, None)
            channel.timeout_s = means.timeout_s
            channel.measure_clock()
            new = Binding(means, channel, info, None)
        except BaseException:
            channel.close()
            raise
        try:
            route = old.cuts.current
            cut = new.model.graph.cut(route.placement.cut.name)
            if self._fallback == LOCAL and old.here.possible():  # no answer is to wait for what is not here yet
                new.holding.pull(tuple(new.model.blobs))
                new.here.complete()
            new.cuts.switch(cut, self._codecs_at(cut, None))
            new.survive()
        except BaseException:
            new.close()
            raise
        return new

    # --- the server and its model -------------------------------------------------------------------------------

    @property
    def _line(self) -> Line:
        return self._binding.line

    @property
    def _cuts(self) -> Cuts:
        return self._binding.cuts

    @property
    def _here(self) -> Here:
        return self._binding.here

    @property
    def _channel(self) -> Channel:
        self.check()
        return self._binding.line.channel

    @property
    def served(self) -> tuple[ModelInfo, ...]:
        """The models that the server has; none while it has not been there yet."""
        return self._line.channel.welcome.models

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
        return {name: codec.name for name, codec in self._cuts.current.codecs.items()}

    @property
    def input_spec(self) -> InputSpec | None:
        """How photos become the model's input."""
        return self.model.input_spec

    @property
    def cache(self) -> BlobCache:
        """Where weights are kept on this device."""
        return self._binding.holding.cache

    @property
    def fallback(self) -> str:
        """What becomes of a request that the server lets down: ``error``, ``wait`` or ``local``."""
        return self._fallback

    @property
    def link_state(self) -> str:
        """Whether requests go to the server: ``up``, ``down``, or ``trying`` (one goes, to see whether it is well)."""
        return self._line.state

    @property
    def local_ready(self) -> bool:
        """Whether a request at the current cut can be finished here now."""
        return self._here.ready(self._cuts.current.placement)

    @property
    def does_without(self) -> bool:
        """Whether every request can be answered without the server: the fallback is ``local``, and all weights here."""
        return self._fallback == LOCAL and self._here.possible()

    def plan_later(self, why: SplitpointError) -> None:
        """All runs here from now on, and what is to be done `when_reached` is done behind, with more patience."""
        self._tell(Event("notice", f"{why}; all runs here until it is planned where to cut"))
        self.switch("cut:output")
        self._do_beside(self._run_jobs)

    @property
    def clock_error_ms(self) -> float:
        """How well the server's clock is known now; infinite while the server has not been there yet."""
        return self._line.channel.clock.error_s(perf_counter()) * 1e3

    @property
    def round_trip_ms(self) -> float:
        """The shortest of the recent pings."""
        return self._line.channel.clock.round_trip_s * 1e3

    def ping(self) -> float | None:
        """The seconds of a round trip to the server; None if none was made in time."""
        return self._channel.ping(self._means.patience.pong_s)

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse | None:
        """What `nbytes` over an idle link tell of it; None if no answer came within `timeout_s`."""
        channel = self._channel
        return glimpse(channel, lambda: channel.clock.offset_s, nbytes, timeout_s)

    def measure_link(self, budget_s: float = 3.0) -> Link:
        """The link to the server, measured by sending over it (`probe.link_probe`). ServerError if it ends."""
        return measure_link(self._channel, budget_s)

    def profile_server(self, budget_s: float = 60.0, fresh: bool = False) -> Profile:
        """What every cut costs on the server, which measures itself for up to `budget_s` (less, if it says so).

        It keeps the result: asking again costs nothing, unless with `fresh` or, if it did not get to the end, with a
        larger budget. Who asks while it measures this model for someone gets the same; while it has too many others
        to measure, it is asked again for a while, which `on_event` is told of. RefusedError if it does not measure
        itself or has nothing to say of it, BusyError if it stays busy, ServerError if it fails, InputError for a
        profile that makes no sense. Where requests can be answered without it (the fallback ``"local"``), whoever waits
        for it does so for twice the budget and a little.
        """
        within_s = None
        if self.does_without and threading.current_thread() is not self._beside:
            within_s = 2 * budget_s + self._means.patience.profile_s
        channel, closed = self._channel, self._stopped
        return ask_profile(channel, self.info, budget_s, closed, self._tell, fresh=fresh, within_s=within_s)

    def pull(self, at: str | int | Cut | None = None) -> int:
        """Fetches the weights of the head at `at`, or of the whole model, into the cache; returns bytes fetched.

        With the whole model requests can be finished here from then on, if that is the fallback. RefusedError if the
        server does not hand them out; StorageError for the cache.
        """
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
            if self._fallback == LOCAL:
                self._binding.complete()
            return fetched
        cut = self._cut(at)
        wanted = self.model.head(cut).blobs
        if not holding.has(wanted) and (why := self._cuts.refusal(cut)):
            raise RefusedError(why)
        return holding.pull(wanted)

    # --- cuts ---------------------------------------------------------------------------------------------------

    def warm(self, at: str | int | Cut, codec: CodecChoice | None = None) -> Cut:
        """Makes the cut `at` ready, head here and tail there, without switching to it."""
        self.check()
        return self._route(self._cut(at), codec).placement.cut

    def switch(
        self, at: str | int | Cut, codec: CodecChoice | None = None, *, predicted_ms: float | None = None
    ) -> Cut:
        """Cuts at `at` from the next request on. A cut that is ready (`warm`, or used before) costs < 1 ms.

        Without `codec` tensors travel as before; those that it gave to tensors by name go on while these cross.
        Another codec compiles nothing. `predicted_ms` is what a request is expected to take there: what takes
        much longer is late. Without it that is learned.
        """
        self.check()
        cut = self._cut(at)
        route = self._cuts.switch(cut, self._codecs_at(cut, codec))
        if codec is not None:
            self._codec = codec
        if route.placement.remote and route.placement.far is None:  # it goes on being asked for
            self._line.lost(self._line.channel, self._line.why or "the server has not opened this cut yet")
        route.placement.waits.told_s = (predicted_ms or 0.0) / 1e3
        if self._fallback == LOCAL and self._here.possible():
            self._here.prepare_soon(route.placement)
        return cut

    def forget(self, at: str | int | Cut | None = None) -> None:
        """Frees the compiled halves of `at`, or of every cut but the current one, here and on the server."""
        self.check()
        self._cuts.forget(None if at is None else self._cut(at))

    def _cut(self, at: str | int | Cut) -> Cut:
        return at if isinstance(at, Cut) else self.model.graph.cut(at)

    def _route(self, cut: Cut, codec: CodecChoice | None) -> Route:
        return self._cuts.route(cut, self._codecs_at(cut, codec))

    def _codecs_at(self, cut: Cut, codec: CodecChoice | None) -> CodecChoice:
        """`codec`, or what of the edge's own is for tensors that cross at `cut`."""
        asked = self._codec if codec is None else codec
        if codec is None and not isinstance(asked, str):
            crossing = {t.name for t in cut.crossing}
            asked = {name: one for name, one in asked.items() if name in crossing}
        return asked

    # --- adapting -----------------------------------------------------------------------------------------------

    def adapt(self, planner: Planner, link: Link, watching: Watching | None = None) -> Adaptive:
        """Cuts as `planner` says for `link`, and from then on for link, load and device as they are seen to be.

        The next likely cuts are made ready in the background, and a switch happens between two requests; each is told
        to `on_event` ("switched") and is in `switches`. Called again, it begins anew.
        """
        self.check()
        if self.adaptive is not None:
            self.adaptive.close()
        binding = self._binding
        if self._fallback != LOCAL and not binding.holding.local and self._channel.welcome.share == "model":
            binding.background = binding.background or Background(binding.holding, binding.here.complete, self._tell)
        # Its threads must not keep alive an edge that is forgotten.
        self.adaptive = Adaptive(cast("Edge", proxy(self)), planner, link, watching, on_event=self._tell)
        self.adaptive.start()
        if self._over is not None:
            self.adaptive.close()
            self.check()
        return self.adaptive

    @property
    def switches(self) -> Sequence[Switch]:
        """What `adapt` has switched so far."""
        return tuple(self.adaptive.switches) if self.adaptive is not None else ()

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        return self._cuts.holds(cut) or (self._here.possible() and not self._cuts.refusal(cut))

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
        request = _request(inputs)
        flags = wire.PIPELINED if more else 0
        if self._fallback != ERROR or self.watchers:
            return self._survived(self._sent(self._begun(request, _How(at, codec, limit_s, flags))))
        try:
            route = self._cuts.current if at is None else self._route(self._cut(at), codec)
            return plain.finish(plain.send(plain.begin(route, request, limit_s, flags)))
        except Exception as exc:
            self.check()
            if type(exc) is ServerError and self._channel.ended:
                raise ServerError(f"{exc}; {_FOR_GOOD}") from exc
            raise

    def stream(self, items: Iterable[Inputs], *, window: int = 4, deadline_s: float | None = None) -> Iterator[Result]:
        """Results of `items` in order, with up to `window` of them under way at once.

        While one is at the server and another on the wire, the head of the next computes and the one after it is
        taken from `items`, each in a thread of its own. An exception, the caller's included, ends all of it; results
        before it are delivered first.
        """
        self.check()
        if window < 1:
            raise UsageError(f"a stream needs a window of at least 1, not {window}")
        limit_s = self.deadline_s if deadline_s is None else check_deadline(deadline_s)
        window = min(window, self._channel.welcome.limits.get("in_flight", window))
        flags = wire.PIPELINED if window > 1 else 0
        if self._fallback == ERROR and not self.watchers:

            def begin(item: Inputs) -> plain.Sent:
                self.check()
                return plain.begin(self._cuts.current, _request(item), limit_s, flags)

            return stream(items, (begin, plain.send, plain.finish), plain.abandon, window)

        def hold(item: Inputs) -> _Asked:
            self.check()
            return self._begun(_request(item), _How(None, None, limit_s, flags))

        def abandon(asked: _Asked) -> None:
            self._surviving(asked.binding).abandon(asked.ticket)

        return stream(items, (hold, self._sent, self._survived), abandon, window)

    def shadow(self, inputs: Inputs, at: str | int | Cut, codec: CodecChoice | None = None) -> bool:
        """Sends a request over the cut `at`, which is warm, beside the others; only `watchers` hear of its answer.

        Nothing is sent while the last one has no answer yet, or the link is down, or the server has not opened the cut
        again after that: False says that none is under way. UsageError if the cut is not warm.
        """
        self.check()
        cut = self._cut(at)
        if cut not in self._cuts:
            raise UsageError(f"{cut.name} is not warm: nothing is compiled for a request that nobody waits for")
        route = self._route(cut, codec)
        if not route.placement.remote or not route.placement.hold():
            return False
        return self._surviving(self._binding).shadow(route, _request(inputs))

    def _held(self, binding: Binding, wanted: Route | None = None) -> Route:
        """The current route (or `wanted`), whose halves are kept until the request is answered."""
        while not (route := wanted or binding.cuts.current).placement.hold():
            self.check()
            if binding.replaced:
                raise Moved(CLOSED)
            if wanted is not None:
                raise UsageError(f"{route.placement.cut.name} was forgotten while a request was to use it")
        return route

    def _begun(self, request: Request, how: _How) -> _Asked:
        """The request with its head run, by what the edge is bound to now."""
        while True:
            binding, at = self._binding, how.at
            try:
                route = None
                if at is not None:
                    cut = self._cut(at)
                    route = binding.cuts.route(cut, self._codecs_at(cut, how.codec), hurry=True)
                held = self._held(binding, route)
                ticket = self._surviving(binding).begin(held, request, how.limit_s, how.flags)
                return _Asked(binding, ticket, how)
            except SplitpointError:
                self.check()  # closed meanwhile: that is the reason, whatever it looked like
                if not binding.replaced:
                    raise
                how = how.moved(how.limit_s)

    def _sent(self, asked: _Asked) -> _Asked:
        self._surviving(asked.binding).send(asked.ticket)
        return asked

    def _survived(self, asked: _Asked) -> Result:
        while True:
            binding, ticket, how = asked
            try:
                result = self._surviving(binding).finish(ticket)
                break
            except SplitpointError:
                self.check()
                if not binding.replaced:
                    raise
                # The model it was begun with is gone: it begins again with the one that took its place.
                limit_s = max(ticket.left_s(), 1e-3) if ticket.deadline_s else 0.0
                asked = self._sent(self._begun(ticket.request, how.moved(limit_s)))
            finally:
                if binding.background is not None:
                    binding.background.start()
        if (on_result := self.on_result) is not None:
            call(on_result, ticket.request, result)
        return result


class _How(NamedTuple):
    """Where a request is cut (None: as all are), with which codecs, by when, and with which flags."""

    at: str | int | Cut | None
    codec: CodecChoice | None
    limit_s: float
    flags: int

    def moved(self, limit_s: float) -> _How:
        """The same for another model, in which a cut goes by its name."""
        at = self.at.name if isinstance(self.at, Cut) else self.at
        return self._replace(at=at, limit_s=limit_s)


class _Asked(NamedTuple):
    """A request under way, and what it was begun with."""

    binding: Binding
    ticket: Ticket
    how: _How


def _plan(
    edge: ReferenceType[Edge], budget_s: float, constraints: Constraints | None, cache: Path | None,
    watching: Watching | None,
) -> None:  # fmt: skip
    """Has an edge plan by itself from now on."""
    if (found := edge()) is not None:
        known = planned(found, _Until(found._stopped, found._engine_here()), budget_s, constraints, cache, found._tell)
        found.adapt(*known, watching)


class _Until:
    """An engine that compiles nothing any more once `stopped` is set: measuring ends soon then."""

    def __init__(self, stopped: threading.Event, engine: Engine) -> None:
        self._stopped, self._engine = stopped, engine
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads

    def compile(self, segment: Segment) -> Session:
        if self._stopped.is_set():
            raise ServerError(CLOSED)
        return self._engine.compile(segment)


def _told(edge: ReferenceType[Edge], what: Callable[[Edge], None]) -> None:
    if (found := edge()) is not None and found._over is None:
        what(found)


def _first_use(engine: Engine | None) -> Callable[[], Engine]:
    """Gives `engine`, or one that is opened when it is asked for."""
    made = engine

    def get() -> Engine:
        nonlocal made
        if made is None:
            made = open_engine()
        return made

    return get


def _timed(channel: Channel) -> Channel:
    """`channel`, whose server's clock is known a little, within the time that greeting it may take. ServerError."""
    try:
        channel.measure_clock()
    except BaseException:
        channel.close()
        raise
    return channel


def _dial_in_time(dial: Dialler, connect_s: float) -> Channel:
    """A connection, timed, within `connect_s` also where looking the name up takes longer. ServerError and its kin."""
    came: SimpleQueue[Channel | BaseException] = SimpleQueue()
    late = threading.Event()

    def work() -> None:
        try:
            made = _timed(dial(connect_s))
        except BaseException as exc:
            came.put(exc)
            return
        came.put(made)
        if late.is_set():
            made.close()

    begin(threading.Thread(target=work, name="first connection", daemon=True))
    try:
        found = came.get(timeout=connect_s)
    except Empty:
        late.set()
        with suppress(Empty):  # it came at the last moment
            if isinstance(made := came.get_nowait(), Channel):
                made.close()
        raise UnreachableError(f"no answer from {dial.address} in {connect_s:g} s") from None
    if isinstance(found, BaseException):
        raise found
    return found


def _check_plan(plan: str, at: object, codec: CodecChoice) -> bool:
    """Whether the edge plans by itself. UsageError for what makes no sense."""
    if plan not in ("", "auto"):
        raise UsageError(f'plan is "auto" or nothing, not {plan}: to cut as a Plan says, give at and codec')
    if plan and (at is not None or codec != "raw"):
        raise UsageError('with plan="auto" the cut and its codecs are the planner\'s choice: at and codec say nothing')
    return plan == "auto"


def _request(inputs: Inputs) -> Request:
    return inputs if isinstance(inputs, Request) else Request(inputs)
