"""The device's side: runs heads here, sends what crosses, and knows where every millisecond went."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import perf_counter
from types import TracebackType

from splitpoint import wire
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import ModelError, RefusedError, ServerError, UsageError
from splitpoint.graph import Cut
from splitpoint.images import InputSpec
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plan import Planner
from splitpoint.profile.values import Profile
from splitpoint.runtime import plain
from splitpoint.runtime.adaptive import Adaptive, Watching, planned
from splitpoint.runtime.asking import COMPILE_S, ask_profile
from splitpoint.runtime.breaker import DOWN, UP
from splitpoint.runtime.cache import BlobCache
from splitpoint.runtime.channel import Channel
from splitpoint.runtime.choosing import choose_model
from splitpoint.runtime.cuts import Cuts
from splitpoint.runtime.encoding import CodecChoice
from splitpoint.runtime.events import Event, OnEvent, ignore, software
from splitpoint.runtime.fallback import ERROR, LOCAL, Survivor, Ticket, check_deadline, check_fallback
from splitpoint.runtime.glimpse import Glimpse, glimpse
from splitpoint.runtime.here import Here
from splitpoint.runtime.holding import Background, Holding
from splitpoint.runtime.late import PATIENCE, Patience
from splitpoint.runtime.line import Line
from splitpoint.runtime.placement import Route
from splitpoint.runtime.probe import measure_link
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.stream import stream
from splitpoint.runtime.switches import Switch
from splitpoint.runtime.watcher import Watcher, tell
from splitpoint.security import OPEN, Security
from splitpoint.tensors import Array
from splitpoint.transports import Connection, connect
from splitpoint.units import size
from splitpoint.wire import Kind, Limits, ModelInfo

Inputs = Mapping[str, Array] | Array | Request
#: What `fallback` there is while nothing is fetched for it.
_NOT_YET = "no local fallback yet ({} of {} here): until the rest is, a request waits for the server"


class Edge:
    """A model cut in two: the head runs here, the tail at `address`.

    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address, at="pool1") as edge:
    ...         result = edge.infer(digit)
    >>> list(result.trace.stages())
    ['head', 'encode', 'up', 'decode', 'queue', 'tail', 'reply', 'down']

    `model` is a name or fingerprint (its first digits suffice) that the server has (it may be left out if there is
    one), or a `Model` that is here already and whose fingerprint the server must have. Without one, the graph and the
    weights of the head are fetched into `cache` once. `model_hash` pins the fingerprint (its first digits suffice):
    another one is refused. A name that several versions have needs one of the two.
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
    `deadline_s` is when an answer should be there, counted from the call; 0 is none. `patience` says what *late*
    means, and `seed` draws the pauses before a lost server is tried again.

    ``plan="auto"`` chooses the cut, and goes on choosing (`adapt`): both sides are profiled for up to `budget_s` (what
    an earlier run kept counts) and the link is measured, which is told to `on_event`; `constraints` are what the plan
    keeps to. `watching` says how often the link is looked at. With the fallback ``"error"`` a connection that is lost
    stays lost: from then on all runs here.

    Raises ServerError and its kin if the server is not there or refuses, CutError for an unknown cut, UsageError for
    a codec that makes no sense, StorageError for the cache, RefusedError for the fallback ``"local"`` if the server
    does not hand the model out. Any number of threads may call `infer`.
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
        self._fallback, self._deadline_s = check_fallback(fallback), check_deadline(deadline_s)
        auto = _check_plan(plan, at, codec)
        if fallback != ERROR and not isinstance(address, str):
            raise UsageError(f"fallback {fallback} makes connections again: give an address, not a connection")
        self._tell = on_event
        self._engine = engine
        self._codec = codec
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._timeout_s, self._patience = timeout_s, patience
        self._dialled, self._security = (address, limits, checksum), security
        self._background: Background | None = None
        self._survivor: Survivor | None = None
        self._cuts: Cuts = None  # type: ignore[assignment]  # until the model is known
        self.adaptive: Adaptive | None = None
        """Who keeps the cut right, after `adapt`."""
        self.watchers: list[Watcher] = []
        """Told of all that happens to requests; added to and removed from at any time."""
        self.on_result: Callable[[Request, Result], None] | None = None
        """Told of every answer, with its request, as it is given to whoever asked, while there are watchers."""
        channel = self._connect(connect_s, lambda _: None)
        self._line = Line(channel, self._reconnect, patience, Random(seed), self._state_changed)
        try:
            self.info = choose_model(channel.welcome.models, model, model_hash)
            self._check_shared(model)
            channel.timeout_s = timeout_s
            channel.measure_clock()
            local = model if isinstance(model, Model) else None
            self._holding = Holding(self.info, local, lambda: self._line.channel, cache, on_event, on_progress)
            self.model = self._holding.model
            self._cuts = Cuts(self._holding, lambda: self._line.channel, self._engine_here, patience, on_event)
            self._here = Here(self._holding, self._engine_here, self._cuts.all)
            first = self._cut("cut:input" if auto else "cut:middle" if at is None else at)
            self._cuts.switch(first, self._codecs_at(first, codec))
            if fallback != ERROR:
                self._prepare_to_survive()
            if auto:
                known = planned(self, self._engine_here(), budget_s, constraints, cache, on_event)
                self.adapt(*known, watching)
        except BaseException:
            self.close()
            raise

    def _connect(self, timeout_s: float, greeting: Callable[[Connection], None]) -> Channel:
        address, limits, checksum = self._dialled
        security = self._security
        connection = connect(address, limits, timeout_s, security) if isinstance(address, str) else address
        greeting(connection)
        try:
            return Channel(
                connection, software=software(), timeout_s=timeout_s, checksum=checksum, token=security.token
            )
        except BaseException:
            connection.close()
            raise

    def _reconnect(self, greeting: Callable[[Connection], None]) -> Channel:
        """A new connection to the same model. ServerError, ModelError."""
        channel = self._connect(self._patience.greet_s, greeting)
        try:
            if self.info.fingerprint not in {m.fingerprint for m in channel.welcome.models}:
                raise ModelError(f"the server no longer has {self.info.name} {self.info.fingerprint[:12]}")
            channel.measure_clock()
        except BaseException:
            channel.close()
            raise
        channel.timeout_s = self._timeout_s
        return channel

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and frees what is compiled here."""
        self._closed.set()
        atexit.unregister(self.close)
        if self.adaptive is not None:
            self.adaptive.close()
        if self._survivor is not None:
            self._survivor.close()
        if self._background is not None:
            self._background.close()
        self._line.close()
        if self._cuts is not None:
            self._cuts.close()
        if self._survivor is not None:
            self._here.close()

    def _check_shared(self, model: Model | str | None) -> None:
        """RefusedError if the rest of the model can never be here, and is to be."""
        if self._fallback == LOCAL and not isinstance(model, Model) and self._channel.welcome.share != "model":
            shared = "only heads" if self._channel.welcome.share == "head" else "no models"
            raise RefusedError(
                f"this server hands out {shared}, so no request can be finished here: "
                "give the model's own file, or choose the fallback wait"
            )

    def _prepare_to_survive(self) -> None:
        """Readies what a request needs that the server lets down."""
        self._surviving()
        atexit.register(self.close)  # threads of ours must not run while the interpreter is taken apart
        if self._fallback == LOCAL and self._here.possible():
            self._here.prepare(self._cuts.current.placement)
        elif self._fallback == LOCAL:
            here, total = self._holding.amount()
            self._tell(Event("notice", _NOT_YET.format(size(here), size(total))))
            self._background = Background(self._holding, self._complete, self._tell)
        self._line.keep(self._cuts.reopen_current, self._cuts.reopen_all)

    def _complete(self) -> None:
        self._here.complete()
        self._here.prepare_soon(self._cuts.current.placement)

    def _surviving(self) -> Survivor:
        """Whoever answers requests that are watched, or that have a fallback."""
        found = self._survivor
        if found is None:
            with self._lock:
                if self._survivor is None:
                    self._line.attach(self._channel)
                    self._survivor = Survivor(
                        self._line, self._here, self._fallback, self._timeout_s, self.watchers, self._cuts.reopen
                    )
                found = self._survivor
        return found

    def _state_changed(self, state: str) -> None:
        if self._fallback != ERROR:
            if state == DOWN:
                self._tell(Event("notice", f"not asking the server for now: {self._line.why}"))
            elif state == UP:
                self._tell(Event("notice", "the server answers again"))
        tell(self.watchers, lambda w: w.state(state))

    # --- the server and its model -------------------------------------------------------------------------------

    @property
    def _channel(self) -> Channel:
        return self._line.channel

    @property
    def served(self) -> tuple[ModelInfo, ...]:
        """The models that the server has."""
        return self._channel.welcome.models

    @property
    def cut(self) -> Cut:
        """Where the model is cut now."""
        return self._cuts.current.placement.cut

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
        return self._holding.cache

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
    def clock_error_ms(self) -> float:
        """How well the server's clock is known now."""
        return self._channel.clock.error_s(perf_counter()) * 1e3

    @property
    def round_trip_ms(self) -> float:
        """The shortest of the recent pings."""
        return self._channel.clock.round_trip_s * 1e3

    def ping(self) -> float | None:
        """The seconds of a round trip to the server; None if none was made in time."""
        return self._channel.ping(self._patience.pong_s)

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse | None:
        """What `nbytes` over an idle link tell of it; None if no answer came within `timeout_s`."""
        channel = self._channel
        return glimpse(channel, lambda: channel.clock.offset_s, nbytes, timeout_s)

    def measure_link(self, budget_s: float = 3.0) -> Link:
        """The link to the server, measured by sending over it (`splitpoint.runtime.probe`). ServerError if it ends."""
        return measure_link(self._channel, budget_s)

    def profile_server(self, budget_s: float = 60.0, fresh: bool = False) -> Profile:
        """What every cut costs on the server, which measures itself for up to `budget_s` (less, if it says so).

        It keeps the result: asking again costs nothing, unless with `fresh` or, if it did not get to the end, with a
        larger budget. Who asks while it measures this model for someone gets the same; while it has too many others
        to measure, it is asked again for a while, which `on_event` is told of. RefusedError if it does not measure
        itself or has nothing to say of it, BusyError if it stays busy, ServerError if it fails, InputError for a
        profile that makes no sense.
        """
        return ask_profile(self._channel, self.info, budget_s, self._closed, self._tell, fresh=fresh)

    def pull(self, at: str | int | Cut | None = None) -> int:
        """Fetches the weights of the head at `at`, or of the whole model, into the cache; returns bytes fetched.

        With the whole model requests can be finished here from then on, if that is the fallback. ServerError if the
        server does not hand them out; StorageError for the cache.
        """
        holding = self._holding
        if holding.local:
            return 0
        heads_only = self._channel.welcome.share == "head"
        if at is None:
            if heads_only:
                raise ServerError("this server only hands out heads, not the whole model: give --at CUT")
            fetched = holding.pull(tuple(self.model.blobs))
            if self._fallback == LOCAL:
                self._complete()
            return fetched
        cut = self._cut(at)
        wanted = self.model.head(cut).blobs
        if not heads_only or cut in self._cuts or holding.has(wanted):
            return holding.pull(wanted)
        asked = self._cuts.ask_for_tail(cut)
        if asked is None:
            return holding.pull(wanted)
        opened, _ = self._channel.expect(asked, wire.Opened, COMPILE_S)
        try:
            return holding.pull(wanted)
        finally:
            with suppress(ServerError):  # if the connection has ended, so has the tail
                self._channel.tell(Kind.CLOSE, wire.Close(opened.segment))

    # --- cuts ---------------------------------------------------------------------------------------------------

    def warm(self, at: str | int | Cut, codec: CodecChoice | None = None) -> Cut:
        """Makes the cut `at` ready, head here and tail there, without switching to it."""
        return self._route(self._cut(at), codec).placement.cut

    def switch(
        self, at: str | int | Cut, codec: CodecChoice | None = None, *, predicted_ms: float | None = None
    ) -> Cut:
        """Cuts at `at` from the next request on. A cut that is ready (`warm`, or used before) costs < 1 ms.

        Without `codec` tensors travel as before; those that it gave to tensors by name go on while these cross.
        Another codec compiles nothing. `predicted_ms` is what a request is expected to take there: what takes
        much longer is late. Without it that is learned.
        """
        cut = self._cut(at)
        route = self._cuts.switch(cut, self._codecs_at(cut, codec))
        if codec is not None:
            self._codec = codec
        route.placement.waits.told_s = (predicted_ms or 0.0) / 1e3
        if self._fallback == LOCAL and self._here.possible():
            self._here.prepare_soon(route.placement)
        return cut

    def forget(self, at: str | int | Cut | None = None) -> None:
        """Frees the compiled halves of `at`, or of every cut but the current one, here and on the server."""
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

    def _engine_here(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine()
        return self._engine

    # --- adapting -----------------------------------------------------------------------------------------------

    def adapt(self, planner: Planner, link: Link, watching: Watching | None = None) -> Adaptive:
        """Cuts as `planner` says for `link`, and from then on for link, load and device as they are seen to be.

        The next likely cuts are made ready in the background, and a switch happens between two requests; each is told
        to `on_event` ("switched") and is in `switches`. Called again, it begins anew.
        """
        if self.adaptive is not None:
            self.adaptive.close()
        if self._fallback != LOCAL and not self._holding.local and self._channel.welcome.share == "model":
            self._background = self._background or Background(self._holding, self._here.complete, self._tell)
        self.adaptive = Adaptive(self, planner, link, watching, on_event=self._tell)
        atexit.register(self.close)  # threads of ours must not run while the interpreter is taken apart
        self.adaptive.start()
        return self.adaptive

    @property
    def switches(self) -> Sequence[Switch]:
        """What `adapt` has switched so far."""
        return tuple(self.adaptive.switches) if self.adaptive is not None else ()

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        return self._here.possible() or self._cuts.holds(cut)

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
        limit_s = self._deadline_s if deadline_s is None else check_deadline(deadline_s)
        request = _request(inputs)
        route = None if at is None else self._route(self._cut(at), codec)
        flags = wire.PIPELINED if more else 0
        if self._fallback == ERROR and not self.watchers:
            return plain.finish(plain.send(plain.begin(route or self._cuts.current, request, limit_s, flags)))
        survivor = self._surviving()
        return self._survived(survivor.send(survivor.begin(self._held(route), request, limit_s, flags)))

    def stream(self, items: Iterable[Inputs], *, window: int = 4, deadline_s: float | None = None) -> Iterator[Result]:
        """Results of `items` in order, with up to `window` of them under way at once.

        While one is at the server and another on the wire, the head of the next computes and the one after it is
        taken from `items`, each in a thread of its own. An exception, the caller's included, ends all of it; results
        before it are delivered first.
        """
        if window < 1:
            raise UsageError(f"a stream needs a window of at least 1, not {window}")
        limit_s = self._deadline_s if deadline_s is None else check_deadline(deadline_s)
        window = max(1, min(window, self._channel.welcome.limits.get("in_flight", window)))
        flags = wire.PIPELINED if window > 1 else 0
        if self._fallback == ERROR and not self.watchers:

            def begin(item: Inputs) -> plain.Sent:
                return plain.begin(self._cuts.current, _request(item), limit_s, flags)

            return stream(items, (begin, plain.send, plain.finish), plain.abandon, window)
        survivor = self._surviving()

        def hold(item: Inputs) -> Ticket:
            return survivor.begin(self._held(), _request(item), limit_s, flags)

        return stream(items, (hold, survivor.send, self._survived), survivor.abandon, window)

    def shadow(self, inputs: Inputs, at: str | int | Cut, codec: CodecChoice | None = None) -> bool:
        """Sends a request over the cut `at`, which is warm, beside the others; only `watchers` hear of its answer.

        Nothing is sent while the last one has no answer yet, or the link is down, or the server has not opened the cut
        again after that: False says that none is under way. UsageError if the cut is not warm.
        """
        cut = self._cut(at)
        if cut not in self._cuts:
            raise UsageError(f"{cut.name} is not warm: nothing is compiled for a request that nobody waits for")
        route = self._route(cut, codec)
        if not route.placement.remote or not route.placement.hold():
            return False
        return self._surviving().shadow(route, _request(inputs))

    def _held(self, wanted: Route | None = None) -> Route:
        """The current route (or `wanted`), whose halves are kept until the request is answered."""
        while not (route := wanted or self._cuts.current).placement.hold():
            if self._closed.is_set():
                raise ServerError("the connection is closed")
            if wanted is not None:
                raise UsageError(f"{route.placement.cut.name} was forgotten while a request was to use it")
        return route

    def _survived(self, ticket: Ticket) -> Result:
        try:
            result = self._surviving().finish(ticket)
        finally:
            if self._background is not None:
                self._background.start()
        if self.on_result is not None:
            self.on_result(ticket.request, result)
        return result


def _check_plan(plan: str, at: object, codec: CodecChoice) -> bool:
    """Whether the edge plans by itself. UsageError for what makes no sense."""
    if plan not in ("", "auto"):
        raise UsageError(f'plan is "auto" or nothing, not {plan}: to cut as a Plan says, give at and codec')
    if plan and (at is not None or codec != "raw"):
        raise UsageError('with plan="auto" the cut and its codecs are the planner\'s choice: at and codec say nothing')
    return plan == "auto"


def _request(inputs: Inputs) -> Request:
    return inputs if isinstance(inputs, Request) else Request(inputs)
