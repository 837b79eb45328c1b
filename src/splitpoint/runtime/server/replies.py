"""What is sent back to one client, whatever becomes of the connection meanwhile."""

from __future__ import annotations

from splitpoint import wire
from splitpoint.errors import BusyError, EngineError, ServerError, SplitpointError
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.transports import Connection
from splitpoint.wire import Kind

#: The most characters of a reason in an event: a peer can have words in it.
WHY = 1000


class Replies:
    """Sends on `connection`, and tells `tell` of what cannot be said to the client."""

    def __init__(self, connection: Connection, tell: OnEvent) -> None:
        self._connection, self._tell = connection, tell

    def send(self, packet: wire.Packet, *, wait: bool = False) -> None:
        """Sends if the peer is still there; if not, its reader thread finds out."""
        try:  # noqa: SIM105 - on the way of every answer: `suppress` costs more than sending
            self._connection.send(packet, wait=wait)
        except (ServerError, RuntimeError, MemoryError):  # the last two: no thread for a slow reader; it has ended
            pass

    def refuse(self, id: int, exc: SplitpointError) -> None:
        """Says why request `id` gets no other answer."""
        self.send(wire.encode(Kind.ERROR, id, wire.error_of(exc)))

    def busy(self, id: int, exc: BusyError) -> None:
        """Says when to ask again, in the way that INFER and PROFILE are told it."""
        self.send(wire.encode(Kind.BUSY, id, wire.Busy(exc.retry_after_s, str(exc))))

    def hide(self, what: str, exc: Exception, said: str) -> EngineError:
        """Tells whoever runs the server that `what` has gone wrong by `exc`; returns what the client is to be told."""
        why = wire.plain(repr(exc), WHY)
        self._tell(Event("failed", f"{what}: {why}", {"peer": self._connection.peer, "why": why}))
        return EngineError(f"{said}; the server's log says more")

    def give_up(self, id: int, exc: Exception) -> None:
        """Not even an ERROR could be made (no memory, a bug): the connection ends, so that nobody waits for ever."""
        self._connection.abort()
        self.hide(f"request {id} of {self._connection.peer} has no answer", exc, "it has none")
