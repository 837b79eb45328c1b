"""The cuts of a model that are ready: heads compiled on this device, tails open at the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from splitpoint.codecs import Codec
from splitpoint.engines import Engine, Session
from splitpoint.errors import CutError, ModelError, RefusedError, ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.planning.constraints import Shared
from splitpoint.runtime.client import Remote, RemoteTail
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.held_weights import Holding
from splitpoint.runtime.client.opened_cut import Key, Placement, Route, key_of
from splitpoint.runtime.client.remote_profile import COMPILE_S
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.codec_choice import CodecChoice, check_decodable, choose, is_unused
from splitpoint.runtime.events import Event, OnEvent, teller
from splitpoint.wire import SAID


class Cuts:
    """Makes cuts of `holding`'s model ready, once each: `engine` compiles heads, tails are opened at `remote`.

    `current` is what requests go through, from the first `switch` on. `alone` says whether a cut is of use while there
    is no server to open its tail.
    """

    current: Route

    def __init__(
        self, holding: Holding, remote: Callable[[], Remote], engine: Callable[[], Engine], patience: Patience,
        on_event: OnEvent, alone: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._holding, self._remote, self._engine = holding, remote, engine
        self._patience, self._tell, self._alone = patience, teller(on_event), alone
        self._placements: dict[Key, Placement] = {}
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._closed = False
        self._sent_raw: set[tuple[Key, str]] = set()
        self._shared: tuple[str, Shared | None] = ("", None)

    def __contains__(self, cut: Cut) -> bool:
        return key_of(cut) in self._placements

    def all(self) -> Iterable[Placement]:
        """Those that are ready."""
        return tuple(self._placements.values())

    # --- making one ready -----------------------------------------------------------------------------------------

    def route(self, cut: Cut, asked: CodecChoice, *, hurry: bool = False) -> Route:
        """`cut`, made ready if it is not, with tensors that travel as `asked`.

        In a `hurry` (and always for the first), where requests can be answered `alone`, its tail need not be open:
        whatever the server says of it, or does not say.
        """
        chosen = choose(cut, asked)
        key = key_of(cut)
        if isinstance(asked, str) and is_unused(cut, asked, chosen) and (key, asked) not in self._sent_raw:
            self._sent_raw.add((key, asked))
            said = f"{asked} takes none of what crosses at {cut.name}: sent raw"
            self._tell(Event("notice", said, {"codec": asked, "cut": cut.name}))
        strict = not isinstance(asked, str)
        with self._lock:
            known = self._placements.get(key)
            if known is not None:
                check_decodable(chosen, self._remote().offer.codecs)
                return known.route(chosen, strict=strict)
        # One at a time; whoever wants a cut that is ready does not wait for it.
        with self._tell.held(), self._building:
            first = not self._placements
            placement = self._placements.get(key) or self._build(cut, chosen, hurry=(first or hurry) and self._alone())
            with self._lock:
                if self._closed:
                    placement.close()
                    raise ServerError(CLOSED)
                self._placements[key] = placement
                route = placement.route(chosen, strict=strict)
        if placement.remote and placement.remote_tail is None and not first and not self._remote().ended:
            with suppress(SplitpointError):  # the server has come meanwhile: whoever needs the tail finds out why not
                self.reopen(placement)
        return route

    def switch(self, cut: Cut, asked: CodecChoice) -> Route:
        """Makes `cut` ready, in a hurry, and what the next request goes through."""
        while True:
            route = self.route(cut, asked, hurry=True)
            with self._lock:
                if self._placements.get(key_of(cut)) is route.placement:  # not forgotten meanwhile
                    self.current = route
                    return route

    def _build(self, cut: Cut, codecs: Mapping[str, Codec], *, hurry: bool) -> Placement:
        """Both halves of `cut`: the server compiles the tail while the head's weights are fetched and compiled.

        In a `hurry` the tail need not be open: whatever the server says of it, requests can be answered without.
        """
        tail: RemoteTail | None = None
        head: Session | None = None
        try:
            remote = self._remote()
            if not (remote.ended and self._alone()):
                try:
                    check_decodable(codecs, remote.offer.codecs)
                    if why := self.refusal(cut):
                        raise RefusedError(why)
                    tail = self._ask_for_tail(cut, remote)
                except SAID as exc:
                    self._unopened(cut, exc, hurry)
            segment = self._holding.model.head(cut)
            if segment.outputs:
                if not self._holding.local:
                    self._holding.pull(segment.blobs)
                head = self._engine().compile(segment)
            placement = Placement(self._holding.model, cut, head, self._patience)
            if tail is not None:
                try:
                    tail.ready(self._patience.open_s if hurry else COMPILE_S)
                    placement.open_tail(tail)
                except SAID as exc:
                    self._unopened(cut, exc, hurry)
                    tail.close()
        except BaseException:
            if tail is not None:
                tail.close()
            if head is not None:
                head.close()
            raise
        return placement

    def _unopened(self, cut: Cut, why: SplitpointError, hurry: bool) -> None:
        """The server has said `why` instead of opening the tail of `cut`: told in a `hurry`, else raised."""
        if not hurry:
            raise why
        said = f"{why}; until it opens {cut.name}, requests are answered here"
        self._tell(Event("notice", said, {"why": str(why), "cut": cut.name}))

    @property
    def shared(self) -> Shared | None:
        """What the server allows; None if that is every cut, or if it names none of this model's (then it is for the
        server to refuse)."""
        name = self._remote().offer.heads.get(self._holding.info.fingerprint, "")
        if name != self._shared[0]:
            cut = None
            with suppress(CutError):
                cut = self._holding.model.graph.cut(name)
            self._shared = (name, None if cut is None else Shared(cut, whole=self._holding.local))
        return self._shared[1]

    def refusal(self, cut: Cut) -> str:
        """Why the server has no part in `cut`; empty if nothing speaks against it."""
        shared, model = self.shared, self._holding.model
        if shared is None or not shared.refusal(cut, model.graph):
            return ""
        return (
            f"of {model.name} this server shares the head up to {shared.cut.name}, and {cut.name} is deeper: cut there "
            "or before it"
        )

    def _ask_for_tail(self, cut: Cut, remote: Remote) -> RemoteTail | None:
        """What follows `cut`, asked for at `remote`; None if nothing is left to compute there."""
        outputs = tuple(t.name for t in self._holding.model.outputs if t.name not in cut.results)
        if not outputs:
            return None
        tail = remote.open(self._holding.info.fingerprint, cut, outputs)
        if tail.fingerprint != self._holding.info.fingerprint:
            tail.close()
            raise ModelError(
                f"{remote.peer} opened a tail of {tail.fingerprint[:12]}, not of {self._holding.info.fingerprint[:12]}"
            )
        return tail

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        if cut in self:
            return True
        if self.refusal(cut):
            return False
        # A head is all that will ever be fetched; a whole model comes by itself, with a tenth of the link.
        return self._holding.local or self.shared is not None or self._holding.has(self._holding.model.head(cut).blobs)

    # --- when the connection was made again -----------------------------------------------------------------------

    def reopen(self, placement: Placement, remote: Remote | None = None) -> None:
        """Opens a cut's tail at `remote`, or at that of the moment. ServerError and its kin."""
        remote = remote or self._remote()
        before = placement.remote_tail
        if before is not None and before.remote is remote:
            return
        tail = self._ask_for_tail(placement.cut, remote)
        if tail is None:
            return
        try:
            tail.ready(COMPILE_S, self._patience.pong_s)
        except BaseException:
            tail.close()
            raise
        placement.open_tail(tail)

    def reopen_current(self, remote: Remote) -> None:
        """Opens at `remote` the tail that the next request needs."""
        opened: Route | None = None
        while opened is not self.current:  # it may be switched meanwhile
            opened = self.current
            check_decodable(opened.encoding.codecs, remote.offer.codecs)
            self.reopen(opened.placement, remote)

    def reopen_all(self, remote: Remote) -> None:
        """Opens all tails there that are not; whoever needs one that cannot be opened finds out why."""
        for placement in self.all():
            with suppress(SplitpointError):
                self.reopen(placement, remote)

    # --- freeing --------------------------------------------------------------------------------------------------

    def forget(self, cut: Cut | None) -> None:
        """Frees both halves of `cut`, or of all but the current one, as soon as nobody uses them."""
        with self._lock:
            current = self.current.placement.cut
            keep = key_of(current)
            wanted = [k for k in self._placements if k != keep] if cut is None else [key_of(cut)]
            if keep in wanted:
                raise UsageError(f"{current.name} is in use: switch to another cut first")
            for placement in [self._placements.pop(k) for k in wanted if k in self._placements]:
                placement.close()
                if placement.remote_tail is not None and placement.is_open_at(self._remote()):
                    placement.remote_tail.close()

    def close(self) -> None:
        """Frees what is compiled here, as soon as nobody uses it."""
        with self._lock:
            self._closed = True
        for placement in self.all():
            placement.close()
        self._placements.clear()
