"""Connections inside one process: the same frames, no sockets. For tests, and for a device beside its server."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from splitpoint.errors import ServerError, UnreachableError
from splitpoint.security import Security, ServerSecurity
from splitpoint.transports.framed import Framed, foreign_use
from splitpoint.wire import Buffer, Limits, Packet, checked, flat


class _ByteStream:
    """Bytes one way. Unbounded: what is put in stays until it is read."""

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

    def take(self, places: Sequence[Buffer], timeout_s: float | None) -> int:
        """Bytes moved into `places`, one after the other: at least one, or 0 when closed and empty. BlockingIOError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._parts or self._closed, timeout_s):
                raise BlockingIOError
            moved = 0
            for view in map(flat, places):
                while self._parts and len(view):
                    part = self._parts.popleft()
                    n = min(len(part), len(view))
                    view[:n] = part[:n]
                    view = view[n:]
                    if n < len(part):
                        self._parts.appendleft(part[n:])
                    moved += n
            return moved

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryConnection(Framed):
    """One of two connections that are each other's peer."""

    private = True

    def __init__(self, peer: str, inward: _ByteStream, outward: _ByteStream, limits: Limits) -> None:
        super().__init__(peer, limits)
        self._in, self._out = inward, outward
        self._lock = threading.Lock()
        self.sent_nbytes = 0
        self._recv_into = self._take
        self._recvmsg_into = self._take_into

    def send(self, packet: Packet, *, wait: bool = True) -> None:
        if self._recv_into is foreign_use:
            foreign_use()
        if self.seals:
            packet = checked(packet)
        with self._lock:
            self.sent_nbytes += packet.nbytes
            for part in packet.buffers:
                self._out.put(bytes(flat(part)))

    def _be_patient(self, seconds: float) -> None:
        self._seconds = seconds

    def _take(self, buffer: Buffer, nbytes: int, flags: int = 0) -> int:
        return self._in.take((flat(buffer)[:nbytes],), self._seconds)

    def _take_into(self, places: Sequence[Buffer]) -> tuple[int]:
        return (self._in.take(places, self._seconds),)

    def _why(self, exc: OSError) -> str:
        return f"the connection to {self.peer} is closed"

    def close(self, linger_s: float = 0.0) -> None:
        self._in.close()
        self._out.close()

    def abort(self) -> None:
        self.close()

    def moved_nbytes(self) -> int:
        return 0


def pair(
    limits: Limits | None = None, names: tuple[str, str] = ("memory:a", "memory:b")
) -> tuple[MemoryConnection, MemoryConnection]:
    """Two connections that are each other's peer, with these `names`."""
    one, two = _ByteStream(), _ByteStream()
    limits = limits or Limits()
    return MemoryConnection(names[1], one, two, limits), MemoryConnection(names[0], two, one, limits)


class MemoryListener:
    """Takes the connections that this process makes to ``memory://NAME``."""

    private = True
    everywhere = exposed = identifies = False

    def __init__(self, name: str, limits: Limits) -> None:
        """ServerError if another one listens by that name."""
        self.address = f"memory://{name}"
        self._limits, self._numbers = limits, itertools.count(1)
        self._waiting: SimpleQueue[MemoryConnection | None] = SimpleQueue()
        if _listeners.setdefault(self.address, self) is not self:
            raise ServerError(f"another server listens at {self.address}: take another name")

    def connect(self, limits: Limits) -> MemoryConnection:
        """The client's side of a new connection."""
        near, far = pair(limits, (f"memory:{next(self._numbers)}", self.address))
        far.hold_to(self._limits)
        self._waiting.put(far)
        return near

    def accept(self, on_starved: Callable[[str], None] = lambda why: None) -> MemoryConnection | None:
        connection = self._waiting.get()
        if connection is None:
            self.wake()  # for whoever calls next
        return connection

    def wake(self) -> None:
        self._waiting.put(None)

    def close(self) -> None:
        if _listeners.get(self.address) is self:
            del _listeners[self.address]
        while not self._waiting.empty():
            if (connection := self._waiting.get()) is not None:
                connection.close()
        self.wake()


#: Address → who listens there.
_listeners: dict[str, MemoryListener] = {}


def connect(address: str, limits: Limits, timeout_s: float, security: Security) -> MemoryConnection:
    """A connection to the server that listens by this name in this process. UnreachableError if none does."""
    listener = _listeners.get(f"memory://{address}")
    if listener is None:
        raise UnreachableError(f"nothing listens at memory://{address} in this process: start the server first")
    return listener.connect(limits)


def listen(host: str, port: int, limits: Limits, security: ServerSecurity) -> MemoryListener:
    """Listens by the name `host`; a port plays no part."""
    return MemoryListener(host, limits)
