"""Frames between machines: how a side connects, and where the other one listens.

A transport moves whole frames (`splitpoint.wire`). It is a module with two functions:

    connect(address, limits, timeout_s, security) -> Connection    # what a device calls
    listen(host, port, limits, security) -> Listener               # what a server calls

>>> from splitpoint import wire
>>> from splitpoint.transports import connect, listen
>>> listener = listen("memory://kitchen")
>>> device = connect(listener.address)
>>> server = listener.accept()
>>> device.send(wire.encode(wire.Kind.PING, 1, wire.Ping(2.5)))
>>> server.receive().header
Ping(clock_s=2.5)
>>> device.close(); server.close(); listener.close()

To add one: a file with a `Connection` (`framed.Framed` does all but move the bytes), a `Listener` (over TCP:
`tcp.TcpListener`) and these two functions; a line in `TRANSPORTS`; a parameter in tests/transports/test_framed.py. Then
``Edge("name://HOST")`` and ``Server(…, host="name://HOST")`` speak it.

| module | |
|---|---|
| tcp, tls | sockets, and the same encrypted |
| memory | inside one process |
| framed | frames over any stream of bytes |
| addresses | as people write them; a name's addresses tried side by side |
| budget | what strangers may take in a time |
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, Final, Protocol

from splitpoint.errors import ServerError, UsageError
from splitpoint.security import OPEN, Security, ServerSecurity
from splitpoint.transports.budget import Backlog
from splitpoint.wire import DEFAULT_PORT, Admit, Frame, Limits, Packet

#: Scheme of an address → the module that speaks it. No scheme means tcp, or tls where certificates are given.
TRANSPORTS: Final = {
    "tcp": "splitpoint.transports.tcp",
    "tls": "splitpoint.transports.tls",
    "memory": "splitpoint.transports.memory",
}


class Ended(ServerError):
    """The peer closed the connection between two frames."""


class Connection(Protocol):
    """One side of a conversation in frames. Any thread may `send`; one at a time may `receive`."""

    peer: str
    """The other side's address, such as ``192.168.1.7:41234``. What stands before the last colon is whose it is."""
    sent_nbytes: int
    """Bytes of all frames that were given to `send`."""

    @property
    def private(self) -> bool:
        """Whether nobody between the two ends can read what is sent; else no token is."""

    @property
    def identity(self) -> str:
        """The name in a certificate that the peer has shown and that was checked; empty if none was."""

    @property
    def behind(self) -> bool:
        """Whether the peer does not read what is sent, and it or its like have all they may have waiting."""

    def handshake(self, timeout_s: float) -> None:
        """A server's side agrees on encryption, where there is any, before it receives the first frame.

        ServerError if that fails. AccessError or `ForeignError` for who does not speak it: it can still be told so.
        """

    def hold_to(self, limits: Limits, due_s: float | None = None) -> None:
        """From now on what comes is held to `limits`, and all of it must be there at `due_s` (`time.monotonic`)."""

    def share(self, backlog: Backlog) -> None:
        """Counts what the peer has not read to `backlog`, which other connections may be counted to as well."""

    def expect_checksums(self) -> None:
        """The next frame may come with a checksum, which is then checked: HELLO asks for that."""

    def agree(self, features: Collection[str]) -> None:
        """From now on frames look as `features`, which WELCOME names, say (checksums, batches)."""

    def keep_reading(self) -> None:
        """From now on it is read from however much the peer has not taken yet: answers are what is waited for."""

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


class Listener(Protocol):
    """Where a server accepts connections. It listens from when it is made until it is closed."""

    address: str
    """What a client connects to: ``HOST:PORT`` for TCP and TLS, else with the scheme."""
    everywhere: bool
    """Whether it listens at every address of this machine, of which `address` is one."""
    exposed: bool
    """Whether other machines can reach it."""
    private: bool
    """Whether nobody between the ends can read what goes over its connections."""
    identifies: bool
    """Whether only clients that show a certificate it knows get through the handshake."""

    def accept(self, on_starved: Callable[[str], None] = ...) -> Connection | None:
        """The next connection; None once `wake` or `close` was called.

        `on_starved` is told why one cannot be taken for want of descriptors or memory: once, until one can again.
        """

    def wake(self) -> None:
        """Makes `accept` return None, now and ever after."""

    def close(self) -> None:
        """Stops listening, and makes `accept` return None."""


def connect(
    address: str, limits: Limits | None = None, timeout_s: float = 10.0, security: Security = OPEN
) -> Connection:
    """A connection to ``[SCHEME://]HOST[:PORT]``. ServerError if nothing answers there, with what to do."""
    module, rest = _transport(address, "tls" if security.encrypts else "tcp")
    if not rest.strip():
        raise UsageError("the server's address is empty: --cloud HOST[:PORT]")
    connection: Connection = module.connect(rest, limits or Limits(), timeout_s, security)
    return connection


def listen(
    host: str, port: int = DEFAULT_PORT, limits: Limits | None = None, security: ServerSecurity | None = None
) -> Listener:
    """A listener at ``[SCHEME://]HOST``. UsageError or ServerError if it cannot listen there, with what to do."""
    security = security or ServerSecurity()
    module, rest = _transport(host, "tls" if security.certificate is not None else "tcp")
    listener: Listener = module.listen(rest, port, limits or Limits(), security)
    return listener


def _transport(address: str, default: str) -> tuple[Any, str]:
    """(the module that speaks the scheme of `address`, what follows that)."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = default, address
    if scheme not in TRANSPORTS:
        raise UsageError(f"no transport {scheme}:// (in {address}): known are {', '.join(TRANSPORTS)}")
    return import_module(TRANSPORTS[scheme]), rest
