"""The binding of an edge, and going over to a newer model of the same name when the server has one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from splitpoint.errors import RefusedError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.client import Remote
from splitpoint.runtime.client.edge_settings import At
from splitpoint.runtime.client.model_binding import Binding, Means, same_ends
from splitpoint.runtime.client.opened_cut import Route
from splitpoint.runtime.client.reconnect import REFUSALS
from splitpoint.runtime.client.request import LOCAL
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.events import Event
from splitpoint.runtime.model_choice import choose_model, info_of
from splitpoint.runtime.threads import Jobs
from splitpoint.wire import ModelInfo

#: How often whoever waits for requests to end looks.
_LOOK_S = 0.05


class Followed:
    """`binding` is what requests are begun with, `model` the model in it as its inputs are made here; `codec` is how
    tensors travel where nothing else is said. `jobs` does what takes long.
    """

    def __init__(
        self, means: Means, remote: Remote, local: Model | None, wanted: Model | str | None, why: str, jobs: Jobs,
        codec: CodecChoice,
    ) -> None:  # fmt: skip
        self._means, self._jobs, self._codec = means, jobs, codec
        self._lock = threading.Lock()
        self._old: list[Binding] = []
        self._prepare: Callable[[Model], Model] = lambda model: model
        served = remote.offer.models if not remote.ended or local is None else (info_of(local),)
        info = choose_model(served, wanted, means.models.pinned)
        self._check_shared(remote, local)
        self.binding = Binding(means, remote, info, local, why)
        self.model = self.binding.model

    def prepare(self, how: Callable[[Model], Model]) -> None:
        """From now on the model, and one that follows it, is `how` of what it was."""
        before = self._prepare
        self._prepare = lambda model: how(before(model))
        self.model = how(self.model)

    def changed(self, models: Sequence[ModelInfo], leaving: Callable[[], None], arrived: Callable[[], None]) -> None:
        """The server is there, without the model but with these. `leaving` is called before another one takes the place
        of this one, and `arrived` when it has."""
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
        """A cut of `binding`, made ready, with tensors that travel as `codec` says, or as they always do. For `hurry`
        see `Cuts.route`."""
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
        asked = self._codec if codec is None else codec
        if codec is None and not isinstance(asked, str):
            crossing = {t.name for t in cut.crossing}
            asked = {name: one for name, one in asked.items() if name in crossing}
        return asked

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
        with self._lock:
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
        remote = means.provider.connect(means.patience.greet_s)
        try:
            info = choose_model(remote.offer.models, old.info.name, None)
            same_ends(old.info, info)
            self._check_shared(remote, None)
            new = Binding(means, remote, info, None)
        except BaseException:
            remote.close()
            raise
        try:
            cut = new.model.graph.cut(old.cuts.current.placement.cut.name)
            if means.fallback == LOCAL and old.local.possible():  # no answer is to wait for what is not here yet
                new.holding.pull(tuple(new.model.blobs))
                new.local.complete()
            new.cuts.switch(cut, self._codecs_at(cut))
            new.survive()
        except BaseException:
            new.close()
            raise
        return new
