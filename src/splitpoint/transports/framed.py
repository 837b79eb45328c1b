"""Frames over any stream of bytes: the part that TCP, TLS and memory connections share.

After a thread has slept for its peer a line of Python costs several times what it costs in a loop. So the way from
"bytes are there" to "frame" is short for a frame like the one before it: it is made, and its tensors are allocated,
before the wait; prefix, header and what is there of the body come with one call, each to its place; and a header that
is byte for byte the last one is not decoded again. Any other frame takes the long way, `_unlike`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from socket import MSG_DONTWAIT, MSG_WAITALL
from time import monotonic, perf_counter
from typing import Any, NamedTuple, NoReturn
from zlib import crc32

import msgspec
import numpy as np

from splitpoint.errors import ProtocolError, ServerError
from splitpoint.lifetime import foreign, watch
from splitpoint.tensors import Array
from splitpoint.transports import Ended
from splitpoint.transports.budget import Backlog
from splitpoint.wire import (
    CHECKED,
    CHECKSUM_BYTES,
    CRC32,
    ID_END,
    ID_START,
    MAGIC,
    PREFIX_BYTES,
    RESIDUE,
    Admit,
    Buffer,
    Frame,
    FramePrefix,
    Infer,
    Kind,
    Limits,
    Message,
    ResultData,
    allocate,
    check_tensors,
    describe,
    flat,
    parse_header,
    parse_id,
    parse_prefix,
    times_bytes,
)

_RESULT = int(Kind.RESULT)
_SCRATCH = 64 << 10
_LEAD = 4096
#: Large tensors are received in pieces: the kernel tells the sender about room at the end of each call, and the
#: sender waits less (measured with 600 KB on loopback: 340 µs a round trip instead of 400 with one call).
_PIECE = 256 << 10
#: Memory of more than this is not allocated before it is known to be needed: many connections may be waiting.
_AHEAD = 4 << 20
#: No read returns that many bytes: nothing is like the frame before the first.
_NEVER = 1 << 62
#: What is here already is taken, even if the caller's time is over.
_MOMENT_S = 1e-3


class _Lead(NamedTuple):
    """All of a frame but its id and the tensors' bytes: what the next one is compared with.

    `begin` is the prefix up to the id, `rest` what follows it to the header's end, `end` where the tensors begin.
    `checksum_bytes` come after them: 4, or 0.
    """

    begin: bytes
    rest: bytes
    header_end: int
    end: int
    kind: int
    flags: int
    header: Message | None
    body_bytes: int
    checksum_bytes: int = 0


class _Rest(msgspec.Struct, gc=False):
    """A frame whose lead is here and whose body is not: `done` bytes of `arrays` are. One that nobody knows is thrown
    away: `skip` bytes are still to come of it."""

    lead: _Lead
    frame: Frame
    arrays: Sequence[Array] = ()
    done: int = 0
    skip: int = 0


class _Unfinished(Exception):
    """The caller's time is over in the middle of a frame: `done` bytes of what was wanted have come."""

    def __init__(self, done: int) -> None:
        self.done = done


