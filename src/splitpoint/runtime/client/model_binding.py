"""What an edge has of one model of one server: its files, its ready cuts, its connection, and whoever finishes here. A
newer model of the same name, which the edge goes over to when the server has one, gets a new one of these.

None of it refers to the edge: one that is forgotten can be collected although threads of this are still running.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from time import monotonic

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import Engine
from splitpoint.errors import BusyError, ModelError, RefusedError, ServerError, SplitpointError, UnreachableError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.circuit_breaker import DOWN, UP, LinkState
from splitpoint.runtime.client import Abortable, Remote, RemoteProvider
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.edge_settings import At, FindCalibration, ModelPolicy
from splitpoint.runtime.client.held_tables import HeldTables
from splitpoint.runtime.client.held_weights import Background, Holding
from splitpoint.runtime.client.local_tail import LocalTails
from splitpoint.runtime.client.ready_cuts import Cuts, Route
from splitpoint.runtime.client.reconnect import REFUSALS, AbsentRemote, Line, gone
from splitpoint.runtime.client.request import ERROR, LOCAL, WAIT, Fallback, RequestRunner
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.codec_choice import UNBOUNDED, CodecChoice, FrameBudget
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.model_choice import choose_model, info_of, missing
from splitpoint.runtime.result import Watcher, tell
from splitpoint.runtime.threads import Jobs, begin
from splitpoint.text import listed
from splitpoint.units import size
from splitpoint.wire import SAID, ModelInfo, TensorInfo

#: How often whoever waits for requests to end looks.
_LOOK_S = 0.05
#: What `fallback` there is while nothing is fetched for it.
_NOT_YET = "no local fallback yet ({} of {} here): until the rest is, a request waits for the server"


class Means(msgspec.Struct, frozen=True):
    """What an edge brings to every model: see `Edge`. `engine` opens the device's engine at its first use; `arrived` is
    called when the server is there (again), `changed` when it is there with other models."""

    provider: RemoteProvider
    engine: Callable[[], Engine]
    fallback: Fallback
    patience: Patience
    models: ModelPolicy
    cache: Path | None
    watchers: list[Watcher]
    tell: OnEvent
    progress: Callable[[int, int], None] | None
    arrived: Callable[[], None]
    changed: Callable[[Sequence[ModelInfo]], None]
    calibration: Calibration | FindCalibration | None = None
    """This device's own."""
    budget: FrameBudget = UNBOUNDED
    fits: Callable[[float], float] = lambda left_s: inf
    """How many bytes may go up for an answer in so many seconds, as the link is believed to be."""


