"""Our own server as a `Remote`: tails are opened, asked and answered in frames (docs/wire-format.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic, perf_counter

import msgspec

from splitpoint import wire
from splitpoint.errors import InputError, OverBudgetError, ProtocolError, ServerError, SplitpointError
from splitpoint.graph import Cut
from splitpoint.runtime.client import Abortable, Encoding, Offer, TailAnswer
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.codec_choice import FittingCoder, FrameRoom, chooser, codecs_in
from splitpoint.runtime.events import software
from splitpoint.security import Security
from splitpoint.tensors import Array
from splitpoint.transports import Connection, connect
from splitpoint.wire import Frame, Kind, Limits, Packet

_ALL_RAW: Mapping[str, str] = {}


class WireSettings(msgspec.Struct, frozen=True):
    """How frames travel. With `checksum` every one carries a CRC-32, and one that was changed on its way ends the
    connection instead of giving a wrong answer; without it that is left to TCP, whose checksum has 16 bits. `limits`:
    what is taken from the server at most.
    """

    checksum: bool = False
    limits: Limits | None = None


class WireProvider(msgspec.Struct, frozen=True):
    """One of our servers, at an address or at the other end of a connection; answers are waited for `answer_s`."""

    server: str | Connection
    security: Security
    settings: WireSettings
    answer_s: float

    @property
    def address(self) -> str:
        return self.server if isinstance(self.server, str) else self.server.peer

    def connect(self, timeout_s: float, greeting: Callable[[Abortable], None] = lambda _: None) -> WireRemote:
        """A connection that has been greeted, and whose server's clock is known a little."""
        server, settings = self.server, self.settings
        connection = (
            connect(server, settings.limits, timeout_s, self.security) if isinstance(server, str) else server
        )  # fmt: skip
        try:
            greeting(connection)
            remote = WireRemote(
                connection, software=software(), timeout_s=self.answer_s, greet_s=timeout_s, checksum=settings.checksum,
                token=self.security.token,
            )  # fmt: skip
            remote.measure_clock()
        except BaseException:
            connection.close()
            raise
        return remote


class WireRemote(Channel):
    """A conversation with our own server, and the tails that are open there."""

    @property
    def offer(self) -> Offer:
        """What WELCOME says."""
        welcome = self.welcome
        most = welcome.limits.get("in_flight", 0)
        return Offer(welcome.models, codecs_in(welcome.features), welcome.share, welcome.heads, most)

    def open(self, fingerprint: str, cut: Cut, outputs: Sequence[str]) -> WireTail:
        asked = wire.OpenRequest(fingerprint, tuple(t.name for t in cut.crossing), tuple(outputs), cut.shapes)
        id = self.reserve()
        self.send(id, wire.encode(Kind.OPEN, id, asked))
        return WireTail(self, id, asked)

    def channel(self) -> Channel:
        return self


