"""Frames over any stream of bytes: the part that TCP, memory and (later) TLS connections share.

After a thread has slept for its peer, a line of Python costs some five times what it costs in a loop (cold
caches; measured: 5.6 µs instead of 0.8 to unpack the prefix). So the way from "bytes are there" to "frame" is
short in the case that matters, a frame like the one before it:

* prefix and header come with one call, because the last frame's length tells how much to ask for; what was read
  too far (a body's first bytes, or the next frame) is moved along;
* a header equal to the last one is not decoded again;
* the tensors' memory was allocated before the wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from socket import MSG_WAITALL
from time import monotonic, perf_counter
from typing import NamedTuple

import numpy as np

from splitpoint.errors import ProtocolError, ServerError
from splitpoint.tensors import Array
from splitpoint.transports import Ended
from splitpoint.wire import (
    FIXED_BYTES,
    ID_END,
    ID_START,
    MAGIC,
    PREFIX_BYTES,
    Admit,
    Buffer,
    Frame,
    Infer,
    Kind,
    Limits,
    Message,
    Result,
    Tensor,
    allocate,
    check_tensors,
    parse_header,
    parse_id,
    parse_prefix,
    view_small,
)

_SCRATCH = 64 << 10
_LEAD = 4096
#: A body of up to this many bytes is received with its header and then copied: less work than a second system call.
_SMALL = 16 << 10
#: Large tensors are received in pieces: the kernel tells the sender about room at the end of each call, and the
#: sender waits less (measured with 600 KB on loopback: 340 µs a round trip instead of 400 with one call).
_PIECE = 256 << 10
#: Memory of more than this is not allocated before it is known to be needed: many connections may be waiting.
_AHEAD = 4 << 20
#: No read returns that many bytes: nothing is like the frame before the first.
_NEVER = 1 << 62


class _Lead(NamedTuple):
    """All of a frame but its id and the tensors' bytes: what the next one is compared with."""

    begin: bytes
    rest: bytes
    header_end: int
    end: int
    kind: int
    flags: int
    header: Message | None
    body_bytes: int
    nbytes: int
    tensors: tuple[Tensor, ...]