class Binding:
    """`info` is the model, `local` if it is here; `remote` is the connection, or stands in for an absent server, and is
    not closed if this cannot be made."""

    def __init__(self, means: Means, remote: Remote, info: ModelInfo, local: Model | None, why: str = "") -> None:
        self.means, self.info = means, info
        tell, patience = means.tell, means.patience
        self.line = line = Line(
            remote,
            self._dial,
            patience,
            self._state_changed,
            lambda: self.cuts.current.placement.times.predicted_s,
            why,
        )
        self.background: Background | None = None
        self.following = False
        """Whether a newer model is on its way: who waits for the server waits for that."""
        self.follow_failed: SplitpointError | None = None
        self._missed = why
        self._early = remote.ended
        self.holding = holding = Holding(
            info, local, lambda: line.remote.channel(), means.cache, tell, means.progress, means.models.allow_domains
        )  # fmt: skip
        self.local = LocalTails(holding, means.engine, lambda: self.cuts.all())
        alone = self.local.possible if means.fallback == LOCAL else lambda: False
        own = means.calibration(holding.model) if callable(means.calibration) else means.calibration
        tables = HeldTables(holding, own, tell, means.budget)
        self.cuts = Cuts(holding, lambda: line.remote, means.engine, patience, tell, alone, tables)
        self.requests = RequestRunner(
            line, self.local, means.fallback, means.watchers, self.cuts.reopen, self._refused,
            answer_s=patience.answer_s, longest_s=patience.longest_pause_s, budget=means.budget, fits=means.fits,
        )  # fmt: skip

    @property
    def model(self) -> Model:
        """The model, or its graph with weights that are fetched when they are needed."""
        return self.holding.model

    def survive(self) -> None:
        """Readies what a request needs that the server lets down, and makes a lost connection again."""
        means, placement = self.means, self.cuts.current.placement
        if means.fallback == LOCAL and self.local.possible():
            self.local.prepare(placement)
        elif means.fallback == LOCAL:
            here, total = self.holding.amount()
            means.tell(Event("notice", _NOT_YET.format(size(here), size(total)), {"here": here, "nbytes": total}))
            self._fetch_behind(self.complete)
        self.line.keep(self.cuts.reopen_current, self._rest)
        if placement.remote and placement.remote_tail is None:
            self.line.lost(self.line.remote, self.line.why or "the server has not opened this cut yet")

    def fetch_behind(self) -> None:
        """Has all weights fetched in the background, if that is not done already: any cut may be next."""
        if self.means.fallback != LOCAL and not self.holding.local and self.line.remote.offer.share == "model":
            self._fetch_behind(self.local.complete)

    def fetch_first(self, cut: Cut) -> int:
        """Has what the head at `cut` needs fetched before other weights; how many bytes of that are missing."""
        if self.holding.local:
            return 0
        wanted = self.model.head(cut).blobs
        if self.background is not None:
            self.background.first(wanted)
        return sum(nbytes for _, nbytes in self.holding.missing(wanted))

    def _fetch_behind(self, done: Callable[[], None]) -> None:
        if self.background is None:
            self.background = Background(self.holding, done, self.means.tell, self.requests)
            self.requests.then(self.background.start)

    def complete(self) -> None:
        """All weights are here now."""
        self.local.complete()
        self.local.prepare_soon(self.cuts.current.placement)

    def begin_following(self) -> bool:
        """Whether a newer model is to be gone over to now: it is not on its way already, and was not refused."""
        if self.following or self.follow_failed is not None:
            return False
        self.following = True
        return True

    def stop_following(self, refusal: SplitpointError | None) -> None:
        """It cannot be had, now, or, because of `refusal`, ever."""
        self.following, self.follow_failed = False, refusal

    def _refused(self) -> SplitpointError | None:
        if self.requests.replaced:  # a request begins again with that one
            return ServerError("the edge has gone over to another model")
        refusal = self.follow_failed or self.line.refusal
        return None if self.following or refusal is None else type(refusal)(str(refusal))

    def _state_changed(self, state: LinkState) -> None:
        if self.means.fallback != ERROR and not self.requests.replaced:
            if state == DOWN:
                why = self.line.why
                self.means.tell(Event("notice", f"not asking the server for now: {why}", {"why": why}))
            elif state == UP:
                first, self._early = self._early, False
                text = "the server is there: requests go to it" if first else "the server answers again"
                self.means.tell(Event("notice", text))
        tell(self.means.watchers, lambda w: w.state(state))

    def _rest(self, remote: Remote) -> None:
        self.cuts.reopen_all(remote)
        self.means.arrived()

    def _dial(self, greeting: Callable[[Abortable], None]) -> Remote:
        """A new connection to the same model. ServerError, ModelError."""
        means = self.means
        remote = means.provider.connect(means.patience.greet_s, greeting)
        try:
            models = remote.offer.models
            if self.info.fingerprint not in {m.fingerprint for m in models}:
                raise self._gone(models)
        except BaseException:
            remote.close()
            raise
        self._missed, self.follow_failed = "", None
        return remote

    def _gone(self, models: Sequence[ModelInfo]) -> ModelError:
        """The error for a server that is there without the model; told once."""
        name, fingerprint = self.info.name, self.info.fingerprint[:12]
        newer = next((m for m in models if m.name == name), None)
        others = f"{name} {newer.fingerprint[:12]}" if newer else ", ".join(m.name for m in models[:5]) or "no model"
        text = f"the server no longer has {name} {fingerprint}: it has {others}"
        if newer is not None and not self.means.models.follow:
            text += " now (--follow-model, or ModelPolicy(follow=True), goes over to that)"
        if not self.line.connections:
            text = missing(models, self.model)
        if text != self._missed:
            self._missed, self.follow_failed = text, None
            fields = {"model": name, "fingerprint": self.info.fingerprint, "now": newer.fingerprint if newer else ""}
            self.means.tell(Event("changed", text, fields))
        self.means.changed(models)
        return ModelError(text)

    def leave(self) -> None:
        """Another model takes its place: requests that wait for the server go there, others are finished here."""
        self.requests.replace()
        if self.background is not None:
            self.background.close()
        self.line.close("the edge has gone over to another model")

    def close(self, why: str = CLOSED) -> None:
        """Ends the connection, the threads, and every request, and frees what is compiled here."""
        self.requests.close()
        if self.background is not None:
            self.background.close()
        self.line.close(why)
        self.cuts.close()
        self.local.close()