class WireTail:
    """A segment that OPEN named, and its number on this connection."""

    repeatable = True

    def __init__(self, remote: WireRemote, opening: int, asked: wire.OpenRequest) -> None:
        self.remote, self.fingerprint = remote, asked.fingerprint
        self._asked, self._opening = asked, opening
        self._segment: int | None = None
        self._tensors: tuple[str, ...] = ()
        self._vectors: tuple[str, ...] = ()
        self._packers: dict[int, tuple[Encoding, wire.Packer]] = {}

    def ready(self, within_s: float, alive_s: float = 0.0) -> None:
        remote, end = self.remote, monotonic() + within_s
        while (frame := remote.poll(self._opening, min(alive_s or within_s, max(0.0, end - monotonic())))) is None:
            if not alive_s:
                raise remote.late()
            if monotonic() >= end:
                raise ServerError(f"{remote.peer} did not answer in {within_s:.3g} s")
            if remote.ping(alive_s) is None:
                remote.abort(f"did not answer for {alive_s:.3g} s")
        opened = frame.header
        if not isinstance(opened, wire.Opened):
            raise ProtocolError(f"the server answered with {wire.describe(frame.kind)}, not Opened")
        needed, asked = [t.name for t in opened.inputs], self._asked
        if (
            len(set(needed)) < len(needed)
            or set(needed) - {*asked.inputs, *asked.vectors}
            or tuple(t.name for t in opened.outputs) != asked.outputs
        ):
            raise ProtocolError("the server opened another segment than it was asked for")
        vectors = set(asked.vectors)
        self._tensors = tuple(name for name in needed if name not in vectors)
        self._vectors = tuple(name for name in needed if name in vectors)
        self._segment = opened.segment

    def begin(
        self, known: Mapping[str, Array], encoding: Encoding, most_nbytes: int, deadline_s: float = 0.0,
        more: bool = False, room: FrameRoom | None = None,
    ) -> WireCall:  # fmt: skip
        kept = self._packers.get(id(encoding))
        packer = kept[1] if kept is not None else self._packer(encoding)
        arrays = [known[name] for name in self._tensors]
        vectors: tuple[tuple[int, ...], ...] = ()
        if self._vectors:
            vectors = tuple(tuple(int(n) for n in known[name].reshape(-1)) for name in self._vectors)
        remote = self.remote
        flags = wire.PIPELINED if more or remote.in_flight else 0
        coder = FittingCoder(room, len(vectors)) if room is not None else None
        number = remote.reserve(most=most_nbytes)
        try:
            packet = packer.pack(number, arrays, (self._segment, vectors, deadline_s), (), flags, coder)
            if coder is not None:
                coder.check(packet.nbytes)
        except BaseException as exc:
            remote.abandon(number)
            if isinstance(exc, InputError) and encoding.spare is not None and not isinstance(exc, OverBudgetError):
                return self.begin(known, encoding.spare, most_nbytes, deadline_s, more, room)
            raise
        packed = packet.codecs if coder is None else coder.names
        codecs = {n: c for n, c in zip(self._tensors, packed, strict=True) if c} if packed else _ALL_RAW
        return WireCall(remote, number, packet, packet.nbytes, perf_counter(), codecs)

    def _packer(self, encoding: Encoding) -> wire.Packer:
        """A packer for `encoding`, kept with it: the header is the same from one request to the next."""
        codecs = {name: encoding.codecs[name] for name in self._tensors if name in encoding.codecs}
        choose = chooser(self._tensors, codecs, strict=encoding.strict) if codecs else None
        packer = wire.Packer(Kind.INFER, _infer, choose)
        self._packers[id(encoding)] = (encoding, packer)
        return packer

    def close(self) -> None:
        remote = self.remote
        if self._segment is None:
            remote.abandon(self._opening)
        elif not remote.ended:
            with suppress(ServerError):  # if the connection has ended, so has the tail
                remote.tell(Kind.CLOSE, wire.Close(self._segment))


def _infer(
    tensors: tuple[wire.Tensor, ...], segment: int, vectors: tuple[tuple[int, ...], ...], deadline_s: float
) -> wire.Infer:
    return wire.Infer(segment, tensors, vectors, deadline_s)


class WireCall(msgspec.Struct, eq=False):
    """An INFER, and the RESULT it is to bring."""

    remote: WireRemote
    number: int
    packet: Packet | None
    nbytes: int
    packed: float
    codecs: Mapping[str, str]

    def send(self) -> None:
        packet, self.packet = self.packet, None  # its tensors are not kept until the answer is here
        if packet is not None:
            self.remote.send(self.number, packet)

    def answer(self, within_s: float, whole: bool = True) -> TailAnswer | None:
        frame = self.remote.poll(self.number, within_s, whole)
        return None if frame is None else self._read(frame)

    def _read(self, frame: Frame) -> TailAnswer:
        """What a RESULT says. ProtocolError for what is none."""
        header = frame.header
        if type(header) is not wire.ResultData:
            raise ProtocolError(f"the server answered INFER with {wire.describe(frame.kind)}")
        offset = self.remote.offset_at(self.packed, frame)
        return TailAnswer(frame.tensors, frame.received, header, frame.nbytes, frame.times, offset)

    def leave(self, tell: Callable[[TailAnswer | SplitpointError], None]) -> None:
        if self.packet is not None:  # it was not sent
            self.remote.abandon(self.number)
            return

        def come(outcome: Frame | SplitpointError) -> None:
            answer: TailAnswer | SplitpointError
            try:
                answer = outcome if isinstance(outcome, SplitpointError) else self._read(self.remote.judge(outcome))
            except SplitpointError as exc:
                answer = exc
            tell(answer)

        self.remote.leave(self.number, come)