class Framed(ABC):
    """Receives frames through a function like ``socket.recv_into``; a tensor's bytes go into the array itself."""

    #: Receives up to this many bytes and returns how many, 0 if the peer ended. BlockingIOError when the patience
    #: is at its end. With MSG_WAITALL it tries to receive them all.
    _recv_into: Callable[..., int]

    def __init__(self, peer: str, limits: Limits) -> None:
        self.peer = peer
        self.limits = limits
        self._buffer = bytearray(_LEAD + _SMALL)
        self._view = memoryview(self._buffer)
        self._ask = PREFIX_BYTES
        self._extra = 0  # bytes at the start of _buffer that were read too far
        self._last = _Lead(b"", b"", 0, _NEVER, 0, 0, None, 0, 0, ())
        self._layout: tuple[Tensor, ...] = ()
        self._spare: list[Array] | None = None
        self._timeout_s: float | None = -1.0
        self._queued = 0  # bytes that the peer has not taken yet

    @abstractmethod
    def _be_patient(self, seconds: float) -> None:
        """Makes the next calls of `_recv_into` wait that long for what they want."""

    @abstractmethod
    def _why(self, exc: OSError) -> str:
        """What `exc` means for the connection, as the text of an error."""

    def receive(self, *, timeout_s: float | None = None, admit: Admit | None = None) -> Frame:
        if self._queued > self.limits.backlog_bytes:
            self._let_peer_read()
        if self._spare is None and _SMALL < self._last.body_bytes <= _AHEAD:
            self._spare = allocate(self._layout)
        if timeout_s != self._timeout_s:
            self._timeout_s = timeout_s
            self._be_patient(self._wait_s())
        got = self._extra or self._some()
        started = perf_counter()
        buffer, lead = self._buffer, self._last
        if got < lead.end or not buffer.startswith(lead.begin) or buffer[ID_END : lead.header_end] != lead.rest:
            lead, got = self._parse(got)
            buffer = self._buffer
        header = lead.header
        frame = Frame(lead.kind, lead.flags, parse_id(buffer), header, started, lead.nbytes)
        if type(header) is Result:
            frame.times = bytes(buffer[lead.header_end : lead.end])
        if header is None or (admit is not None and (refused := admit(frame)) is not None):
            frame.refused = None if header is None else refused
            self._skip(lead, got)
        elif got == lead.end + lead.body_bytes <= len(buffer) and lead.tensors:
            self._extra = 0
            frame.tensors = view_small(lead.tensors, self._view, lead.end)
        elif got > lead.end:
            frame.tensors = self._allocate(lead)
            self._fill_after(frame.tensors, lead.end, got)
        else:
            self._extra = 0
            frame.tensors = tensors = self._allocate(lead)
            for array in tensors:
                if nbytes := array.nbytes:
                    self._fill(array, nbytes)
        frame.received = perf_counter()
        if len(self._buffer) > _LEAD + _SMALL:
            self._resize(_LEAD + _SMALL, self._extra)
        return frame

    def _let_peer_read(self) -> None:
        """Waits until the peer has taken some of what is queued for it: one that does not read is not read from."""
        raise NotImplementedError  # only where `_queued` is ever more than 0

    def _wait_s(self) -> float:
        """One wait's length: what the caller allows, but in the middle of a frame no more than `stall_s`."""
        stall_s = self.limits.stall_s
        return stall_s if self._timeout_s is None else min(self._timeout_s, stall_s)

    def _some(self) -> int:
        """The first bytes of a frame, as many as came."""
        waited = 0.0
        while True:
            try:
                got = self._recv_into(self._buffer, self._ask)
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

    def _fill(self, buffer: Buffer, nbytes: int) -> None:
        """Receives exactly `nbytes`; ServerError if the peer ends or stalls."""
        done = 0
        try:
            if nbytes <= _PIECE:
                done = self._recv_into(buffer, nbytes, MSG_WAITALL)
            else:
                view = flat(buffer)
                while done < nbytes:
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
            self._fill_slowly(flat(buffer)[done:nbytes])

    def _fill_slowly(self, view: memoryview) -> None:
        """Receives the rest of a body: the first wait's patience was at its end, or the peer ended."""
        limits = self.limits
        self._be_patient(limits.stall_s)
        self._timeout_s = limits.stall_s
        began, done, size = monotonic(), 0, len(view)
        while done < size:
            try:
                got = self._recv_into(view[done:], size - done, MSG_WAITALL)
            except BlockingIOError as exc:
                raise ServerError(f"{self.peer} went silent in the middle of a frame") from exc
            except OSError as exc:
                raise ServerError(self._why(exc)) from exc
            if not got:
                raise ServerError(f"{self.peer} ended in the middle of a frame")
            done += got
            spent = monotonic() - began
            if done < size and spent > limits.stall_s and done < spent * limits.slowest:
                raise ServerError(f"{self.peer} sends too slowly: {done} bytes in {spent:.0f} s")

    def _parse(self, got: int) -> tuple[_Lead, int]:
        """(the lead of a frame that is not like the last, bytes read so far, at least to the lead's end)."""
        if got < PREFIX_BYTES:
            got = self._finish_prefix(got)
        prefix = parse_prefix(self._buffer, self.limits)
        fixed = FIXED_BYTES if prefix.kind == Kind.RESULT else 0
        if prefix.body_bytes < fixed:
            raise ProtocolError(f"a RESULT begins with {FIXED_BYTES} bytes of times: {prefix.body_bytes} came")
        header_end = PREFIX_BYTES + prefix.header_bytes
        end = header_end + fixed
        if got < end:
            if end > len(self._buffer):
                self._resize(end, got)
            self._fill(self._view[got:end], end - got)
            got = end
        header = parse_header(prefix, self._view[PREFIX_BYTES:header_end])
        body_bytes = prefix.body_bytes - fixed
        lead = _Lead(
            bytes(self._buffer[:ID_START]),
            bytes(self._buffer[ID_END:header_end]),
            header_end,
            end,
            prefix.kind,
            prefix.flags,
            header,
            body_bytes,
            header_end + prefix.body_bytes,
            header.tensors if isinstance(header, (Infer, Result)) else (),
        )
        if isinstance(header, (Infer, Result)):
            if header.tensors != self._layout or body_bytes != self._last.body_bytes:
                check_tensors(header.tensors, body_bytes, self.limits)
                self._layout, self._spare = header.tensors, None
            self._last = lead
        self._ask = min(end, _LEAD)
        if body_bytes <= _SMALL:
            self._ask += body_bytes
        return lead, got

    def _resize(self, nbytes: int, got: int) -> None:
        buffer = bytearray(nbytes)
        buffer[:got] = self._buffer[:got]
        self._buffer, self._view = buffer, memoryview(buffer)

    def _allocate(self, lead: _Lead) -> list[Array]:
        if type(lead.header) is Infer or type(lead.header) is Result:
            arrays = self._spare
            self._spare = None
            return allocate(self._layout) if arrays is None else arrays
        return [np.empty(lead.body_bytes, np.uint8)] if lead.body_bytes else []

    def _finish_prefix(self, got: int) -> int:
        if got < len(MAGIC) and self._buffer[:got] == MAGIC[:got]:
            self._fill(self._view[got : len(MAGIC)], len(MAGIC) - got)
            got = len(MAGIC)
        if self._buffer[: len(MAGIC)] != MAGIC:
            # A banner may be shorter than our prefix: waiting for the rest of it would be waiting for ever.
            parse_prefix(bytes(self._buffer[:got]).ljust(PREFIX_BYTES, b"\0"), self.limits)
        self._fill(self._view[got:PREFIX_BYTES], PREFIX_BYTES - got)
        return PREFIX_BYTES

    def _fill_after(self, arrays: Sequence[Array], start: int, got: int) -> None:
        """Fills `arrays` where their first bytes, and perhaps the next frame's, are in `_lead` already."""
        for array in arrays:
            size = array.nbytes
            if size <= got - start:
                flat(array)[:] = self._view[start : start + size]
                start += size
            elif size:
                view, n = flat(array), got - start
                view[:n] = self._view[start:got]
                start = got
                self._fill(view[n:], size - n)
        self._keep(start, got)

    def _keep(self, start: int, got: int) -> None:
        if got > start:
            self._buffer[: got - start] = self._buffer[start:got]
        self._extra = got - start

    def _skip(self, lead: _Lead, got: int) -> None:
        """Reads the body away, so that the next frame can be read."""
        n = min(got - lead.end, lead.body_bytes)
        self._keep(lead.end + n, got)
        left = lead.body_bytes - n
        scratch = bytearray(min(left, _SCRATCH))
        while left:
            self._fill(scratch, min(left, _SCRATCH))
            left -= min(left, _SCRATCH)


def flat(buffer: Buffer) -> memoryview:
    """`buffer` as plain bytes."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view("u1").data
    return memoryview(buffer)