def same_ends(old: ModelInfo, new: ModelInfo) -> None:
    """ModelError unless what a model takes and gives is the same in both."""
    for what, before, now in (("inputs", old.inputs, new.inputs), ("outputs", old.outputs, new.outputs)):
        if _shapes(before) != _shapes(now):
            raise ModelError(
                f"{new.name} {new.fingerprint[:12]} has other {what} ({listed(t.spec() for t in now)}) than "
                f"{old.fingerprint[:12]} ({listed(t.spec() for t in before)}): begin anew with it"
            )


def _shapes(tensors: Sequence[TensorInfo]) -> list[tuple[object, ...]]:
    """Names, types and sizes; what a free dimension is called says nothing."""
    return [(t.name, t.dtype, *(n if isinstance(n, int) else "free" for n in t.shape)) for t in tensors]


class Followed:
    """`binding` is what requests are begun with, `model` the model in it as its inputs are made here.

    `wanted` says which model, `codec` how tensors travel where nothing else is said; `jobs` does what takes long. For
    the first connection see `first_remote`.
    """

    def __init__(
        self, means: Means, wanted: Model | str | None, jobs: Jobs, codec: CodecChoice, *, deadline_s: float,
        untold: bool,
    ) -> None:  # fmt: skip
        self._means, self._jobs, self._codec = means, jobs, codec
        self._old: list[Binding] = []
        self._prepare: Callable[[Model], Model] = lambda model: model
        local = wanted if isinstance(wanted, Model) else None
        if local is not None:
            choose_model((info_of(local),), local, means.models.pinned)  # pinned to another: that is no server's doing
        remote, why = first_remote(
            means.provider, means.fallback, means.patience, local, means.tell, deadline_s=deadline_s,
            pause=jobs.closed.wait, untold=untold,
        )  # fmt: skip
        try:
            served = remote.offer.models if not remote.ended or local is None else (info_of(local),)
            info = choose_model(served, wanted, means.models.pinned)
            self._check_shared(remote, local)
            self.binding = Binding(means, remote, info, local, why)
        except BaseException:
            remote.close()
            raise
        self.model = self.binding.model

    def prepare(self, how: Callable[[Model], Model]) -> None:
        """From now on the model, and one that follows it, is `how` of what it was."""
        before = self._prepare
        self._prepare = lambda model: how(before(model))
        self.model = how(self.model)

    def changed(self, models: Sequence[ModelInfo], leaving: Callable[[], None], arrived: Callable[[], None]) -> None:
        """The server has these models, and not this one. `leaving` is called before another one takes its place, and
        `arrived` when it has."""
        binding = self.binding
        if self._means.models.follow and any(m.name == binding.info.name for m in models) and binding.begin_following():
            self._jobs.add(partial(self._follow, binding, leaving, arrived))

    @property
    def under_way(self) -> int:
        """How many requests have neither been answered nor failed yet."""
        return sum(binding.requests.under_way for binding in (self.binding, *self._old))

    def cut(self, at: At) -> Cut:
        """A cut of the model."""
        return at if isinstance(at, Cut) else self.model.graph.cut(at)

    def route(self, binding: Binding, at: At, codec: CodecChoice | None, *, hurry: bool = False) -> Route:
        """A cut of `binding`, made ready (`Cuts.route`), with tensors that travel as `codec` says, or as always."""
        cut = self.cut(at)
        return binding.cuts.route(cut, self._codecs_at(cut, codec), hurry=hurry)

    def switch(self, at: At, codec: CodecChoice | None) -> Route:
        """Makes a cut ready, and what the next request goes through; another `codec` is kept for those that follow."""
        cut = self.cut(at)
        route = self.binding.cuts.switch(cut, self._codecs_at(cut, codec))
        if codec is not None:
            self._codec = codec
        return route

    def _codecs_at(self, cut: Cut, codec: CodecChoice | None = None) -> CodecChoice:
        """`codec`, or what of our own is for tensors that cross at `cut`."""
        if codec is not None or isinstance(self._codec, str):
            return self._codec if codec is None else codec
        crossing = {t.name for t in cut.crossing}
        return {name: one for name, one in self._codec.items() if name in crossing}

    def close(self, why: str) -> None:
        """Ends the binding, and those that are about to end."""
        for binding in (self.binding, *self._old):
            binding.close(why)

    def _check_shared(self, remote: Remote, local: Model | None) -> None:
        """RefusedError if the rest of the model can never be here, and is to be."""
        share = remote.offer.share
        if self._means.fallback == LOCAL and local is None and share != "model":
            shared = "only a head" if share == "head" else "no models"
            raise RefusedError(
                f"this server hands out {shared}, so no request can be finished here: "
                "give the model's own file, or choose the fallback wait"
            )

    def _follow(self, old: Binding, leaving: Callable[[], None], arrived: Callable[[], None]) -> None:
        """Goes over to the newer model of the same name: between two requests, when all is ready for it."""
        try:
            new = self._bound_anew(old)
        except BaseException as exc:  # what is no refusal is tried again when the server is
            old.stop_following(exc if isinstance(exc, REFUSALS) else None)
            raise
        leaving()
        self._old.append(old)
        self.binding, self.model = new, self._prepare(new.model)
        old.leave()
        info, before, cut = new.info, old.info, new.cuts.current.placement.cut.name
        fingerprints = f"{info.fingerprint[:12]} instead of {before.fingerprint[:12]}"
        said = f"following {info.name}: {fingerprints} from now on, cut at {cut}"
        fields = {"model": info.name, "fingerprint": info.fingerprint, "before": before.fingerprint, "cut": cut}
        self._means.tell(Event("changed", said, fields))
        while old.requests.under_way and not self._jobs.closed.wait(_LOOK_S):
            pass
        old.close()
        with suppress(ValueError):
            self._old.remove(old)
        arrived()

    def _bound_anew(self, old: Binding) -> Binding:
        """The newer model of the same name, as ready as `old` is."""
        means = self._means
        if isinstance(means.calibration, Calibration):
            means = msgspec.structs.replace(means, calibration=None)
            means.tell(
                Event("notice", f"the calibration given here is of the {old.info.name} before: not used any more")
            )
        with ExitStack() as undo:
            remote = means.provider.connect(means.patience.greet_s)
            undo.callback(remote.close)
            info = choose_model(remote.offer.models, old.info.name, None)
            same_ends(old.info, info)
            self._check_shared(remote, None)
            new = Binding(means, remote, info, None)
            undo.callback(new.close)
            cut = new.model.graph.cut(old.cuts.current.placement.cut.name)
            if means.fallback == LOCAL and old.local.possible():  # no answer is to wait for what is not here yet
                new.holding.pull(tuple(new.model.blobs))
                new.local.complete()
            new.cuts.switch(cut, self._codecs_at(cut))
            new.survive()
            undo.pop_all()
        return new


