"""Frames over TCP, with blocking sockets: bytes go straight from the kernel into the tensor's own memory.

Threads and blocking calls, not asyncio: no turn of an event loop and no copy through a stream's buffer stands
between a request and its bytes. Time limits are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO), so no call pays for a poll.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from splitpoint.errors import ServerError, UsageError
from splitpoint.lifetime import foreign, watch
from splitpoint.security import Security, ServerSecurity
from splitpoint.transports import Connection
from splitpoint.transports.addresses import (
    Selector,
    connected,
    format_address,
    is_link_local,
    is_loopback,
    is_wildcard,
    own_address,
    parse_host,
)
from splitpoint.transports.framed import Framed, foreign_use
from splitpoint.wire import Buffer, Limits, Packet, checked, flat

#: What is said when a process has no descriptor left, and what helps.
_NO_DESCRIPTORS = "this process has no file descriptor left: allow it more (ulimit -n), or fewer --connections"
#: Ports that are looked at for one that is free.
_NEAR = 20

#: Connections that the kernel holds until they are accepted (fewer where it allows fewer): one too many waits a second.
_BACKLOG = 1024
#: How long a connection that could not be taken waits before that is tried again.
_STARVED_S = 0.1

#: How often a connection whose peer does not read looks whether it may be read from again, seconds.
_LOOK_S = 0.5
#: What a frame that waits to be sent takes besides its bytes: the objects around them.
_PACKET = 512

_TIMEVAL = struct.Struct("ll")
_DONTWAIT = socket.MSG_DONTWAIT
_NO_LINGER = struct.pack("ii", 1, 0)
#: Linux: tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info.
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_MOVED = struct.Struct("QQ")
_MOVED_AT = 120
#: How long a closing connection reads what its peer may still be sending: a round trip or two.
_READ_AWAY_S = 0.3
#: A device that waits for an answer asks for it again and again this long before it sleeps. Waking up costs a third of
#: a short round trip (docs/benchmarks.md), and an answer that takes longer costs the battery no more than this.
SPIN_S = 200e-6


class TcpConnection(Framed):
    """A connected socket. Replies that the peer is slow to read wait in a queue with a thread of their own."""

    def __init__(self, sock: socket.socket, peer: str, limits: Limits, *, spin_s: float = 0.0) -> None:
        super().__init__(peer, limits, spin_s)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # named differently, or absent, outside Linux
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        self._sock = sock
        self._recv_into = sock.recv_into
        self._recvmsg_into = sock.recvmsg_into
        # Typed loosely: numpy's arrays are buffers in the eyes of a type checker from Python 3.12 on only.
        self._sendmsg: Callable[..., int] = sock.sendmsg
        self._limit(socket.SO_SNDTIMEO, limits.stall_s)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Packet] = deque()
        self._writing = False
        # Since when the peer is being timed, and how many bytes it has taken since.
        self._window_s, self._taken = 0.0, 0
        self.sent_nbytes = 0
        self._broken = ""
        self._closed = False

    def _limit(self, option: int, seconds: float) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(round(seconds * 1e6), 1_000_000)))

    @property
    def private(self) -> bool:
        try:
            return is_loopback(str(self._sock.getpeername()[0]))
        except OSError:
            return False

    # --- receiving ---------------------------------------------------------------------------------------------

    def _be_patient(self, seconds: float) -> None:
        # 0 means "for ever" to the kernel, and a microsecond is the least it can wait.
        try:
            self._limit(socket.SO_RCVTIMEO, max(seconds, 1e-6))
        except OSError as exc:  # closed by another thread
            raise ServerError(self._why(exc)) from exc

    def _let_peer_read(self) -> None:
        with self._lock:
            while self._writing and self.behind:
                self._changed.wait(_LOOK_S)  # others may have read meanwhile

    def _why(self, exc: OSError) -> str:
        if self._closed:
            return f"the connection to {self.peer} is closed"
        if isinstance(exc, (ConnectionResetError, BrokenPipeError)):
            return f"{self.peer} closed the connection"
        return f"the connection to {self.peer} broke: {exc.strerror or exc}"

    # --- sending -----------------------------------------------------------------------------------------------

    def send(self, packet: Packet, *, wait: bool = True) -> None:
        began = False
        if self.seals:
            packet = checked(packet)
        try:
            with self._lock:
                if self._broken:
                    raise ServerError(self._broken) if self._sendmsg is not foreign_use else foreign("connection")
                self.sent_nbytes += packet.nbytes
                if self._writing:
                    # Whoever is writing takes this along: no sender waits for another one's slow peer.
                    self._enqueue(packet)
                    return
                began = True
                # Never blocks, so the lock may be held; nearly always all of it fits into the kernel's buffer.
                try:
                    sent = self._sendmsg(packet.buffers, (), _DONTWAIT)
                    if sent == packet.nbytes:
                        return
                except BlockingIOError:
                    sent = 0
                except OSError as exc:
                    raise self._break(exc) from exc
                packet = Packet(views(packet.buffers, sent), packet.nbytes - sent)
                self._writing = True
                self._window_s, self._taken = time.monotonic(), 0
                if not wait:
                    self._enqueue(packet)
                    threading.Thread(target=self._write_queued, name=f"write {self.peer}", daemon=True).start()
                    return
            self._write(packet)
        except ServerError:
            raise
        except BaseException:  # Ctrl-C, no memory, no thread: half a frame may be out, so nothing can follow it
            if began:
                with self._lock:
                    self._end(f"sending to {self.peer} was interrupted")
            raise

    def _enqueue(self, packet: Packet) -> None:
        self._queue.append(packet)
        self._count(packet.nbytes + _PACKET)

    def _count(self, nbytes: int) -> None:
        """So many more bytes wait for the peer to read; the lock is held."""
        self._queued += nbytes
        self._backlog.add(nbytes)

    def _write_queued(self) -> None:
        try:
            self._write(None)
        except ServerError:
            pass  # it is recorded: the next send and receive report it
        except Exception as exc:  # no memory, a bug: half a frame may be out
            with self._lock:
                self._end(f"sending to {self.peer} failed: {exc!r}")

    def _write(self, packet: Packet | None) -> None:
        """Writes `packet`, then what was queued meanwhile; the caller has set `_writing`."""
        while True:
            while packet is not None:
                try:
                    sent = self._sendmsg(packet.buffers)
                    self._keep_up(sent)
                except OSError as exc:
                    with self._lock:
                        raise self._break(exc) from exc
                rest = packet.nbytes - sent
                packet = Packet(views(packet.buffers, sent), rest) if rest else None
            with self._lock:
                if not self._queue:
                    self._writing = False
                    self._changed.notify_all()
                    return
                packet = self._queue.popleft()
                self._count(-packet.nbytes - _PACKET)
                self._changed.notify_all()

    def _keep_up(self, sent: int) -> None:
        """Notes that the peer has taken `sent` more bytes. BlockingIOError if it reads more slowly than it may."""
        now = time.monotonic()
        limits, spent = self.limits, now - self._window_s
        self._taken += sent
        if spent < limits.stall_s:
            return
        slow = self._taken < limits.slowest * spent
        self._window_s, self._taken = now, 0
        if slow:
            raise BlockingIOError

    def _break(self, exc: OSError) -> ServerError:
        """Ends the connection, with the lock held, and returns why."""
        stalled = isinstance(exc, BlockingIOError)
        self._end(f"{self.peer} does not read its answers" if stalled else self._why(exc))
        return ServerError(self._broken)

    def _end(self, why: str) -> None:
        """Nothing more is written, and whoever waits for that need not; the lock is held."""
        self._broken = self._broken or why
        self._writing = False
        self._queue.clear()
        self._count(-self._queued)
        self._changed.notify_all()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- the end -----------------------------------------------------------------------------------------------

    def close(self, linger_s: float = 0.0) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if linger_s > 0 and not self._broken:
            self._linger(time.monotonic() + linger_s)
        else:
            self._say_end()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._broken = self._broken or f"the connection to {self.peer} is closed"
            self._changed.wait_for(lambda: not self._writing, 5.0)
        self._sock.close()

    def abort(self) -> None:
        # Linux throws away what it has not sent of a socket that does not linger, and sends a reset.
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._sock.shutdown(socket.SHUT_RDWR)  # another thread may be closing it, and wait for its peer
        self.close()

    def _say_end(self) -> None:
        """Sends what an encrypted connection ends with, if that can be done at once."""

    def forked(self) -> None:
        super().forked()
        self._lock = threading.Lock()  # a thread of the parent may have held the other one
        self._changed = threading.Condition(self._lock)
        self._queue = deque()
        self._writing, self._closed = False, True
        self._broken, self._sendmsg = str(foreign("connection")), foreign_use
        self._sock.close()  # no shutdown: that would end the parent's side too

    def moved_nbytes(self) -> int:
        """What the kernel counts as acknowledged and received; 0 where it does not (before Linux 4.1, elsewhere)."""
        try:
            return sum(_MOVED.unpack_from(self._sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256), _MOVED_AT))
        except (OSError, struct.error):
            return 0

    def _linger(self, end: float) -> None:
        """Delivers what is queued, then reads the peer's rest away: closing on unread bytes would make the kernel
        send a reset, which can overtake the last answer."""
        with self._lock:
            self._changed.wait_for(lambda: not self._writing, end - time.monotonic())
        self._say_end()
        end = min(end, time.monotonic() + _READ_AWAY_S)
        with suppress(OSError, ServerError):
            self._sock.shutdown(socket.SHUT_WR)
            scratch = bytearray(64 << 10)
            left = 4 << 20
            while left > 0 and (now := time.monotonic()) < end:
                self._be_patient(max(end - now, 1e-3))
                n = self._sock.recv_into(scratch)
                if not n:
                    break
                left -= n


def views(buffers: Sequence[Buffer], skip: int) -> list[memoryview]:
    """`buffers` as plain bytes, without the first `skip` of them."""
    result = []
    for part in buffers:
        view = flat(part)
        if skip < len(view):
            result.append(view[skip:])
        skip = max(0, skip - len(view))
    return result


#: How a connection is made of (an accepted socket, its peer, limits).
Wrap = Callable[[socket.socket, str, Limits], Connection]


class TcpListener:
    """A listening socket, of any transport over TCP: `wrap` makes a connection of what it accepts, and `scheme`, such
    as ``http://``, stands before its address.

    At ``::`` it takes connections by IPv4 too. UsageError for a host that is none, ServerError if it cannot listen
    there.
    """

    private = identifies = False

    def __init__(self, host: str, port: int, limits: Limits, wrap: Wrap = TcpConnection, scheme: str = "") -> None:
        self._limits, self._wrap = limits, wrap
        host = parse_host(host)
        try:
            self._sock = _listening(host, port)
            try:
                self._wake, self._waker = socket.socketpair()
            except OSError:
                self._sock.close()
                raise
        except OSError as exc:
            raise _cannot_listen(host, port, exc) from exc
        self._sock.setblocking(False)
        self.sockaddr: tuple[str, int] = self._sock.getsockname()[:2]
        self.everywhere = is_wildcard(self.sockaddr[0])
        at = (own_address(self._sock.family), self.sockaddr[1]) if self.everywhere else self._sock.getsockname()
        self.address = scheme + format_address(at)
        self._starved = False
        self.exposed = not is_loopback(self.sockaddr[0])
        watch(self)

    def accept(self, on_starved: Callable[[str], None] = lambda why: None) -> Connection | None:
        while self._comes():
            try:
                sock, sockaddr = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                continue  # it left before it was greeted
            except OSError as exc:
                # Out of descriptors or memory, mostly: the connection stays in the kernel's queue until some are free.
                # Whatever else it is, those who are here are served on, and the next one may come through.
                if not self._starved:
                    self._starved = True
                    on_starved(_NO_DESCRIPTORS if exc.errno == errno.EMFILE else exc.strerror or str(exc))
                self._comes(_STARVED_S)
                continue
            self._starved = False
            try:
                return self._wrap(sock, format_address(sockaddr), self._limits)
            except OSError:
                sock.close()
            except BaseException:
                sock.close()
                raise
        return None

    def _comes(self, pause_s: float | None = None) -> bool:
        """Waits for a connection, or makes a pause; False if `close` or `wake` was called."""
        # `Selector` needs no descriptor of its own: there may be none left.
        with Selector() as selector:
            try:
                for sock in (self._sock, self._wake) if pause_s is None else (self._wake,):
                    selector.register(sock, selectors.EVENT_READ)
            except ValueError:
                if self._sock.fileno() >= 0:
                    raise
                return False  # closed just before it was to be waited for: a socket without a descriptor
            return self._wake not in [key.fileobj for key, _ in selector.select(pause_s)]

    def forked(self) -> None:
        """The process has forked, and this is the child: the port is the parent's alone."""
        for sock in (self._sock, self._wake, self._waker):
            sock.close()

    def wake(self) -> None:
        with suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        self.wake()
        self._sock.close()
        self._wake.close()
        self._waker.close()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens at the first address of `host` where that is possible. OSError."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if is_wildcard(host) and infos[0][0] == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        with suppress(OSError):  # a system without IPv6 has another address for every interface
            socket.socket(socket.AF_INET6).close()
            return socket.create_server(infos[0][4], family=socket.AF_INET6, backlog=_BACKLOG)
        return socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)
    why = OSError()
    for family, _, _, _, sockaddr in infos:
        both = family == socket.AF_INET6 and is_wildcard(str(sockaddr[0]))
        try:
            return socket.create_server(sockaddr, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        except OSError as exc:
            why = exc
    raise why


def _free_port(host: str, port: int) -> int:
    """The next port at `host` that is free; 0, which stands for any, if that cannot be found out."""
    for other in range(port + 1, min(port + _NEAR, 65535) + 1):
        with suppress(OSError):
            _listening(host, other).close()
            return other
    return 0


def _cannot_listen(host: str, port: int, exc: OSError) -> ServerError | UsageError:
    where = format_address((host, port))
    if exc.errno == errno.EADDRINUSE:
        return ServerError(
            f"port {port} on {host} is in use: stop what listens there, or take another port, such as "
            f"{_free_port(host, port)}"
        )
    if exc.errno == errno.EMFILE:
        return ServerError(f"cannot listen at {where}: {_NO_DESCRIPTORS}")
    if exc.errno == errno.EACCES:
        return ServerError(f"port {port} on {host} is not allowed: ports below 1024 need rights, 3277 does not")
    if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for every interface")
    if exc.errno == errno.EINVAL and is_link_local(host):
        return UsageError(f"{host} is one of every link: say which, as in {host}%eth0")
    why = os.strerror(exc.errno) if exc.errno else str(exc)  # Python adds what it was doing to the system's words
    return ServerError(f"cannot listen at {where}: {why}")


def connect(address: str, limits: Limits, timeout_s: float, security: Security) -> TcpConnection:
    """A connection to ``HOST[:PORT]``. ServerError says what is wrong there and what to do; UsageError if `security`
    asks for TLS."""
    if security.encrypts:
        raise UsageError(f"tcp://{address} is without TLS, but TLS is asked for: write tls://{address}")
    return connected(partial(TcpConnection, limits=limits, spin_s=SPIN_S), address, timeout_s)


def listen(host: str, port: int, limits: Limits, security: ServerSecurity) -> TcpListener:
    """Listens at `host`. UsageError if `security` has a certificate, which only TLS shows."""
    if security.certificate is not None:
        raise UsageError(f"tcp://{host} is without TLS, but a certificate is given: write tls://{host}")
    return TcpListener(host, port, limits)
