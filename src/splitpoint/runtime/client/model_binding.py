"""What an edge has of one model of one server: its files, its ready cuts, its connection, and whoever finishes here.

An edge that goes over to a newer model gets a new one of these. None of it refers to the edge, so that an edge that is
forgotten can be collected although threads of this are still running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from splitpoint.engines import Engine
from splitpoint.errors import ModelError, ServerError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.runtime.circuit_breaker import DOWN, UP, LinkState
from splitpoint.runtime.client import Abortable, Remote, RemoteProvider
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.held_weights import Background, Holding
from splitpoint.runtime.client.local_tail import LocalTails
from splitpoint.runtime.client.ready_cuts import Cuts
from splitpoint.runtime.client.reconnect import Line
from splitpoint.runtime.client.request import ERROR, LOCAL, Fallback, RequestRunner
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.model_choice import missing
from splitpoint.runtime.watcher import Watcher, tell
from splitpoint.text import listed
from splitpoint.units import size
from splitpoint.wire import ModelInfo, TensorInfo

#: What `fallback` there is while nothing is fetched for it.
_NOT_YET = "no local fallback yet ({} of {} here): until the rest is, a request waits for the server"


class Means(msgspec.Struct, frozen=True):
    """What an edge brings to every model: see `Edge`. `engine` opens the device's engine at its first use.

    `arrived` is called when the server is there (again); `changed`, with what it has, when it is there without the
    model.
    """

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


class Binding:
    """`info` is the model, `local` if it is here; `remote` is the connection, or stands in for an absent server."""

    def __init__(self, means: Means, remote: Remote, info: ModelInfo, local: Model | None, why: str = "") -> None:
        self.means, self.info = means, info
        tell, patience = means.tell, means.patience
        self.line = line = Line(remote, self._dial, patience, self._state_changed, self._predicted_s, why)
        self.background: Background | None = None
        self.following = False
        """Whether a newer model is on its way: who waits for the server waits for that."""
        self.follow_failed: SplitpointError | None = None
        self._missed = why
        self._early = remote.ended
        try:
            self.holding = holding = Holding(
                info, local, lambda: line.remote.channel(), means.cache, tell, means.progress,
                means.models.allow_domains,
            )  # fmt: skip
        except BaseException:
            line.close()
            raise
        self.local = LocalTails(holding, means.engine, lambda: self.cuts.all())
        alone = self.local.possible if means.fallback == LOCAL else lambda: False
        self.cuts = Cuts(holding, lambda: line.remote, means.engine, patience, tell, alone)
        self.requests = RequestRunner(
            line, self.local, means.fallback, means.watchers, self.cuts.reopen, self._refused,
            answer_s=patience.answer_s, longest_s=patience.longest_pause_s,
        )  # fmt: skip

    @property
    def model(self) -> Model:
        """The model, or its graph with weights that are fetched when they are needed."""
        return self.holding.model

    # --- surviving ----------------------------------------------------------------------------------------------

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

    def _fetch_behind(self, done: Callable[[], None]) -> None:
        if self.background is None:
            self.background = Background(self.holding, done, self.means.tell)
            self.requests.then(self.background.start)

    def complete(self) -> None:
        """All weights are here now."""
        self.local.complete()
        self.local.prepare_soon(self.cuts.current.placement)

    # --- another model ------------------------------------------------------------------------------------------

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

    def _predicted_s(self) -> float:
        return self.cuts.current.placement.times.predicted_s

    def _rest(self, remote: Remote) -> None:
        self.cuts.reopen_all(remote)
        self.means.arrived()

    # --- the connection -----------------------------------------------------------------------------------------

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
        if not self.line.met:
            text = missing(models, self.model)
        if text != self._missed:
            self._missed, self.follow_failed = text, None
            fields = {"model": name, "fingerprint": self.info.fingerprint, "now": newer.fingerprint if newer else ""}
            self.means.tell(Event("changed", text, fields))
        self.means.changed(models)
        return ModelError(text)

    # --- the end ------------------------------------------------------------------------------------------------

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