def first_remote(
    provider: RemoteProvider, fallback: Fallback, patience: Patience, local: Model | None, tell: OnEvent,
    *, deadline_s: float, pause: Callable[[float], bool], untold: bool,
) -> tuple[Remote, str]:  # fmt: skip
    """The server; or, where requests are answered without it, a stand-in and why it is not there. ServerError and kin.

    With the fallback ``wait`` it is waited for until `deadline_s` (0: for ever). `pause` sleeps, and says whether to
    give up. With ``local`` and a `local` model, one that refuses is done without, too: with a RuntimeWarning if
    `untold`, as nobody hears `tell`.
    """
    if fallback == ERROR or patience.need_server:
        return provider.connect(patience.connect_s), ""
    if fallback == WAIT:
        return wait_for(provider, patience, tell, within_s=deadline_s or float("inf"), pause=pause), ""
    if local is None:
        try:
            return _connect_in_time(provider, patience.connect_s), ""
        except (UnreachableError, BusyError) as exc:
            raise ServerError(
                f"{exc}; and nothing can be answered here without the model's own file: give that, or choose the "
                "fallback wait"
            ) from exc
    remote: Remote | None = None
    try:
        remote = _connect_in_time(provider, patience.connect_s)
        choose_model(remote.offer.models, local, None)
    except SAID as exc:
        if remote is not None:
            remote.close()
        refused = isinstance(exc, REFUSALS)
        text = f"{exc}; until {'that is mended' if refused else 'it is there'}, requests are answered here"
        tell(Event("notice", text, {"why": str(exc)}))
        if refused and untold:
            warnings.warn(text, RuntimeWarning, stacklevel=4)  # it stands where the edge is made
        return AbsentRemote(provider.address, exc), gone(exc, met=False)
    return remote, ""


