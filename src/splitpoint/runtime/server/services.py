"""What those who work for one connection share: the parts of the server that runs, and how its client is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splitpoint import wire
from splitpoint.errors import BusyError, EngineError, ServerError, SplitpointError
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server import TailRunner
from splitpoint.runtime.server.accounts import Ledger
from splitpoint.runtime.server.catalogue import Catalogue, Sharing
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.transports import Connection, Ended
from splitpoint.wire import Kind, Limits

#: How requests of HTTP begin.
_VERBS = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"DELE", b"CONN", b"PATC", b"PRI ")


@dataclass(frozen=True)
class Services:
    """`builders` are the workers for what is slow (planning and compiling tails); `pause` waits, less long if the
    server ends meanwhile. `profiling` is None where tails are not computed by this process."""

    limits: Limits
    catalogue: Catalogue
    sharing: Sharing
    ledger: Ledger
    runner: TailRunner
    builders: Compute
    profiling: Profiling | None
    tell: OnEvent
    pause: Callable[[float], object]


class Replies:
    """Sends on `connection`, and tells `tell` of what cannot be said to the client."""

    def __init__(self, connection: Connection, tell: OnEvent) -> None:
        self.connection, self._tell = connection, tell

    def send(self, packet: wire.Packet, *, wait: bool = False) -> None:
        """Sends if the peer is still there; if not, its reader thread finds out."""
        try:  # noqa: SIM105 - on the way of every answer: `suppress` costs more than sending
            self.connection.send(packet, wait=wait)
        except (ServerError, RuntimeError, MemoryError):  # the last two: no thread for a slow reader; it has ended
            pass

    def refuse(self, id: int, exc: SplitpointError) -> None:
        """Says why request `id` gets no other answer."""
        self.send(wire.encode(Kind.ERROR, id, wire.error_of(exc)))

    def refuse_request(self, id: int, exc: SplitpointError) -> None:
        """`refuse` for INFER and PROFILE, which are told by BUSY when to ask again."""
        if isinstance(exc, BusyError):
            self.send(wire.encode(Kind.BUSY, id, wire.Busy(exc.retry_after_s, str(exc))))
        else:
            self.refuse(id, exc)

    def hide(self, what: str, exc: Exception, said: str) -> EngineError:
        """Tells whoever runs the server that `what` has gone wrong by `exc`; returns what the client is to be told."""
        why = wire.plain(repr(exc))
        self._tell(Event("failed", f"{what}: {why}", {"peer": self.connection.peer, "why": why}))
        return EngineError(f"{said}; the server's log says more")

    def give_up(self, id: int, exc: Exception) -> None:
        """Not even an ERROR could be made (no memory, a bug): the connection ends, so that nobody waits for ever."""
        self.connection.abort()
        self.hide(f"request {id} of {self.connection.peer} has no answer", exc, "it has none")

    def last_word(self, exc: Exception) -> str:
        """Says why the connection ends by `exc`, in a stranger's own language where we know it; returns what to log."""
        if isinstance(exc, Ended):
            return ""
        if isinstance(exc, wire.ForeignError):
            if exc.data[:4] in _VERBS:
                text = "this port speaks splitpoint's own protocol, not HTTP\n"
                head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
                data = (head + text).encode()
                self.send(wire.Packet((data,), len(data)))
                return "it speaks HTTP"
            if exc.data[:2] == b"\x16\x03":
                return "it speaks TLS"
        if isinstance(exc, SplitpointError):
            self.refuse(0, exc)
            return str(exc)
        # A bug of ours must not take the server down.
        self.refuse(0, ServerError("the server has an internal error; its log says more"))
        return f"internal error: {exc!r}"
