"""Bytes from one socket to another by the schedule of two lanes: the loop inside a relay.

One thread and `select`: its time limit has microseconds where Python's `poll` and `epoll` have milliseconds, and a
loop that owns all sockets needs no locks. All connections share the link, as they do in reality.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import msgspec

from splitpoint.callbacks import call
from splitpoint.errors import ServerError, UsageError
from splitpoint.lab.shaper import Damage, ShapedLane
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.transports.addresses import dial, format_address

T = TypeVar("T")

#: Segments as on a real network. Loopback's are 64 kB, and its sender's buffer would then hide 2.6 MB (measured;
#: 40 kB with these): at 0.13 Mbit/s that is 160 seconds of "sent".
_SEGMENT_NBYTES = 1400
#: What the kernel may hold for us: this much time at the link's rate, within bounds that keep TCP moving.
_BUFFER_S = 10e-3
_BUFFER_LEAST, _BUFFER_MOST = 4 << 10, 512 << 10
#: A lab link has a handful.
_MOST_CONNECTIONS = 128
#: How long whoever asks for something waits for the loop.
_ASKED_S = 5.0
#: How often a trace is asked for its link while bytes flow.
_TRACE_S = 5e-3
#: To the least and the most by which a wait is begun early and then watched, so that it does not end late.
_EARLY_S, _EARLIEST_S = 30e-6, 400e-6
#: Linux: when the bytes came, in the wall clock's time. Older than this, they were waiting, or the clock was set.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("ll")
_STAMP_NBYTES = socket.CMSG_SPACE(_TIMESPEC.size)
_WAKE_S = 5e-3
#: A chunk that is followed by another one this soon need not be handed over to the microsecond.
_SHARP_S = 2e-3
_PR_SET_TIMERSLACK = 29
_RESET = struct.pack("ii", 1, 0)


class Status(msgspec.Struct, frozen=True):
    """`up_nbytes` and `down_nbytes` have arrived since the beginning, `changed_nbytes` of them changed on the way;
    `held_nbytes` are on their way now."""

    connections: int
    up_nbytes: int
    down_nbytes: int
    held_nbytes: int
    changed_nbytes: int = 0


@dataclass(eq=False, slots=True)
class _Flow:
    """One direction of one connection. `held` bytes were read and are not yet written."""

    pair: _Pair
    source: socket.socket
    sink: socket.socket
    lane: _Road
    overdue: deque[memoryview] = field(default_factory=deque)
    held: int = 0
    ended: bool = False  # the source has said all
    done: bool = False  # and the sink was told


class _Pair:
    __slots__ = ("connected", "flows")

    def __init__(self, near: socket.socket, far: socket.socket, up: _Road, down: _Road) -> None:
        self.flows = (_Flow(self, near, far, up), _Flow(self, far, near, down))
        self.connected = False


class _Road(ShapedLane[tuple["_Flow", "bytes | None"]]):
    """A lane and those who send into it. It carries bytes, or None: the source has ended."""

    def __init__(self, seed: str) -> None:
        super().__init__(1.0, random=Random(seed))
        self.damage = Damage(Random(f"{seed}:damage"))
        self.flows: list[_Flow] = []
        self.idle = True
        self.nbytes = 0
        self._turn = 0

    def next_flow(self) -> list[_Flow]:
        """Those with room, beginning after the one that was served last: no connection starves another."""
        self._turn += 1
        k = self._turn % max(1, len(self.flows))
        return [f for f in self.flows[k:] + self.flows[:k] if not f.ended and f.held < self.most]


class Forwarder:
    """Listens at `host`:`port` and carries bytes to and from `target` as `link` would. `run` does the work.

    UsageError or ServerError if it cannot listen there, or if nothing answers at `target`.
    """

    def __init__(
        self, target: str, link: Link | LinkTrace, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._target = _answering(target)
        self.target = target
        self._tell = on_event
        self._up, self._down = _Road(f"{seed}:up"), _Road(f"{seed}:down")
        self._pairs: set[_Pair] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._trace: LinkTrace | None = None
        self._trace_began = self._asked_trace = 0.0
        self._refuse_until = self._black_until = float("-inf")
        self._cut_after: tuple[int, float] | None = None
        self._early_s = _EARLY_S
        self._running = True
        self._holder, unready = _bind(host, port)
        self._sockaddr = self._holder.getsockname()
        self.address = format_address(self._sockaddr)
        self._waked, self._waker = socket.socketpair()
        self._waked.setblocking(False)
        self._waker.setblocking(False)
        self._listener: socket.socket | None = None
        self.set_link(link)
        self._listener = self._listen(unready)

    # --- what others ask for; from any thread through `ask` --------------------------------------------------------

    def ask(self, job: Callable[[], T]) -> T:
        """Runs `job` in the loop's thread and returns what it does."""
        done: Future[T] = Future()
        self._jobs.put(lambda: done.set_result(job()))
        self.wake()
        try:
            return done.result(_ASKED_S)
        except FutureTimeoutError:
            raise ServerError("the relay does not answer: it has ended") from None

    def wake(self) -> None:
        with suppress(OSError):
            self._waker.send(b"x")

    def stop(self) -> None:
        """Makes `run` return. May be called from a signal handler or another thread."""
        self._running = False
        self.wake()

    def set_link(self, link: Link | LinkTrace) -> None:
        """Shapes by `link` from now on; a trace begins now."""
        self._trace = None if isinstance(link, Link) else link
        self._trace_began = time.monotonic()
        self._shape(link if isinstance(link, Link) else link.at(0.0))

    def stall(self, seconds: float) -> None:
        """Not a byte arrives for `seconds`, in either direction; none is lost."""
        now = time.monotonic()
        self._up.stall(now, seconds)
        self._down.stall(now, seconds)

    def blackhole(self, seconds: float) -> None:
        """Nothing passes for `seconds`: no byte, no new connection, no end or reset of one. Then all of it does.

        A new connection seems to be made (the kernel answers for us) and is silent. What was sent arrives once the time
        is over, at once: TCP would send it again, and waits for up to as long again before it does.
        """
        self._black_until = max(self._black_until, time.monotonic() + seconds)
        self.stall(seconds)

    def corrupt(self, direction: str, after_nbytes: int = 0, count: int = 1) -> None:
        """Flips one bit of each of `count` bytes, once `after_nbytes` more have gone ``"up"`` or ``"down"``.

        Whatever connection they belong to. A second order for the same direction takes the place of the first.
        """
        (self._up if direction == "up" else self._down).damage.order(after_nbytes, count)

    def cut(self, refuse_s: float = 0.0, after_nbytes: int = 0) -> None:
        """Resets every connection, once `after_nbytes` more have gone up; then refuses new ones for `refuse_s`.

        The server gets these bytes, and then the end of the connection.
        """
        if after_nbytes > 0:
            self._cut_after = (after_nbytes, refuse_s)
            return
        self._cut_after = None
        for pair in list(self._pairs):
            self._reset(pair)
        if refuse_s > 0:
            self._refuse_until = time.monotonic() + refuse_s
            if self._listener is not None:
                self._listener.close()
                self._listener = None

    def status(self) -> Status:
        """How many connections there are, and how much was carried."""
        held = sum(f.held for p in self._pairs for f in p.flows)
        changed = self._up.damage.nbytes + self._down.damage.nbytes
        return Status(len(self._pairs), self._up.nbytes, self._down.nbytes, held, changed)

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carries bytes until `stop`; then every connection is reset and every socket closed."""
        try:
            while self._running:
                self._turn()
        finally:
            for pair in list(self._pairs):
                self._reset(pair)
            for sock in (self._listener, self._holder, self._waked, self._waker):
                if sock is not None:
                    sock.close()

    def _turn(self) -> None:
        self._do_jobs()
        self._follow_trace()
        if time.monotonic() >= self._black_until:
            for road in (self._up, self._down):
                self._hand_over(road)
                self._take_in(road)
        readable, writable = self._wait()
        if self._waked in readable:
            with suppress(BlockingIOError):
                self._waked.recv(4096)
        if self._listener is not None and self._listener in readable:
            self._accept(self._listener)
        if writable:
            for pair in list(self._pairs):
                if not pair.connected and pair.flows[0].sink in writable:
                    self._connected(pair)
                for flow in pair.flows:
                    if flow.overdue and flow.sink in writable:
                        self._write(flow)

    def _wait(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """Who can be read and written now; returns in time for what is due next.

        A sleep ends late (100–200 µs on a virtual machine), so it is begun that much shorter and the rest is watched.
        Only where nothing follows closely: within a stream the next chunk makes up for it.
        """
        reading, writing, until, sharp = self._wanted()
        if until == float("inf"):
            return _ready(reading, writing, None)
        while True:
            left = until - time.monotonic()
            short = left - self._early_s if sharp else left
            readable, writable = _ready(reading, writing, max(0.0, short))
            if readable or writable or left <= 0:
                return readable, writable
            if short > 0:
                late = time.monotonic() - (until - left) - short
                self._early_s += 0.1 * (min(max(1.5 * late, _EARLY_S), _EARLIEST_S) - self._early_s)
                if not sharp:
                    return [], []

    def _wanted(self) -> tuple[list[socket.socket], list[socket.socket], float, bool]:
        """Who may read, who may write, until when to wait, and whether that moment matters."""
        now = time.monotonic()
        until, sharp = float("inf"), False
        reading = [self._waked]
        if now < self._black_until:
            return reading, [], self._black_until, False
        if self._listener is None:
            until = self._refuse_until
        elif len(self._pairs) < _MOST_CONNECTIONS:
            reading.append(self._listener)
        for road in (self._up, self._down):
            if (at := road.next_at) is not None and at < until:
                until, sharp = at, road.followed_after >= _SHARP_S
            if not road.flows:
                continue
            if road.ready_at > now:
                ready = road.ready_at if self._trace is None else min(road.ready_at, now + _TRACE_S)
                if ready < until:
                    until, sharp = ready, False
            else:
                reading += [f.source for f in road.flows if not f.ended and f.held < road.most]
        writing = [p.flows[0].sink for p in self._pairs if not p.connected]
        writing += [f.sink for p in self._pairs if p.connected for f in p.flows if f.overdue]
        return reading, writing, until, sharp

    def _do_jobs(self) -> None:
        while not self._jobs.empty():
            job = self._jobs.get()
            job()
        if self._listener is None and time.monotonic() >= self._refuse_until:
            self._listener = self._listen(_socket(self._sockaddr, self._holder.family))

    def _follow_trace(self) -> None:
        now = time.monotonic()
        if self._trace is None or now < self._asked_trace + _TRACE_S:
            return
        self._asked_trace = now
        link = self._trace.at(now - self._trace_began)
        if link != self.link:
            self._shape(link)

    def _shape(self, link: Link) -> None:
        self.link = link
        now, one_way_s = time.monotonic(), link.rtt_ms / 2e3
        self._up.set(now, link.up_mbps, one_way_s, link.jitter_ms)
        self._down.set(now, link.down_mbps, one_way_s, link.jitter_ms)
        if self._listener is not None:
            _bound(self._listener, self._up, self._down)
        for pair in self._pairs:
            for flow in pair.flows:
                _bound(flow.source, flow.lane, self._up if flow.lane is self._down else self._down)

    # --- bytes -----------------------------------------------------------------------------------------------------

    def _take_in(self, road: _Road) -> None:
        """Reads what the road has room for by now."""
        now = time.monotonic()
        while road.flows and now >= road.ready_at:
            for flow in road.next_flow():
                try:
                    data, came = self._read(flow.source, road)
                except BlockingIOError:
                    continue
                except OSError:
                    self._reset(flow.pair)
                    break
                road.admit(came, len(data), (flow, data or None), waiting=not road.idle)
                road.idle = False
                flow.held += len(data)
                flow.ended = not data
                break
            else:
                road.idle = True
                return
            now = time.monotonic()

    def _read(self, source: socket.socket, road: _Road) -> tuple[bytes, float]:
        """A chunk and when it came. Only the kernel knows when the first of a burst did: we were asleep then."""
        if not road.idle:
            return source.recv(road.chunk), time.monotonic()
        data, notes, _, _ = source.recvmsg(road.chunk, _STAMP_NBYTES)
        now = time.monotonic()
        for level, kind, stamp in notes:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                age = time.time() - seconds - nanoseconds * 1e-9
                if 0 <= age <= _WAKE_S:
                    return data, now - age
        return data, now

    def _hand_over(self, road: _Road) -> None:
        """Writes what has arrived by now."""
        for flow, data in road.arrived(time.monotonic()):
            if flow.pair not in self._pairs:
                continue
            if data is None:
                flow.done = True
            else:
                arrived = memoryview(road.damage.passed(data))
                if road is self._up and self._cut_after is not None:
                    left, refuse_s = self._cut_after
                    arrived = arrived[:left]
                    self._cut_after = (left - len(data), refuse_s)
                flow.overdue.append(arrived)
            self._write(flow)

    def _write(self, flow: _Flow) -> None:
        """Writes what is due and fits; then, if the source has ended, says so."""
        if not flow.pair.connected:
            return
        try:
            while flow.overdue:
                data = flow.overdue[0]
                sent = flow.sink.send(data)
                flow.held -= sent
                flow.lane.nbytes += sent
                if sent < len(data):
                    flow.overdue[0] = data[sent:]
                    return
                flow.overdue.popleft()
            if self._cut_after is not None and self._cut_after[0] <= 0:
                flow.sink.shutdown(socket.SHUT_WR)  # a reset could overtake what was let through
                self.cut(self._cut_after[1])
                return
            if flow.done:
                flow.done = False
                flow.lane.flows.remove(flow)
                flow.sink.shutdown(socket.SHUT_WR)
                if all(f not in f.lane.flows for f in flow.pair.flows):
                    self._close(flow.pair)
        except BlockingIOError:
            return
        except OSError:
            self._reset(flow.pair)

    # --- connections -----------------------------------------------------------------------------------------------

    def _listen(self, sock: socket.socket) -> socket.socket:
        _bound(sock, self._up, self._down)
        sock.listen(_MOST_CONNECTIONS)
        sock.setblocking(False)
        return sock

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return  # it left before it was greeted
        far = socket.socket(self._target[0], socket.SOCK_STREAM)
        for sock, reads, writes in ((near, self._up, self._down), (far, self._down, self._up)):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sock is far:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_NBYTES)
            _bound(sock, reads, writes)
        pair = _Pair(near, far, self._up, self._down)
        self._pairs.add(pair)
        for flow in pair.flows:
            flow.lane.flows.append(flow)
        error = far.connect_ex(self._target[1])
        if error not in (0, errno.EINPROGRESS):
            self._unreachable(pair, error)

    def _connected(self, pair: _Pair) -> None:
        error = pair.flows[0].sink.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._unreachable(pair, error)
            return
        pair.connected = True
        for flow in pair.flows:
            self._write(flow)

    def _unreachable(self, pair: _Pair, error: int) -> None:
        call(self._tell, f"a connection was reset: {self.target} cannot be reached ({os.strerror(error)})")
        self._reset(pair)

    def _reset(self, pair: _Pair) -> None:
        """Ends both sides at once: what was on its way is lost, as when a network goes."""
        for flow in pair.flows:
            with suppress(OSError):
                flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(pair)

    def _close(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        for flow in pair.flows:
            flow.source.close()
            if flow in flow.lane.flows:
                flow.lane.flows.remove(flow)


def _ready(
    reading: list[socket.socket], writing: list[socket.socket], seconds: float | None
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Who of them can be read and written, once one can or the time is over (None: for ever)."""
    # This process is the relay's own: its descriptors stay far below the 1024 that `select` knows.
    readable, writable, _ = select.select(reading, writing, [], seconds)  # noqa: TID251
    return readable, writable