class Framed(ABC):
    """Receives frames through functions like those of a socket; a tensor's bytes go into the array itself."""

    #: Like ``socket.recv_into`` and ``socket.recvmsg_into``: how many bytes were received, 0 if the peer ended.
    #: BlockingIOError when the patience is at its end.
    _recv_into: Callable[..., int]
    _recvmsg_into: Callable[..., tuple[Any, ...]]

    def __init__(self, peer: str, limits: Limits, spin_s: float = 0.0) -> None:
        self.peer = peer
        self.limits = limits
        self._buffer = bytearray(_LEAD)
        self._view = memoryview(self._buffer)
        self._extra = 0  # bytes at the start of _buffer that were read too far
        self._last = _Lead(b"", b"", 0, _NEVER, 0, 0, None, 0)
        #: The next frame, if it is like the last: made before it is there, and where its bytes go.
        self._ahead: tuple[Frame, list[Buffer]] | None = None
        self._timeout_s: float | None = -1.0
        self._queued = 0  # bytes that the peer has not taken yet
        #: Those of all connections that share one allowance, `backlog_bytes`.
        self._backlog = Backlog()
        #: How long to ask for the next frame again and again before going to sleep, seconds.
        self._spin_s = spin_s
        #: When everything that is being received must be there (`time.monotonic`), however its bytes drip.
        self._due_s: float | None = None
        self._times_bytes = times_bytes(())
        #: When the caller of `receive` wants back what it has, if that is not all of a frame.
        self._whole_by: float | None = None
        self._rest: _Rest | None = None
        self.checks = False
        self.seals = False
        watch(self)

    @property
    def identity(self) -> str:
        return ""

    def handshake(self, timeout_s: float) -> None:  # noqa: B027 - only TLS has one
        """Nothing is to be agreed on before the first frame."""

    def hold_to(self, limits: Limits, due_s: float | None = None) -> None:
        self.limits, self._due_s = limits, due_s

    def share(self, backlog: Backlog) -> None:
        self._backlog = backlog

    def expect_checksums(self) -> None:
        self.checks = True

    def agree(self, features: Collection[str]) -> None:
        self.checks = self.seals = CRC32 in features
        self._times_bytes = times_bytes(features)

    def keep_reading(self) -> None:
        self.limits = replace(self.limits, backlog_bytes=_NEVER)

    @property
    def behind(self) -> bool:
        return self._queued > 0 and self._backlog.nbytes > self.limits.backlog_bytes

    @abstractmethod
    def _be_patient(self, seconds: float) -> None:
        """Makes the next calls of `_recv_into` wait that long for what they want."""

    @abstractmethod
    def _why(self, exc: OSError) -> str:
        """What `exc` means for the connection, as the text of an error."""

    def forked(self) -> None:
        """The process has forked, and this is the child: it neither reads nor writes what is the parent's."""
        self._recv_into = self._recvmsg_into = foreign_use
        self._be_patient = foreign_use  # type: ignore[assignment,method-assign]
        self._extra, self._ahead, self._queued, self._spin_s, self._rest = 0, None, 0, 0.0, None

    def receive(self, *, timeout_s: float | None = None, admit: Admit | None = None, whole: bool = False) -> Frame:
        if self._queued and self.behind:
            self._let_peer_read()
        self._whole_by = monotonic() + timeout_s if whole and timeout_s is not None else None
        if self._rest is not None:
            return self._resume(self._rest)
        if timeout_s != self._timeout_s:
            self._timeout_s = timeout_s
            self._be_patient(self._wait_s())
        frame, places = self._ahead or self._look_ahead()
        if self._extra:
            return self._unlike(self._extra, perf_counter(), admit)
        got = self._some(places)
        started = perf_counter()
        buffer, lead = self._buffer, self._last
        if got < lead.end or not buffer.startswith(lead.begin) or buffer[ID_END : lead.header_end] != lead.rest:
            self._gather(places, got)
            return self._unlike(got, started, admit)
        self._ahead = None
        frame.id = parse_id(buffer)
        frame.started = started
        if lead.kind == _RESULT:
            frame.times = bytes(self._view[lead.header_end : lead.end])
        if admit is not None and (refused := admit(frame)) is not None:
            frame.refused, frame.tensors = refused, []
            self._skip(lead.end + lead.body_bytes - got)
        elif got != frame.nbytes:
            if len(places) == 1:
                frame.tensors = allocate(frame.header.tensors)  # type: ignore[union-attr]
            self._body(_Rest(lead, frame, frame.tensors, got - lead.end))
        frame.received = perf_counter()
        return frame

    def _look_ahead(self) -> tuple[Frame, list[Buffer]]:
        """Makes the next frame, if it will be like the last, and says where its bytes are to go."""
        lead = self._last
        frame = Frame(lead.kind, lead.flags, 0, lead.header, 0.0, lead.end + lead.body_bytes)
        if lead.end > _LEAD:
            # Frames with checksums are never expected: of these, as much as comes.
            places: list[Buffer] = [self._view[: _LEAD if self.seals else PREFIX_BYTES]]
        elif lead.body_bytes > _AHEAD:
            places = [self._view[: lead.end]]
        else:
            frame.tensors = allocate(lead.header.tensors)  # type: ignore[union-attr]
            places = [self._view[: lead.end], *frame.tensors]
        self._ahead = ahead = frame, places
        return ahead

    def _gather(self, places: Sequence[Buffer], got: int) -> None:
        """Puts the `got` bytes of a frame that is not like the last into `_buffer`, one after the other."""
        at = len(flat(places[0]))
        if got > len(self._buffer):
            self._resize(got, at)
        for place in places[1:]:
            if at >= got:
                break
            view = flat(place)[: got - at]
            self._view[at : at + len(view)] = view
            at += len(view)

    def _unlike(self, got: int, started: float, admit: Admit | None) -> Frame:
        """The frame whose first `got` bytes, and perhaps more than its own, are in `_buffer`."""
        lead, got = self._parse(got)
        header = lead.header
        nbytes = lead.end + lead.body_bytes + lead.checksum_bytes
        frame = Frame(lead.kind, lead.flags, parse_id(self._buffer), header, started, nbytes)
        frame.header_nbytes = lead.header_end
        if type(header) is ResultData:
            frame.times = bytes(self._view[lead.header_end : lead.end])
        here = min(got, nbytes)  # the end of what is here of this frame
        if header is None or (admit is not None and (refused := admit(frame)) is not None):
            frame.refused = None if header is None else refused
            if lead.checksum_bytes and self._whole_by is None:
                self._judge(lead.kind, self._skip(nbytes - here, crc32(self._view[:here])))
            else:
                self._body(_Rest(lead, frame, skip=nbytes - here))
        else:
            if type(header) is Infer or type(header) is ResultData:
                frame.tensors = allocate(header.tensors)
            elif lead.body_bytes:
                frame.tensors = [np.empty(lead.body_bytes, np.uint8)]
            arrays = frame.tensors
            if lead.checksum_bytes:
                arrays = [*arrays, np.empty(CHECKSUM_BYTES, np.uint8)]
            at = lead.end
            for array in arrays:
                view = flat(array)[: here - at]
                view[:] = self._view[at : at + len(view)]
                at += len(view)
            self._body(_Rest(lead, frame, arrays, here - lead.end))
        self._extra = got - here
        if self._extra:
            self._buffer[: self._extra] = self._buffer[here:got]
        frame.received = perf_counter()
        if len(self._buffer) > _LEAD and self._extra <= _LEAD:
            self._resize(_LEAD, self._extra)
        self._ahead = None
        return frame

    def _body(self, rest: _Rest) -> None:
        """Receives the body of a frame. TimeoutError if the caller's time is over first: the next `receive` goes on."""
        try:
            if rest.skip:
                self._skip(rest.skip)
            else:
                self._complete(rest.arrays, rest.done)
        except _Unfinished as exc:
            if rest.skip:
                rest.skip -= exc.done
            else:
                rest.done = exc.done
            self._rest, self._extra, self._ahead = rest, 0, None
            raise TimeoutError from None
        if rest.lead.checksum_bytes and rest.arrays:
            crc = crc32(self._view[: rest.lead.end])
            for array in rest.arrays:
                crc = crc32(flat(array), crc)
            self._judge(rest.lead.kind, crc)

    def _resume(self, rest: _Rest) -> Frame:
        """The frame of which `rest` was missing."""
        self._rest = None
        self._body(rest)
        rest.frame.received = perf_counter()
        return rest.frame

    def _let_peer_read(self) -> None:
        """Waits until the peer has taken some of what is queued for it: one that does not read is not read from."""
        raise NotImplementedError  # only where `_queued` is ever more than 0

    def _wait_s(self) -> float:
        """One wait's length: what the caller allows, but in the middle of a frame no more than `stall_s`."""
        stall_s = self.limits.stall_s
        return stall_s if self._timeout_s is None else min(self._timeout_s, stall_s)

    def _hurry(self) -> None:
        """No wait takes longer than is left until `due_s` (ServerError if nothing is), or of the caller's time."""
        if self._whole_by is not None:
            self._timeout_s = -1.0
            self._be_patient(min(max(self._whole_by - monotonic(), _MOMENT_S), self.limits.stall_s))
            return
        if self._due_s is None:
            return
        left_s = self._due_s - monotonic()
        if left_s <= 0:
            raise ServerError(f"{self.peer} sends too slowly: it has not said in time who it is")
        self._timeout_s = -1.0
        self._be_patient(left_s)

    def _some(self, places: Sequence[Buffer]) -> int:
        """Receives the first bytes of a frame, as many as came; returns how many."""
        if self._spin_s and (early := self._spin(places)):
            return early
        waited = 0.0
        while True:
            try:
                got: int = self._recvmsg_into(places)[0]
            except BlockingIOError:
                waited += self._wait_s()
                if self._timeout_s is not None and waited >= self._timeout_s:
                    raise TimeoutError from None
                continue
            except OSError as exc:
                raise Ended(self._why(exc)) from exc
            if not got:
                raise Ended(f"{self.peer} closed the connection")
            return got

    def _spin(self, places: Sequence[Buffer]) -> int:
        """What `_some` returns, if bytes come within `spin_s`; else 0. An error is left for it to find again."""
        end = perf_counter() + self._spin_s
        while perf_counter() < end:
            try:
                got: int = self._recvmsg_into(places, 0, MSG_DONTWAIT)[0]
            except BlockingIOError:
                continue
            except OSError:
                return 0
            return got
        return 0

    def _complete(self, arrays: Sequence[Array], done: int) -> None:
        """Receives what is missing of `arrays` when their first `done` bytes are there."""
        before = 0
        for array in arrays:
            nbytes, here = array.nbytes, max(0, done - before)
            if here < nbytes:
                try:
                    self._fill(flat(array)[here:] if here else array, nbytes - here)
                except _Unfinished as exc:
                    raise _Unfinished(before + here + exc.done) from None
            before += nbytes

    def _fill(self, buffer: Buffer, nbytes: int) -> None:
        """Receives exactly `nbytes`; ServerError if the peer ends or stalls."""
        done = 0
        self._hurry()
        try:
            if nbytes <= _PIECE:
                done = self._recv_into(buffer, nbytes, MSG_WAITALL)
            else:
                view, end = flat(buffer), self._whole_by or monotonic() + self.limits.frame_s
                while done < nbytes and monotonic() < end:
                    size = min(_PIECE, nbytes - done)
                    got = self._recv_into(view[done : done + size], size, MSG_WAITALL)
                    done += got
                    if got != size:
                        break
        except BlockingIOError:
            pass
        except OSError as exc:
            raise ServerError(self._why(exc)) from exc
        if done != nbytes:
            self._fill_slowly(flat(buffer), done, nbytes)

    def _fill_slowly(self, view: memoryview, done: int, size: int) -> None:
        """Receives the rest of a body: the first wait's patience was at its end, or the peer ended."""
        limits = self.limits
        self._be_patient(limits.stall_s)
        self._timeout_s = limits.stall_s
        began, first = monotonic(), done
        while done < size:
            if self._whole_by is not None and monotonic() >= self._whole_by:
                raise _Unfinished(done)
            self._hurry()
            try:
                got = self._recv_into(view[done:], size - done, MSG_WAITALL)
            except BlockingIOError as exc:
                if self._whole_by is not None and monotonic() >= self._whole_by:
                    raise _Unfinished(done) from None
                raise ServerError(f"{self.peer} went silent in the middle of a frame") from exc
            except OSError as exc:
                raise ServerError(self._why(exc)) from exc
            if not got:
                raise ServerError(f"{self.peer} ended in the middle of a frame")
            done += got
            spent = monotonic() - began
            late = done - first < spent * limits.slowest or spent > limits.frame_s
            if done < size and spent > limits.stall_s and late:
                raise ServerError(f"{self.peer} sends too slowly: {done - first} bytes in {spent:.0f} s")

    def _parse(self, got: int) -> tuple[_Lead, int]:
        """(the lead of a frame that is not like the last, bytes read so far, at least to the lead's end)."""
        if got < PREFIX_BYTES:
            got = self._finish_prefix(got)
        prefix = parse_prefix(self._buffer, self.limits)
        checksum_bytes = self._checksum_bytes(prefix)
        if checksum_bytes:
            prefix = prefix._replace(body_bytes=prefix.body_bytes - checksum_bytes)
        fixed = self._times_bytes if prefix.kind == Kind.RESULT else 0
        if prefix.body_bytes < fixed:
            raise ProtocolError(f"a RESULT begins with {fixed} bytes of times: {prefix.body_bytes} came")
        header_end = PREFIX_BYTES + prefix.header_bytes
        end = header_end + fixed
        if got < end:
            if end > len(self._buffer):
                self._resize(end, got)
            self._fill_lead(got, end)
            got = end
        header = parse_header(prefix, self._view[PREFIX_BYTES:header_end])
        body_bytes = prefix.body_bytes - fixed
        begin, rest = bytes(self._buffer[:ID_START]), bytes(self._buffer[ID_END:header_end])
        lead = _Lead(begin, rest, header_end, end, prefix.kind, prefix.flags, header, body_bytes, checksum_bytes)
        if isinstance(header, (Infer, ResultData)):
            check_tensors(header.tensors, body_bytes, self.limits)
            # One with a checksum always takes the long way: adding up its bytes costs more than that.
            if not checksum_bytes:
                self._last = lead
        return lead, got

    def _checksum_bytes(self, prefix: FramePrefix) -> int:
        """How many bytes of the body are its checksum. ProtocolError if they should be there and are not."""
        if not self.checks or not prefix.flags & CHECKED:
            if self.seals:
                raise ProtocolError(f"{describe(prefix.kind)} came without the checksum that was agreed on")
            return 0
        if prefix.body_bytes < CHECKSUM_BYTES:
            raise ProtocolError(f"a checksum takes {CHECKSUM_BYTES} bytes: a body of {prefix.body_bytes} came")
        return CHECKSUM_BYTES

    def _judge(self, kind: int, crc: int) -> None:
        """ProtocolError unless `crc` is the sum of a frame that is as it was sent, its own checksum included."""
        if crc != RESIDUE:
            raise ProtocolError(f"{describe(kind)} from {self.peer} was changed on its way: its checksum is wrong")

    def _resize(self, nbytes: int, got: int) -> None:
        buffer = bytearray(nbytes)
        buffer[:got] = self._buffer[:got]
        self._buffer, self._view = buffer, memoryview(buffer)

    def _finish_prefix(self, got: int) -> int:
        if got < len(MAGIC) and self._buffer[:got] == MAGIC[:got]:
            self._fill_lead(got, len(MAGIC))
            got = len(MAGIC)
        if self._buffer[: len(MAGIC)] != MAGIC:
            # A banner may be shorter than our prefix: waiting for the rest of it would be waiting for ever.
            parse_prefix(bytes(self._buffer[:got]).ljust(PREFIX_BYTES, b"\0"), self.limits)
        self._fill_lead(got, PREFIX_BYTES)
        return PREFIX_BYTES

    def _fill_lead(self, got: int, end: int) -> None:
        """Receives into `_buffer` from `got` to `end`. TimeoutError if the caller's time is over first: the next
        `receive` begins with what is there."""
        try:
            self._fill(self._view[got:end], end - got)
        except _Unfinished as exc:
            self._extra = got + exc.done
            raise TimeoutError from None

    def _skip(self, left: int, crc: int | None = None) -> int:
        """Receives `left` bytes and forgets them, so that the next frame can be read. Returns the checksum `crc`, if it
        is given, continued over them."""
        scratch, done = memoryview(bytearray(min(left, _SCRATCH))), 0
        while done < left:
            part = scratch[: left - done]
            try:
                self._fill(part, len(part))
            except _Unfinished as exc:
                raise _Unfinished(done + exc.done) from None
            if crc is not None:
                crc = crc32(part, crc)
            done += len(part)
        return crc or 0


def foreign_use(*_: object) -> NoReturn:
    raise foreign("connection")
