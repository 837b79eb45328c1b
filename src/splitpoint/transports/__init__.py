"""Frames between machines.

A transport moves whole frames (`splitpoint.wire`). What it must be able to do is small:

    class Connection(Protocol):
        peer: str                                             # "192.168.1.7:41234", for messages
        checks: bool; seals: bool                             # checksums: looked at, made and demanded
        private: bool                                         # whether nobody between the ends can read it
        def send(self, packet, *, wait=True) -> None         # a frame from wire.encode
        def receive(self, *, timeout_s=None, admit=None, whole=False) -> Frame
        def close(self, linger_s=0.0) -> None
        def abort(self) -> None                               # at once, without what is queued
        def moved_nbytes(self) -> int                         # what the link has carried, if that is known

>>> from splitpoint import wire
>>> from splitpoint.transports import memory
>>> device, server = memory.pair()
>>> device.send(wire.encode(wire.Kind.PING, 1, wire.Ping(2.5)))
>>> server.receive().header
Ping(clock_s=2.5)
>>> device.close(); server.close()

To add one: a file with a class that fits (`framed.Framed` does all but move the bytes), a line in `TRANSPORTS`,
a parameter in tests/transports/test_framed.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, Protocol

from splitpoint.errors import ServerError, UsageError
from splitpoint.security import OPEN, Security
from splitpoint.wire import Admit, Frame, Limits, Packet

#: Scheme of an address → the module whose `connect(address, limits, timeout_s)` opens it. No scheme means tcp, or tls
#: (whose `connect` takes a `Security` too) where that asks for it.
TRANSPORTS: Final = {
    "tcp": "splitpoint.transports.tcp",
    "tls": "splitpoint.transports.tls",
}


class Ended(ServerError):
    """The peer closed the connection between two frames."""


class Connection(Protocol):
    """One side of a conversation in frames. Any thread may `send`; one at a time may `receive`."""

    peer: str
    checks: bool
    """Whether a frame that comes with a checksum has it looked at: ProtocolError if it is wrong."""
    seals: bool
    """Whether every frame is sent with one, and one that comes without is a ProtocolError."""

    @property
    def private(self) -> bool:
        """Whether nobody between the two ends can read what is sent; else no token is."""
        ...

    def send(self, packet: Packet, *, wait: bool = True) -> None:
        """Sends one frame. Without `wait` it never blocks: what does not fit now is sent behind the scenes.

        Its buffers must not change until they are sent. ServerError if the connection is gone.
        """

    def receive(self, *, timeout_s: float | None = None, admit: Admit | None = None, whole: bool = False) -> Frame:
        """The next frame. TimeoutError if none begins within `timeout_s` (None: for ever); nothing is lost then.

        With `whole` it is also one if the frame is not all there by then: the next call goes on with what has come.
        `Ended` if the peer closed; ServerError if it ended or stalled inside a frame; ProtocolError if what
        came is not a frame. After any of these three the connection is of no more use.
        """

    def close(self, linger_s: float = 0.0) -> None:
        """Ends it and wakes whoever waits on it, after at most `linger_s` to deliver what is queued."""

    def abort(self) -> None:
        """Ends it at once and wakes whoever waits on it; what is queued is thrown away, by the system too."""

    def moved_nbytes(self) -> int:
        """Bytes that have reached the peer or come from it; 0 where the system does not say."""
        ...


def connect(
    address: str, limits: Limits | None = None, timeout_s: float = 10.0, security: Security = OPEN
) -> Connection:
    """A connection to ``[SCHEME://]HOST[:PORT]``. ServerError if nothing answers there, with what to do."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "tls" if security.encrypts else "tcp", address
    if not rest.strip():
        raise UsageError("the server's address is empty: --cloud HOST[:PORT]")
    if scheme not in TRANSPORTS:
        raise UsageError(f"no transport {scheme}:// (in {address}): known are {', '.join(TRANSPORTS)}")
    if scheme != "tls" and security.encrypts:
        raise UsageError(f"{address} is without TLS, but TLS is asked for: write tls://{rest}")
    more = (security,) if scheme == "tls" else ()
    opened: Connection = import_module(TRANSPORTS[scheme]).connect(rest, limits or Limits(), timeout_s, *more)
    return opened
