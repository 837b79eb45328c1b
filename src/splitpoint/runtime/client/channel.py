"""One conversation with a server as the device sees it: requests out, answers in, whoever asks.

Whoever waits for an answer reads, hands other people's answers to them, and passes the reading on when it has its own:
with one caller, the usual case, an answer wakes exactly the thread that needs it.

After `keep_reading` a thread of its own reads while nobody else does, notices when the connection ends, and takes what
nobody waits for any more (`leave`). Nothing that is sent waits for the link then, and a caller that has waited as long
as it wanted gets its thread back, also in the middle of a frame.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TypeVar

from splitpoint import wire
from splitpoint.errors import ProtocolError, ServerError, SplitpointError, UnreachableError, UsageError
from splitpoint.lifetime import foreign, watch
from splitpoint.runtime.probe.ping import PingSchedule, ping, pings
from splitpoint.runtime.probe.server_clock import Offset, ServerClock
from splitpoint.runtime.threads import begin
from splitpoint.transports import Connection, Ended
from splitpoint.units import counted
from splitpoint.wire import Frame, Kind, Packet

_RESULT = int(Kind.RESULT)
_FIRST_PINGS = 8
_FIRST_PINGS_S = 0.25
#: What use after `close` is told, and whoever waits for an answer then.
CLOSED = "the connection is closed"
#: How long it takes to find out what a server said before it hung up.
_LAST_WORDS_S = 0.2
#: Nobody else has read for so long: then the reading thread does.
_QUIET_S = 0.1
#: How often it is looked for an answer that takes long.
_LOOK_S = 0.1

#: What of an answer is no tensor or piece: times, a checksum, a header that was the last one again.
_BESIDE_NBYTES = 8 << 10

M = TypeVar("M", bound=wire.Message)
#: Called once, from the reading thread: with the answer, or with why there will be none.
Sink = Callable[[Frame | SplitpointError], None]


class Channel:
    """Says HELLO on `connection` and then carries requests for any number of threads."""

    def __init__(
        self,
        connection: Connection,
        *,
        software: str,
        timeout_s: float,
        greet_s: float | None = None,
        checksum: bool = False,
        token: str = "",
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._connection = connection
        self.timeout_s = timeout_s
        self._now = clock
        self.clock = ServerClock()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: dict[int, Frame | None] = {}
        self._sinks: dict[int, Sink] = {}
        #: For every request whose answer may still come, whoever waits for it: how large its body may be.
        self._owed: dict[int, int] = {}
        self._reader: threading.Thread | None = None
        self._quiet = threading.Condition(self._lock)  # what the reading thread sleeps on
        self._on_end: Callable[[SplitpointError], None] = lambda _: None
        self._followers = 0
        self._waits = 0  # how many times somebody has waited: the link is in use
        self._reading = False
        self._broken: SplitpointError | None = None
        self._bye = ""
        self._ids = itertools.count(1)
        self._pings = PingSchedule()
        self.answers = 0
        watch(self)
        self._greet_s = timeout_s if greet_s is None else greet_s
        self.welcome = self._greet(software, checksum, token)

    def _greet(self, software: str, checksum: bool, token: str) -> wire.Welcome:
        # However its bytes drip: an answer that is not all there by then is none.
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._connection.abort()

        timer = threading.Timer(self._greet_s, give_up)
        timer.daemon = True
        begin(timer)
        try:
            return self._greeted(software, checksum, token)
        except (ServerError, TimeoutError) as exc:
            if isinstance(exc, ServerError) and not late.is_set():
                raise
            raise UnreachableError(
                f"{self.peer} did not answer in {self._greet_s:g} s: it does not speak splitpoint, or it hangs"
            ) from exc
        finally:
            timer.cancel()

    def _greeted(self, software: str, checksum: bool, token: str) -> wire.Welcome:
        peer = self.peer
        if token and not self._connection.private:
            raise UsageError(
                f"the token would go to {peer} for all to read on the way: it goes with TLS only (--tls, or --ca FILE)"
            )
        features = (*wire.features(), wire.CRC32) if checksum else wire.features()
        if checksum:
            self._connection.expect_checksums()
        with suppress(ServerError):  # if it hung up already, it may have said why
            hello = wire.Hello(software=software, features=features, token=token, eol="\r\n\r\n")
            self._connection.send(wire.encode(Kind.HELLO, 0, hello))
        try:
            frame = self._receive(timeout_s=self._greet_s)
        except wire.ForeignError as exc:
            answer = wire.printable(exc.data)
            raise ProtocolError(f"{peer} does not speak splitpoint (it answered {answer}): is the port right?") from exc
        except Ended as exc:
            # A proxy before a server that is not there yet does that, too.
            raise UnreachableError(f"{exc}, without a word: does it speak splitpoint?") from exc
        if isinstance(frame.header, wire.Error):
            raise wire.exception_of(frame.header)
        if not isinstance(frame.header, wire.Welcome):
            raise ProtocolError(f"{peer} answered HELLO with {wire.describe(frame.kind)}")
        if checksum and wire.CRC32 not in frame.header.features:
            raise ServerError(f"{peer} makes no checksums: install a newer splitpoint there, or do without")
        if checksum and not frame.flags & wire.CHECKED:
            raise ProtocolError(f"{peer} agreed on checksums and sent WELCOME without one")
        self._connection.agree(set(features).intersection(frame.header.features))
        return frame.header

    # --- asking -------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The other side's address, for messages."""
        return self._connection.peer

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._waiting) + len(self._sinks)

    def reserve(self, *, most: int = 0) -> int:
        """An id for the request that is about to be sent: an answer with a body of more than `most` bytes ends the
        connection, before there is memory for it. ServerError if the connection has ended."""
        if self._broken is not None:
            raise self._again(self._broken)
        if self._bye:
            raise self._ended(ServerError(f"{self._connection.peer} takes no more requests"))
        id = next(self._ids) & 0xFFFFFFFF or next(self._ids) & 0xFFFFFFFF  # 0 stands for the connection
        self._owed[id] = most
        self._waiting[id] = None
        return id

    def _receive(self, *, timeout_s: float | None, whole: bool = False) -> Frame:
        return self._connection.receive(timeout_s=timeout_s, admit=self._admit, whole=whole)

    def _admit(self, frame: Frame) -> None:
        """ProtocolError, before its body is received, for an answer that nobody asked for, or that is too large."""
        most = self._owed.pop(frame.id, -1) if frame.id else 0
        if most < 0:
            raise ProtocolError(
                f"{self.peer} sent {wire.describe(frame.kind)} as the answer to a request that was not made, or has one"
            )
        nbytes = frame.nbytes - frame.header_nbytes
        if nbytes > most + _BESIDE_NBYTES:
            raise ProtocolError(
                f"{self.peer} sent {wire.describe(frame.kind)} of {nbytes} bytes, where {most} are the most that was "
                "asked for"
            )

    def send(self, id: int, packet: Packet) -> None:
        """Sends the request `id`; now and then with a ping in front, which costs it no round trip."""
        try:
            now = self._now()
            if now > self._pings.next_s and self._pings.due(now):
                with_it = wire.encode(Kind.PING, 0, wire.Ping(now))
                packet = Packet((*with_it.buffers, *packet.buffers), with_it.nbytes + packet.nbytes)
            self._connection.send(packet, wait=self._reader is None)
        except ServerError as exc:
            self.abandon(id)
            # The server may have said why before it hung up: that is worth more than "broken pipe".
            raise self._last_words(exc) from exc

    def wait(self, id: int, timeout_s: float | None = None) -> Frame:
        """The answer to request `id`; raises what an ERROR or BUSY stands for, ServerError if none comes in time."""
        frame = self.poll(id, self.timeout_s if timeout_s is None else timeout_s, whole=self._reader is not None)
        if frame is None:
            self.abandon(id)
            raise self.late()
        return frame

    def poll(self, id: int, within_s: float, whole: bool = True) -> Frame | None:
        """The answer to request `id`, as `wait`; None if it is not here `within_s`: then it can be waited for again.
        Without `whole` an answer that has begun by then is received to its end."""
        lock, ours = self._lock, True
        frame: Frame | None = None
        with lock:
            self._waits += 1
            if self._reading or self._waiting[id] is not None:
                end = monotonic() + within_s
                frame, ours = self._follow(id, end)
                if ours:
                    within_s = max(0.0, end - monotonic())
            self._reading = self._reading or ours
        if not ours:
            return None if frame is None else self.judge(frame)
        over = True
        try:
            if self._broken is not None:
                raise self._again(self._broken)
            frame = self._connection.receive(timeout_s=within_s, admit=self._admit, whole=whole)
            if frame.id != id:
                frame = self._lead(id, within_s, frame, whole=whole)
        except TimeoutError:
            over = False
            return None
        except SplitpointError as exc:
            self._broken = self._broken or self._ended(exc)
            raise self._broken from exc
        finally:
            with lock:
                self._reading = False
                if over:
                    self._waiting.pop(id, None)
                if self._followers:
                    self._arrived.notify_all()
                if self._broken is not None:
                    self._quiet.notify()
        if frame.kind == _RESULT:  # on the way of every request: no call of `judge`
            self.answers += 1
            return frame
        return self.judge(frame)

    def abandon(self, id: int) -> None:
        """Nobody waits for `id` any more: its answer will be dropped."""
        with self._lock:
            self._waiting.pop(id, None)
            self._sinks.pop(id, None)

    def leave(self, id: int, sink: Sink) -> None:
        """Nobody waits for `id` any more: what still comes of it goes to `sink`, from the thread that reads."""
        with self._lock:
            frame = self._waiting.pop(id, None)
            why = self._broken
            if frame is None and why is None:
                self._sinks[id] = sink
                self._quiet.notify()
        if frame is not None:
            sink(frame)
        elif why is not None:
            sink(self._again(why))

    def ask(
        self,
        kind: int,
        header: wire.Message,
        answer: type[M],
        timeout_s: float | None = None,
        *,
        most: int = 0,
        pause: Callable[[float], bool] | None = None,
    ) -> tuple[M, Frame]:
        """Sends a request without a body and waits: (the answer's header, its frame, with a body of `most` bytes).

        `pause` is for an answer that may take long: it waits so many seconds, between two looks, and says whether to
        stop. Whoever waits in `poll` meanwhile reads, and would hand over the answers to everybody's requests, each a
        few tenths of a millisecond later, or as late as its own priority makes it.
        """
        id = self.reserve(most=most)
        self.send(id, wire.encode(kind, id, header))
        if pause is not None:
            return self._of(self._look_for(id, self.timeout_s if timeout_s is None else timeout_s, pause), answer)
        return self.expect(id, answer, timeout_s)

    def _look_for(self, id: int, timeout_s: float, wait: Callable[[float], bool]) -> Frame:
        """The answer to request `id`, as `wait`, but a tenth later, or `_LOOK_S`."""
        began_s = monotonic()
        while (frame := self.poll(id, 0.0, whole=self._reader is not None)) is None:
            spent_s = monotonic() - began_s
            if spent_s >= timeout_s or wait(min(max(spent_s / 10, 1e-3), _LOOK_S, timeout_s - spent_s)):
                self.abandon(id)
                raise self.late() if spent_s >= timeout_s else ServerError(CLOSED)
        return frame

    def expect(self, id: int, answer: type[M], timeout_s: float | None = None) -> tuple[M, Frame]:
        """Waits for request `id`, whose answer must be an `answer`."""
        return self._of(self.wait(id, timeout_s), answer)

    def _of(self, frame: Frame, answer: type[M]) -> tuple[M, Frame]:
        if not isinstance(frame.header, answer):
            raise ProtocolError(f"the server answered with {wire.describe(frame.kind)}, not {answer.__name__}")
        return frame.header, frame

    def tell(self, kind: int, header: wire.Message) -> None:
        """Sends what has no answer."""
        self._connection.send(wire.encode(kind, 0, header), wait=self._reader is None)

    def ping(self, timeout_s: float) -> float | None:
        """The seconds of a round trip; None if none was made in time, or the connection has ended."""
        try:
            trip = ping(self, timeout_s, self._now)
        except SplitpointError:
            return None
        self.clock.add(*trip[:4])
        return trip.seconds

    # --- reading ------------------------------------------------------------------------------------------------

    def keep_reading(self, on_end: Callable[[SplitpointError], None] = lambda _: None) -> None:
        """From now on a thread of its own reads while nobody waits, and nothing that is sent waits for the link.
        `on_end` is told why the connection has ended, before whoever left a request. Nothing, the second time."""
        with self._lock:
            if self._reader is not None:
                return
            self._on_end = on_end
            self._connection.keep_reading()
            reader = threading.Thread(target=self._read, name=f"read {self._connection.peer}", daemon=True)
            begin(reader)
            self._reader = reader

    def _read(self) -> None:
        while self._our_turn():
            try:
                self._deliver(self._receive(timeout_s=None))
            except SplitpointError as exc:
                self._broken = self._broken or self._ended(exc)
            except Exception as exc:  # a bug of ours must not leave anyone waiting
                self._broken = self._broken or ServerError(f"what the server sent could not be read: {exc!r}")
            finally:
                with self._lock:
                    self._reading = False
                    self._arrived.notify_all()
        with self._lock:
            sinks, self._sinks = list(self._sinks.values()), {}
            self._arrived.notify_all()
        why = self._broken or ServerError(CLOSED)
        self._on_end(why)
        for sink in sinks:
            sink(self._again(why))

    def _our_turn(self) -> bool:
        """Waits until nobody else reads and somebody should; then the reading is ours. False if there is no more."""
        with self._lock:
            seen = -1
            while self._broken is None:
                if not self._reading and not self._followers and (self._sinks or seen == self._waits):
                    self._reading = True
                    return True
                seen = self._waits
                self._quiet.wait(_QUIET_S)
            return False

    def _follow(self, id: int, end: float) -> tuple[Frame | None, bool]:
        """(our answer, or None; whether the reading is ours now): as soon as one is so, or at `end`. Holds the lock."""
        self._followers += 1
        try:
            while True:
                frame = self._waiting[id]
                if frame is not None:
                    del self._waiting[id]
                    return frame, False
                if self._broken is not None:
                    del self._waiting[id]
                    raise self._again(self._broken)
                if not self._reading:
                    return None, True
                if not self._arrived.wait(end - monotonic()):
                    return None, False
        finally:
            self._followers -= 1

    def _lead(self, id: int, limit: float, frame: Frame, *, whole: bool) -> Frame:
        """Delivers `frame`, which is not the answer to `id`, and reads until that is here; TimeoutError."""
        end = monotonic() + limit
        while frame.id != id:
            self._deliver(frame)
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError
            frame = self._receive(timeout_s=left, whole=whole)
        return frame

    def _deliver(self, frame: Frame) -> None:
        """What a frame means that is not the reader's own answer. Errors of the whole connection are raised."""
        header = frame.header
        if frame.id == 0 and frame.kind == Kind.PONG and isinstance(header, wire.Pong):
            if self._pings.answered(header.ping_s):  # else one that nobody waits for any more
                self.clock.add(header.ping_s, header.received_s, header.sent_s, frame.started)
        elif frame.kind == Kind.BYE and isinstance(header, wire.Bye):
            self._bye = header.reason or "it is ending"
        elif frame.id == 0 and isinstance(header, wire.Error):
            raise wire.exception_of(header)
        elif frame.id:
            with self._lock:
                sink = self._sinks.pop(frame.id, None)
                if frame.id in self._waiting:
                    self._waiting[frame.id] = frame
                    if self._followers:
                        self._arrived.notify_all()
            if sink is not None:
                sink(frame)

    def judge(self, frame: Frame) -> Frame:
        """`frame`, if it is an answer; raises what an ERROR or BUSY stands for."""
        if frame.kind == _RESULT:
            self.answers += 1
        elif isinstance(frame.header, (wire.Error, wire.Busy)):
            exc = wire.exception_of(frame.header)
            raise self._ended(exc) if self._bye and type(exc) is ServerError else exc
        return frame

    # --- trouble ------------------------------------------------------------------------------------------------

    def late(self) -> ServerError:
        """The error for an answer that does not come."""
        return ServerError(f"{self.peer} did not answer in time")

    def _ended(self, exc: SplitpointError) -> SplitpointError:
        if type(exc) is ProtocolError or not isinstance(exc, ServerError):
            return exc
        done = f", after {counted(self.answers, 'answer')}" if self.answers else ""
        why = f" ({self._bye})" if self._bye and self._bye not in str(exc) else ""
        return ServerError(f"{exc}{why}{done}")

    def _again(self, exc: SplitpointError) -> SplitpointError:
        """A fresh exception with the same meaning: one object must not collect the tracebacks of many threads."""
        if isinstance(exc, (ProtocolError, UsageError)):
            return exc
        return ServerError(str(exc))

    def _last_words(self, exc: ServerError) -> SplitpointError:
        with self._lock:
            if self._reading and self._reader is not None:  # who reads notices too, and may have read why
                self._followers += 1
                self._arrived.wait_for(lambda: self._broken is not None, _LAST_WORDS_S)
                self._followers -= 1
                self._broken = self._broken or self._ended(exc)
            if self._reading or self._broken is not None:
                return self._broken or exc
            self._reading = True
        try:
            while True:
                self._deliver(self._receive(timeout_s=_LAST_WORDS_S))
        except TimeoutError:
            self._broken = self._ended(exc)
        except SplitpointError as last:
            self._broken = self._ended(
                exc if isinstance(last, ServerError) and type(last) is not ProtocolError else last
            )
        finally:
            with self._lock:
                self._reading = False
                self._arrived.notify_all()
                self._quiet.notify()
        return self._broken

    # --- the clock and the end ----------------------------------------------------------------------------------

    def measure_clock(self) -> None:
        """A few pings, one after the other; at least one."""
        for trip in pings(self, _FIRST_PINGS_S, _FIRST_PINGS, self._now, timeout_s=lambda: self._greet_s):
            self.clock.add(*trip[:4])
        self._pings.measured(self._now())

    def offset_at(self, packed: float, answer: Frame) -> Offset | None:
        """The clocks' offset for the times in `answer`, its request handed over at `packed`; None: they make no sense.

        Where they contradict what the pings said, it is no better known than the answer itself tells, and the next
        request brings a ping along.
        """
        if answer.times:
            t = wire.parse_times(answer.times)
            if t is None:
                return None
            spent = t.decode_s + t.queue_s + t.compute_s + t.encode_s
            if not self.clock.judge(packed, t.received_s, spent, answer.received):
                self._pings.hurry()
        return self.clock.best

    @property
    def ended(self) -> bool:
        """Whether it is of no more use: closed, broken, or the server has said goodbye."""
        return self._broken is not None or bool(self._bye)

    @property
    def moved_nbytes(self) -> int:
        """Bytes that the link has carried so far, both ways, as far as the system knows; 0 where it does not."""
        return self._connection.moved_nbytes()

    def abort(self, why: str) -> None:
        """Ends the connection at once; what is queued is thrown away, so that it delays nothing that comes after."""
        self._broken = self._broken or ServerError(f"{self.peer} {why}")
        self._connection.abort()
        with self._lock:
            self._quiet.notify()  # the reading thread, if it sleeps

    def forked(self) -> None:
        """The process has forked, and this is the child: the conversation is the parent's."""
        self._lock = threading.Lock()
        self._arrived, self._quiet = threading.Condition(self._lock), threading.Condition(self._lock)
        self._broken, self._reading, self._reader = foreign("connection"), False, None
        self._sinks.clear()
        self._owed.clear()

    def close(self, why: str = CLOSED) -> None:
        """Says goodbye, if there is anyone to say it to, and ends the connection."""
        if self._broken is None:
            with suppress(ServerError):
                self.tell(Kind.BYE, wire.Bye("done"))
            self._broken = ServerError(why)
        self._connection.close()
        with self._lock:
            self._quiet.notify()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(1.0)