def wait_for(
    provider: RemoteProvider, patience: Patience, tell: OnEvent, *, within_s: float, pause: Callable[[float], bool]
) -> Remote:
    """The server, as soon as it is there: within `within_s`. `pause` sleeps, and says whether to give up."""
    end, random, pause_s, told = monotonic() + within_s, Random(patience.seed), patience.pause_s, False
    while True:
        try:
            return provider.connect(patience.connect_s)
        except (UnreachableError, BusyError) as exc:
            left_s = end - monotonic()
            if left_s <= 0:
                raise
            if not told:
                told = True
                tell(Event("notice", f"{exc}; waiting for it", {"why": str(exc)}))
            if pause(min(left_s, random.uniform(0, pause_s))):
                raise ServerError(CLOSED) from exc
            pause_s = min(2 * pause_s, patience.longest_pause_s)


def _connect_in_time(provider: RemoteProvider, connect_s: float) -> Remote:
    """A connection within `connect_s`, also where looking the name up takes longer. ServerError and its kin."""
    came: SimpleQueue[Remote | BaseException] = SimpleQueue()
    late = threading.Event()

    def work() -> None:
        try:
            remote = provider.connect(connect_s)
        except BaseException as exc:
            came.put(exc)
            return
        came.put(remote)
        if late.is_set():
            remote.close()

    begin(threading.Thread(target=work, name="first connection", daemon=True))
    try:
        outcome = came.get(timeout=connect_s)
    except Empty:
        late.set()
        with suppress(Empty):  # it came at the last moment
            last = came.get_nowait()
            if not isinstance(last, BaseException):
                last.close()
        raise UnreachableError(f"no answer from {provider.address} in {connect_s:g} s") from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
