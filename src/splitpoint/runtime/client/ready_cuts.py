"""The cuts of a model that are ready: heads compiled on this device, tails open at the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from splitpoint import wire
from splitpoint.codecs import Codec
from splitpoint.engines import Engine, Session
from splitpoint.errors import CutError, RefusedError, ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.planning.constraints import Shared
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.held_weights import Holding
from splitpoint.runtime.client.opened_cut import Far, Key, Placement, Route, key_of
from splitpoint.runtime.client.reconnect import ask_while_alive
from splitpoint.runtime.client.remote_profile import COMPILE_S
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.codec_choice import CodecChoice, check_decodable, choose, is_unused
from splitpoint.runtime.events import Event, OnEvent, teller
from splitpoint.wire import Kind


class Cuts:
    """Makes cuts of `holding`'s model ready, once each: `engine` compiles heads, tails are opened on `channel`.

    `current` is what requests go through, from the first `switch` on.
    """

    current: Route

    def __init__(
        self, holding: Holding, channel: Callable[[], Channel], engine: Callable[[], Engine], patience: Patience,
        on_event: OnEvent,
    ) -> None:  # fmt: skip
        self._holding, self._channel, self._engine = holding, channel, engine
        self._patience, self._tell = patience, teller(on_event)
        self.alone: Callable[[], bool] = lambda: False
        """Whether a cut is of use while there is no server to open its tail."""
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
            self._tell(Event("notice", f"{asked} takes none of what crosses at {cut.name}: sent raw"))
        strict = not isinstance(asked, str)
        with self._lock:
            known = self._placements.get(key)
            if known is not None:
                check_decodable(chosen, self._channel().welcome.features)
                return known.route(chosen, strict=strict)
        # One at a time; whoever wants a cut that is ready does not wait for it.
        with self._tell.held(), self._building:
            first = not self._placements
            made = self._placements.get(key) or self._build(cut, chosen, hurry=(first or hurry) and self.alone())
            with self._lock:
                if self._closed:
                    made.close()
                    raise ServerError(CLOSED)
                self._placements[key] = made
                found = made.route(chosen, strict=strict)
        if made.remote and made.far is None and not first and not self._channel().ended:
            with suppress(SplitpointError):  # the server has come meanwhile: whoever needs the tail finds out why not
                self.reopen(made)
        return found

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
        channel = self._channel()
        if channel.ended and self.alone():
            return self._unopened(cut, self._head(cut))
        try:
            asked = self._ask(channel, cut, codecs)
        except wire.SAID as exc:
            if not hurry:
                raise
            return self._unopened(cut, self._head(cut), exc)
        opened: wire.Opened | None = None
        head: Session | None = None
        try:
            head = self._head(cut)
            try:
                if asked is not None:
                    opened, _ = channel.expect(asked, wire.Opened, self._patience.open_s if hurry else COMPILE_S)
                placement = Placement(self._holding.model, cut, head, opened, self._patience)
            except wire.SAID as exc:
                if not hurry or asked is None:
                    raise
                channel.abandon(asked)
                return self._unopened(cut, head, exc)
        except BaseException:
            if asked is not None:
                channel.abandon(asked)
            if head is not None:
                head.close()
            raise
        if opened is not None:
            placement.far = Far(channel, opened.segment)
        return placement

    def _ask(self, channel: Channel, cut: Cut, codecs: Mapping[str, Codec]) -> int | None:
        """Asks for the tail of `cut`, see `ask_for_tail`. ServerError if it cannot be had, or not sent to."""
        check_decodable(codecs, channel.welcome.features)
        if why := self.refusal(cut):
            raise RefusedError(why)
        return self.ask_for_tail(cut)

    def _unopened(self, cut: Cut, head: Session | None, why: SplitpointError | None = None) -> Placement:
        """`cut` without its tail at the server, which has said or done `why`: told."""
        if why is not None:
            self._tell(Event("notice", f"{why}; until it opens {cut.name}, requests are answered here"))
        return Placement(self._holding.model, cut, head, self._expected(cut), self._patience)

    @property
    def shared(self) -> Shared | None:
        """What the server allows; None if that is every cut, or if it names none of this model's (then it is for the
        server to refuse)."""
        name = self._channel().welcome.heads.get(self._holding.info.fingerprint, "")
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

    def _expected(self, cut: Cut) -> wire.Opened | None:
        """The tail of `cut` as a server will open it; None if there is none."""
        if self._open_request(cut) is None:
            return None
        tail = self._holding.model.tail(cut)
        vectors = set(cut.shapes)
        inputs = sorted(tail.inputs, key=lambda t: t.name in vectors)
        return wire.Opened(0, tuple(map(wire.TensorInfo.of, inputs)), tuple(map(wire.TensorInfo.of, tail.outputs)))

    def _open_request(self, cut: Cut) -> wire.OpenRequest | None:
        """What OPEN says for what follows `cut`; None if nothing is left to compute there."""
        outputs = tuple(t.name for t in self._holding.model.outputs if t.name not in cut.results)
        if not outputs:
            return None
        crossing = tuple(t.name for t in cut.crossing)
        return wire.OpenRequest(self._holding.info.fingerprint, crossing, outputs, cut.shapes)

    def ask_for_tail(self, cut: Cut) -> int | None:
        """Sends OPEN for what follows `cut`; its id, or None if there is nothing to ask for."""
        request = self._open_request(cut)
        if request is None:
            return None
        channel = self._channel()
        asked = channel.reserve()
        channel.send(asked, wire.encode(Kind.OPEN, asked, request))
        return asked

    def _head(self, cut: Cut) -> Session | None:
        segment = self._holding.model.head(cut)
        if not segment.outputs:
            return None
        if not self._holding.local:
            self._holding.pull(segment.blobs)
        return self._engine().compile(segment)

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        if cut in self:
            return True
        if self.refusal(cut):
            return False
        # A head is all that will ever be fetched; a whole model comes by itself, with a tenth of the link.
        return self._holding.local or self.shared is not None or self._holding.has(self._holding.model.head(cut).blobs)

    # --- when the connection was made again -----------------------------------------------------------------------

    def reopen(self, placement: Placement, channel: Channel | None = None) -> None:
        """Opens a cut's tail on `channel`, or the connection of the moment. ServerError and its kin."""
        channel = channel or self._channel()
        request = self._open_request(placement.cut)
        if request is None or (placement.far is not None and placement.far.channel is channel):
            return
        frame = ask_while_alive(channel, Kind.OPEN, request, wire.Opened, self._patience.pong_s, COMPILE_S)
        assert isinstance(frame.header, wire.Opened)
        placement.check_opened(frame.header)
        placement.far = Far(channel, frame.header.segment)

    def reopen_current(self, channel: Channel) -> None:
        """Opens on `channel` the tail that the next request needs."""
        opened: Route | None = None
        while opened is not self.current:  # it may be switched meanwhile
            opened = self.current
            check_decodable(opened.codecs, channel.welcome.features)
            self.reopen(opened.placement, channel)

    def reopen_all(self, channel: Channel) -> None:
        """Opens all tails there that are not; whoever needs one that cannot be opened finds out why."""
        for placement in self.all():
            with suppress(SplitpointError):
                self.reopen(placement, channel)

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
                far = placement.far
                if far is not None and far.channel is self._channel():
                    with suppress(ServerError):  # if the connection has ended, so has the tail
                        far.channel.tell(Kind.CLOSE, wire.Close(far.segment))

    def close(self) -> None:
        """Frees what is compiled here, as soon as nobody uses it."""
        with self._lock:
            self._closed = True
        for placement in self.all():
            placement.close()
        self._placements.clear()
