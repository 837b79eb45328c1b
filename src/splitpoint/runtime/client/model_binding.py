"""What an edge has of one model of one server: its files, its ready cuts, its connection, and whoever finishes here.

An edge that goes over to a newer model gets a new one of these. None of it refers to the edge, so that an edge that is
forgotten can be collected although threads of this are still running.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from time import monotonic

import msgspec

from splitpoint.engines import Engine
from splitpoint.errors import BusyError, ModelError, ServerError, SplitpointError, UnreachableError
from splitpoint.models.model import Model
from splitpoint.runtime.circuit_breaker import DOWN, UP
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.held_weights import Background, Holding
from splitpoint.runtime.client.local_tail import Here
from splitpoint.runtime.client.ready_cuts import Cuts
from splitpoint.runtime.client.reconnect import Line
from splitpoint.runtime.client.request import ERROR, LOCAL, Moved, Survivor
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event, OnEvent, software
from splitpoint.runtime.model_choice import missing
from splitpoint.runtime.watcher import Watcher, tell
from splitpoint.security import Security
from splitpoint.text import listed
from splitpoint.transports import Connection, connect
from splitpoint.units import size
from splitpoint.wire import Limits, ModelInfo, TensorInfo

#: What `fallback` there is while nothing is fetched for it.
_NOT_YET = "no local fallback yet ({} of {} here): until the rest is, a request waits for the server"


class Dialler(msgspec.Struct, frozen=True):
    """How the server is reached: everything that a connection to it needs."""

    address: str | Connection
    limits: Limits | None
    checksum: bool
    security: Security

    def __call__(self, timeout_s: float, greeting: Callable[[Connection], None] = lambda _: None) -> Channel:
        """A new connection that has been greeted; `greeting` is told before. ServerError and its kin."""
        address = self.address
        made = connect(address, self.limits, timeout_s, self.security) if isinstance(address, str) else address
        greeting(made)
        try:
            return Channel(
                made, software=software(), timeout_s=timeout_s, checksum=self.checksum, token=self.security.token
            )
        except BaseException:
            made.close()
            raise


class Means(msgspec.Struct, frozen=True):
    """What an edge brings to every model: see `Edge`. `engine` opens the device's engine at its first use.

    `follows`: a newer model of that name takes the place of the old one. `arrived` is called when the server is there
    (again); `changed`, with what it has, when it is there without the model. `allowed` are operator domains.
    """

    dial: Dialler
    engine: Callable[[], Engine]
    fallback: str
    timeout_s: float
    patience: Patience
    seed: int | None
    cache: Path | None
    watchers: list[Watcher]
    tell: OnEvent
    progress: Callable[[int, int], None] | None
    follows: bool
    arrived: Callable[[], None]
    changed: Callable[[Sequence[ModelInfo]], None]
    allowed: Collection[str] = ()


class Binding:
    """`info` is the model, `local` if it is here; `channel` is the connection, or that to a server that is absent."""

    def __init__(self, means: Means, channel: Channel, info: ModelInfo, local: Model | None, why: str = "") -> None:
        self.means, self.info = means, info
        tell, patience = means.tell, means.patience
        self.line = line = Line(channel, self._dial, patience, Random(means.seed), self._state_changed)
        line.why = why
        self.survivor: Survivor | None = None
        self.background: Background | None = None
        self.following = False
        """Whether a newer model is on its way: who waits for the server waits for that."""
        self.follow_failed: SplitpointError | None = None
        self.replaced = False
        self._missed = why
        self._early = channel.ended
        self._cuts: Cuts | None = None
        try:
            self.holding = holding = Holding(
                info, local, lambda: line.channel, means.cache, tell, means.progress, means.allowed
            )
            self.cuts = self._cuts = Cuts(holding, lambda: line.channel, means.engine, patience, tell)
            self.here = Here(holding, means.engine, self.cuts.all)
        except BaseException:
            self.close()
            raise
        if means.fallback == LOCAL:
            self.cuts.alone = self.here.possible

    @property
    def model(self) -> Model:
        """The model, or its graph with weights that are fetched when they are needed."""
        return self.holding.model

    # --- surviving ----------------------------------------------------------------------------------------------

    def survive(self) -> None:
        """Readies what a request needs that the server lets down, and makes a lost connection again."""
        means = self.means
        self.surviving()
        if means.fallback == LOCAL and self.here.possible():
            self.here.prepare(self.cuts.current.placement)
        elif means.fallback == LOCAL:
            here, total = self.holding.amount()
            means.tell(Event("notice", _NOT_YET.format(size(here), size(total))))
            self.background = Background(self.holding, self.complete, means.tell)
        self.line.keep(self.cuts.reopen_current, self._rest)
        current = self.cuts.current.placement
        if current.remote and current.far is None:
            self.line.lost(self.line.channel, self.line.why or "the server has not opened this cut yet")

    def surviving(self) -> Survivor:
        """Whoever answers requests that are watched, or that have a fallback. Called by one at a time."""
        if self.survivor is None:
            self.line.attach(self.line.channel)
            self.survivor = Survivor(
                self.line, self.here, self.means.fallback, self.means.timeout_s, self.means.watchers, self.cuts.reopen,
                self._refused, self.means.patience.longest_pause_s,
            )  # fmt: skip
        return self.survivor

    def complete(self) -> None:
        """All weights are here now."""
        self.here.complete()
        self.here.prepare_soon(self.cuts.current.placement)

    def _refused(self) -> SplitpointError | None:
        if self.replaced:
            return Moved("the edge has gone over to another model")
        refusal = self.follow_failed or self.line.refusal
        return None if self.following or refusal is None else type(refusal)(str(refusal))

    def _state_changed(self, state: str) -> None:
        if self.means.fallback != ERROR and not self.replaced:
            if state == DOWN:
                self.means.tell(Event("notice", f"not asking the server for now: {self.line.why}"))
            elif state == UP:
                first, self._early = self._early, False
                text = "the server is there: requests go to it" if first else "the server answers again"
                self.means.tell(Event("notice", text))
        tell(self.means.watchers, lambda w: w.state(state))

    def _rest(self, channel: Channel) -> None:
        self.cuts.reopen_all(channel)
        self.means.arrived()

    # --- the connection -----------------------------------------------------------------------------------------

    def _dial(self, greeting: Callable[[Connection], None]) -> Channel:
        """A new connection to the same model. ServerError, ModelError."""
        means = self.means
        channel = means.dial(means.patience.greet_s, greeting)
        try:
            models = channel.welcome.models
            if self.info.fingerprint not in {m.fingerprint for m in models}:
                raise self._gone(models)
            self._missed, self.follow_failed = "", None
            channel.measure_clock()
        except BaseException:
            channel.close()
            raise
        channel.timeout_s = means.timeout_s
        return channel

    def _gone(self, models: Sequence[ModelInfo]) -> ModelError:
        """The error for a server that is there without the model; told once."""
        name, fingerprint = self.info.name, self.info.fingerprint[:12]
        newer = next((m for m in models if m.name == name), None)
        others = f"{name} {newer.fingerprint[:12]}" if newer else ", ".join(m.name for m in models[:5]) or "no model"
        text = f"the server no longer has {name} {fingerprint}: it has {others}"
        if newer is not None and not self.means.follows:
            text += " now (--follow-model, or follow_model=True, goes over to that)"
        if not self.line.met:
            text = missing(models, self.model)
        if text != self._missed:
            self._missed, self.follow_failed = text, None
            self.means.tell(Event("changed", text))
        self.means.changed(models)
        return ModelError(text)

    # --- the end ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Another model takes its place: requests that wait for the server go there, others are finished here."""
        self.replaced = True
        if self.background is not None:
            self.background.close()
        self.line.close("the edge has gone over to another model")

    def close(self, why: str = CLOSED) -> None:
        """Ends the connection, the threads, and every request, and frees what is compiled here."""
        if self.survivor is not None:
            self.survivor.close()
        if self.background is not None:
            self.background.close()
        self.line.close(why)
        if self._cuts is not None:
            self._cuts.close()
            self.here.close()


def reach(means: Means, timeout_s: float, *, wait_s: float, pause: Callable[[float], bool]) -> Channel:
    """The server, as soon as it is there: within `wait_s`. `pause` sleeps, and says whether to give up."""
    end, random, pause_s, told = monotonic() + wait_s, Random(means.seed), means.patience.pause_s, False
    while True:
        try:
            return means.dial(timeout_s)
        except (UnreachableError, BusyError) as exc:
            left_s = end - monotonic()
            if left_s <= 0:
                raise
            if not told:
                told = True
                means.tell(Event("notice", f"{exc}; waiting for it"))
            if pause(min(left_s, random.uniform(0, pause_s))):
                raise ServerError(CLOSED) from exc
            pause_s = min(2 * pause_s, means.patience.longest_pause_s)


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