def _bound(sock: socket.socket, reads: _Road, writes: _Road) -> None:
    """Keeps the kernel's buffers to a few milliseconds of the link, and has it note when bytes come."""
    if sys.platform == "linux":
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    for option, lane in ((socket.SO_RCVBUF, reads), (socket.SO_SNDBUF, writes)):
        nbytes = int(min(max(lane.bytes_per_s * _BUFFER_S, _BUFFER_LEAST), _BUFFER_MOST))
        with suppress(OSError):  # it has ended; the next read will say so
            sock.setsockopt(socket.SOL_SOCKET, option, nbytes)


def _socket(sockaddr: tuple[object, ...], family: int) -> socket.socket:
    """A bound socket whose accepted connections have segments of a network's size."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_NBYTES)
        sock.bind(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Two sockets at one port: one to listen, and one that never does and keeps the port while all are refused."""
    where = format_address((host, port))
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        holder = _socket(sockaddr, family)
        try:
            return holder, _socket(holder.getsockname(), family)
        except BaseException:
            holder.close()
            raise
    except OverflowError as exc:
        raise UsageError(f"{port} is not a port number (0 to 65535)") from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ServerError(f"port {port} on {host} is in use: take another one, or 0 for any free one") from exc
        if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"{host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for every interface"
            ) from exc
        raise ServerError(f"cannot listen at {where}: {exc.strerror or exc}") from exc


def _answering(target: str) -> tuple[int, tuple[object, ...]]:
    """Where `target` answers. ServerError if it does not: said at once, not at the first connection."""
    try:
        sock, _ = dial(target, 5.0)
    except ServerError as exc:
        raise ServerError(
            f"nothing answers at {target} ({exc}): start the server there first, or check the port"
        ) from exc
    with sock:
        return sock.family, sock.getpeername()


def be_punctual() -> None:
    """Lets this process run when it should: Linux adds up to 50 µs to each wait, to save power, and a relay that
    waits for a processor behind those whose bytes it carries is late. Without the right to it, it does without.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
