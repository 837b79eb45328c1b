"""The way to one server, made again when it is lost: one channel at a time, a breaker before it, a thread behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from random import Random
from time import monotonic

from splitpoint import wire
from splitpoint.errors import (
    AccessError,
    ModelError,
    ProtocolError,
    RefusedError,
    ServerError,
    SplitpointError,
    UsageError,
)
from splitpoint.runtime.circuit_breaker import DOWN, UP, Breaker
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import ignore
from splitpoint.runtime.threads import begin, persist
from splitpoint.transports import Connection

#: What will be the same the next time, unless someone changes something there: it is still tried, but not waited for.
REFUSALS = (AccessError, ModelError, RefusedError, UsageError)
#: Bytes that the system sends and acknowledges although nothing of ours moves: pings.
_PINGS_NBYTES = 1024


class Line:
    """`channel` is the connection of the moment; it may have ended. `why` is what was last wrong with it.

    Until `keep` is called nothing is done about that, and every request may try. From then on a lost connection is made
    again by `dial` (which says early what it is about to greet, so that it can be ended), and `reopen` opens on it what
    requests need, before one is risked. `on_state` is told of every change of `state`.
    """

    def __init__(
        self,
        channel: Channel,
        dial: Callable[[Callable[[Connection], None]], Channel],
        patience: Patience,
        random: Random,
        on_state: Callable[[str], None],
    ) -> None:
        self.channel, self._dial = channel, dial
        self._patience, self._on_state = patience, on_state
        self._breaker = Breaker(
            random,
            failures=patience.failures,
            first_pause_s=patience.pause_s,
            longest_pause_s=patience.longest_pause_s,
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._said = DOWN if channel.ended else UP  # one that was never there is no news
        self.met = not channel.ended
        """Whether the server has been there at all."""
        self.refusal: SplitpointError | None = None
        """What the server said when it was tried for the last time, if waiting for another answer is of no use."""
        self._doubt_s = 0.0
        self._slowest_s = 0.0
        self._closed = False
        self._greeting: Connection | None = None
        self._thread: threading.Thread | None = None
        self._reopen: Callable[[Channel], None] = lambda _: None
        self._rest: Callable[[Channel], None] = lambda _: None
        self.why = ""

    # --- what requests ask and tell -----------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``up``, ``down`` or ``trying``."""
        return self._breaker.state if self._thread is not None else DOWN if self.channel.ended else UP

    def allows(self) -> bool:
        """Whether a request may go over now. One that may tells how it went: succeeded, failed, lost or dropped."""
        with self._lock:
            return self._thread is None or self._breaker.allows(monotonic())

    def succeeded(self) -> None:
        """A request was answered."""
        self._tell(self._breaker.succeeded)
        if self.state == UP:
            self.why = ""

    def failed(self, why: str, retry_after_s: float = 0.0, refusal: SplitpointError | None = None) -> None:
        """A request was late or refused, on a connection that stands. `refusal`: waiting for more is of no use."""
        self.why = why

        def count() -> None:
            self._breaker.failed(monotonic(), retry_after_s)
            if self._breaker.state == DOWN:
                self.refusal = refusal

        self._tell(count)

    def lost(self, channel: Channel, why: str) -> None:
        """`channel` is of no more use; nothing, if there is another one already."""
        if channel is self.channel and not self._closed:
            self.why = why
            self._tell(lambda: self._breaker.lost(monotonic()))

    def dropped(self) -> None:
        """Nobody waits for the answer to a request any more."""
        self._tell(self._breaker.dropped)

    def doubt(self, limit_s: float) -> None:
        """Has the connection tried with a ping: it is given up if for `limit_s` neither that nor anything moves."""
        with self._lock:
            self._doubt_s = max(self._doubt_s, limit_s, self._patience.pong_s)
            self._changed.notify_all()

    def expect(self, predicted_s: float) -> None:
        """Answers take so long now: a ping may have to wait behind one."""
        self._slowest_s = predicted_s

    def wait(self, timeout_s: float) -> None:
        """Returns when something has changed, or after `timeout_s`."""
        with self._lock:
            self._changed.wait(max(0.0, timeout_s))

    def _tell(self, what: Callable[[], None]) -> None:
        with self._lock:
            if self._thread is not None:
                what()
            self._changed.notify_all()
            state = self.state
            news = state != self._said and not self._closed
            self._said = state
        if news:
            self._on_state(state)

    # --- what goes on behind ------------------------------------------------------------------------------------

    def keep(self, reopen: Callable[[Channel], None], rest: Callable[[Channel], None]) -> None:
        """From now on a lost connection is made again: with `reopen`, before a request is risked, and then `rest`."""
        self._reopen, self._rest = reopen, rest
        self._thread = threading.Thread(
            target=persist, args=(self._run, "line", ignore, self.wait), name="line", daemon=True
        )
        try:
            begin(self._thread)
        except ServerError:
            self._thread = None
            raise
        self.attach(self.channel)
        if self.channel.ended:
            self.lost(self.channel, self.why or "the server is gone")

    def attach(self, channel: Channel) -> None:
        """Has `channel` read by a thread of its own, which notices when it ends."""
        channel.detach(lambda exc: self.lost(channel, gone(exc)))

    def _run(self) -> bool:
        while True:
            with self._lock:
                while not self._closed and not self._due():
                    pause_s = self._breaker.due_s - monotonic() if self._breaker.state == DOWN else None
                    self._changed.wait(pause_s)
                if self._closed:
                    return False
                down, doubt_s = self._breaker.state == DOWN, self._doubt_s
                self._doubt_s = 0.0
            if down:
                self._probe()
            else:
                self._examine(self.channel, doubt_s)

    def _due(self) -> bool:
        if self._breaker.state == DOWN:
            return monotonic() >= self._breaker.due_s
        return self._doubt_s > 0

    def _examine(self, channel: Channel, limit_s: float) -> None:
        """Gives `channel` up if nothing moves on it for `limit_s`."""
        while not channel.ended and not self._closed:
            before = channel.moved_nbytes
            if channel.ping(limit_s) is not None:
                return
            if channel.moved_nbytes - before <= _PINGS_NBYTES and not self._closed:
                channel.abort(f"did not answer for {limit_s:.3g} s")
                self.lost(channel, "the server does not answer")

    def _probe(self) -> None:
        """Looks whether the server is well again, on this connection or on a new one."""
        channel = self.channel
        limit_s = max(self._patience.pong_s, 4 * self._slowest_s)
        if not channel.ended and channel.ping(limit_s) is None and not self._closed:
            channel.abort(f"did not answer for {limit_s:.3g} s")
        try:
            if channel.ended:
                channel = self._again()
            else:
                self._reopen(channel)
        except Exception as exc:  # whatever it is, it must not be the last time that it is tried
            self.why = gone(exc, met=self.met)
            self.refusal = exc if isinstance(exc, REFUSALS) else None
            self._tell(lambda: self._breaker.missed(monotonic()))
            return
        self.met, self.refusal = True, None
        self._tell(lambda: self._breaker.probed(monotonic()))
        if channel.ended:
            self.lost(channel, self.why)
        self._rest(channel)

    def _again(self) -> Channel:
        channel = self._dial(self._greet)
        try:
            self.attach(channel)
            self._reopen(channel)
        except BaseException:
            channel.close()
            raise
        with self._lock:
            old, self.channel, self._greeting = self.channel, channel, None
            closed = self._closed
        old.close()
        if closed:
            channel.close()
            raise ServerError(CLOSED)
        return channel

    def _greet(self, connection: Connection) -> None:
        with self._lock:
            self._greeting = connection
            closed = self._closed
        if closed:
            connection.abort()

    def close(self, why: str = CLOSED) -> None:
        """Ends the connection and the thread; who waits for an answer is told `why`."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            greeting = self._greeting
        if greeting is not None:
            greeting.abort()
        self.channel.close(why)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)


def ask_while_alive(
    channel: Channel, kind: int, header: wire.Message, answer: type[wire.Message], every_s: float, limit_s: float
) -> wire.Frame:
    """The answer to a request that may take long: as long as pings are answered, one in `every_s`, and at most
    `limit_s`. ServerError if not.

    `channel` must be detached.
    """
    came: SimpleQueue[wire.Frame | SplitpointError] = SimpleQueue()
    id, end = channel.reserve(came.put), monotonic() + limit_s
    channel.send(id, wire.encode(kind, id, header))
    while True:
        try:
            outcome = came.get(timeout=every_s)
        except Empty:
            if monotonic() > end:
                channel.abandon(id)
                raise ServerError(f"{channel.peer} did not answer in {limit_s:.3g} s") from None
            if channel.ping(every_s) is None:
                channel.abort(f"did not answer for {every_s:.3g} s")
            continue
        if isinstance(outcome, SplitpointError):
            raise outcome
        frame = channel.judge(outcome)
        if not isinstance(frame.header, answer):
            raise ProtocolError(f"the server answered with {wire.describe(frame.kind)}, not {answer.__name__}")
        return frame


def gone(exc: Exception, *, met: bool = True) -> str:
    """Why a request cannot be answered by a server that `exc` was the last word of; `met`: it has been there."""
    if isinstance(exc, REFUSALS):
        return str(exc)
    return f"the server is {'gone' if met else 'not there'}: {exc}"
