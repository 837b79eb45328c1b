"""A connection inside one process, for tests: the same frames, no sockets."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from splitpoint.errors import ServerError
from splitpoint.transports.framed import Framed, foreign_use
from splitpoint.wire import Buffer, Limits, Packet, checked, flat


class _Stream:
    """Bytes one way. Unbounded: what a test puts in stays until it is read."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, data: bytes) -> None:
        with self._changed:
            if self._closed:
                raise ServerError("the connection is closed")
            if data:
                self._parts.append(memoryview(data))
            self._changed.notify_all()

    def take(self, view: memoryview, timeout_s: float | None) -> int:
        """Bytes moved into `view`: at least one, or 0 when closed and empty. BlockingIOError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._parts or self._closed, timeout_s):
                raise BlockingIOError
            moved = 0
            while self._parts and moved < len(view):
                part = self._parts.popleft()
                n = min(len(part), len(view) - moved)
                view[moved : moved + n] = part[:n]
                if n < len(part):
                    self._parts.appendleft(part[n:])
                moved += n
            return moved

    def waiting(self) -> bool:
        """Whether there are bytes now."""
        with self._changed:
            return bool(self._parts)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryConnection(Framed):
    private = True

    def __init__(self, peer: str, inward: _Stream, outward: _Stream, limits: Limits) -> None:
        super().__init__(peer, limits)
        self._in, self._out = inward, outward
        self._lock = threading.Lock()
        self._recv_into = self._take
        self._recvmsg_into = self._take_into

    def send(self, packet: Packet, *, wait: bool = True) -> None:
        if self._recv_into is foreign_use:
            foreign_use()
        if self.seals:
            packet = checked(packet)
        with self._lock:
            for part in packet.buffers:
                self._out.put(bytes(flat(part)))

    def _be_patient(self, seconds: float) -> None:
        self._seconds = seconds

    def _take(self, buffer: Buffer, nbytes: int, flags: int = 0) -> int:
        return self._in.take(flat(buffer)[:nbytes], self._seconds)

    def _take_into(self, places: Sequence[Buffer]) -> tuple[int]:
        got = 0
        for place in places:
            view = flat(place)
            if got and not self._in.waiting():
                break
            n = self._in.take(view, self._seconds) if len(view) else 0
            got += n
            if n < len(view):
                break
        return (got,)

    def _why(self, exc: OSError) -> str:
        return f"the connection to {self.peer} is closed"

    def close(self, linger_s: float = 0.0) -> None:
        self._in.close()
        self._out.close()

    def abort(self) -> None:
        self.close()

    def moved_nbytes(self) -> int:
        return 0


def pair(limits: Limits | None = None) -> tuple[MemoryConnection, MemoryConnection]:
    """Two connections that are each other's peer."""
    one, two = _Stream(), _Stream()
    limits = limits or Limits()
    return MemoryConnection("memory:b", one, two, limits), MemoryConnection("memory:a", two, one, limits)
