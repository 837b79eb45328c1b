"""The way to one server, made again when it is lost: one remote at a time, a breaker before it, a thread behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from random import Random
from time import monotonic

from splitpoint.errors import AccessError, ModelError, RefusedError, ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.runtime.circuit_breaker import DOWN, UP, Breaker, LinkState
from splitpoint.runtime.client import Abortable, Offer, Remote, RemoteTail
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.codec_choice import codecs_in
from splitpoint.runtime.events import ignore
from splitpoint.runtime.probe.server_clock import ServerClock
from splitpoint.runtime.threads import begin, persist
from splitpoint.wire import features

#: What will be the same the next time, unless someone changes something there: it is still tried, but not waited for.
REFUSALS = (AccessError, ModelError, RefusedError, UsageError)
#: Bytes that the system sends and acknowledges although nothing of ours moves: pings.
_PINGS_NBYTES = 1024


class Line:
    """`remote` is the connection of the moment; it may have ended. `why` is what was last wrong with it.

    Until `keep` is called nothing is done about that, and every request may try. From then on a lost connection is made
    again by `dial` (which says early what it greets, so that it can be ended). `on_state` is told of every change of
    `state`. A ping may have to wait behind an answer, which takes `predicted_s`.
    """

    def __init__(
        self,
        remote: Remote,
        dial: Callable[[Callable[[Abortable], None]], Remote],
        patience: Patience,
        on_state: Callable[[LinkState], None],
        predicted_s: Callable[[], float],
        why: str = "",
    ) -> None:
        self.remote, self._dial, self._predicted_s, self.why = remote, dial, predicted_s, why
        self._patience, self._on_state = patience, on_state
        self._breaker = Breaker(
            Random(patience.seed),
            failures=patience.failures,
            first_pause_s=patience.pause_s,
            longest_pause_s=patience.longest_pause_s,
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._said = DOWN if remote.ended else UP  # one that was never there is no news
        self.calm = not remote.ended
        """Whether one more success would change nothing."""
        self.connections = int(not remote.ended)
        """How many times the server was reached."""
        self.refusal: SplitpointError | None = None
        """What the server said when it was tried for the last time, if waiting for another answer is of no use."""
        self._doubt_s = 0.0
        self._closed = False
        self._greeting: Abortable | None = None
        self._thread: threading.Thread | None = None
        self._reopen: Callable[[Remote], None] = lambda _: None
        self._rest: Callable[[Remote], None] = lambda _: None

    @property
    def state(self) -> LinkState:
        """``up``, ``down`` or ``trying``."""
        return self._breaker.state if self._thread is not None else DOWN if self.remote.ended else UP

    def allows(self) -> bool:
        """Whether a request may go over now. One that may tells how it went: succeeded, failed, lost or dropped."""
        if self._thread is None:
            return True
        with self._lock:
            return self._breaker.allows(monotonic())

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

    def lost(self, remote: Remote, why: str) -> None:
        """`remote` is of no more use; nothing, if there is another one already."""
        if remote is self.remote and not self._closed:
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
            self._said, self.calm = state, state == UP and self._breaker.well
        if news:
            self._on_state(state)

    def keep(self, reopen: Callable[[Remote], None], rest: Callable[[Remote], None]) -> None:
        """From now on a lost connection is made again: with `reopen`, before a request is risked, and then `rest`."""
        self._reopen, self._rest = reopen, rest
        thread = threading.Thread(target=persist, args=(self._run, "line", ignore, self.wait), name="line", daemon=True)
        begin(thread)
        self._thread = thread
        self.attach()
        if self.remote.ended:
            self.lost(self.remote, self.why or "the server is gone")

    def attach(self, remote: Remote | None = None) -> None:
        """Has `remote`, or that of the moment, notice by itself when it ends."""
        watched = remote or self.remote
        watched.keep_reading(lambda exc: self.lost(watched, gone(exc)))

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
                self._examine(self.remote, doubt_s)

    def _due(self) -> bool:
        if self._breaker.state == DOWN:
            return monotonic() >= self._breaker.due_s
        return self._doubt_s > 0

    def _examine(self, remote: Remote, limit_s: float) -> None:
        """Gives `remote` up if nothing moves on it for `limit_s`."""
        while not remote.ended and not self._closed:
            before = remote.moved_nbytes
            if remote.ping(limit_s) is not None:
                return
            if remote.moved_nbytes - before <= _PINGS_NBYTES and not self._closed:
                remote.abort(f"did not answer for {limit_s:.3g} s")
                self.lost(remote, "the server does not answer")

    def _probe(self) -> None:
        """Looks whether the server is well again, on this connection or on a new one."""
        remote = self.remote
        limit_s = max(self._patience.pong_s, 4 * self._predicted_s())
        if not remote.ended and remote.ping(limit_s) is None and not self._closed:
            remote.abort(f"did not answer for {limit_s:.3g} s")
        try:
            if remote.ended:
                remote = self._again()
            else:
                self._reopen(remote)
        except Exception as exc:  # whatever it is, it must not be the last time that it is tried
            self.why = gone(exc, met=self.connections > 0)
            self.refusal = exc if isinstance(exc, REFUSALS) else None
            self._tell(lambda: self._breaker.missed(monotonic()))
            return
        self.refusal = None
        self._tell(lambda: self._breaker.probed(monotonic()))
        if remote.ended:
            self.lost(remote, self.why)
        self._rest(remote)

    def _again(self) -> Remote:
        remote = self._dial(self._greet)
        try:
            self.attach(remote)
            self._reopen(remote)
        except BaseException:
            remote.close()
            raise
        with self._lock:
            old, self.remote, self._greeting = self.remote, remote, None
            self.connections += 1
            closed = self._closed
        old.close()
        if closed:
            remote.close()
            raise ServerError(CLOSED)
        return remote

    def _greet(self, connection: Abortable) -> None:
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
        self.remote.close(why)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)


class AbsentRemote:
    """Stands in for a server that is not there yet, because of `why`: it is taken for one that can do what we can."""

    ended = True
    moved_nbytes = 0

    def __init__(self, peer: str, why: SplitpointError) -> None:
        self.peer, self._why = peer, str(why)
        self.offer, self.clock = Offer(codecs=codecs_in(features()), share="model"), ServerClock()

    def open(self, fingerprint: str, cut: Cut, outputs: Sequence[str]) -> RemoteTail:
        raise ServerError(self._why)

    def channel(self) -> Channel:
        raise ServerError(self._why)

    def ping(self, timeout_s: float) -> float | None:
        return None

    def keep_reading(self, on_end: Callable[[SplitpointError], None]) -> None: ...

    def abort(self, why: str) -> None: ...

    def close(self, why: str = CLOSED) -> None:
        self._why = why


def gone(exc: Exception, *, met: bool = True) -> str:
    """Why a request cannot be answered by a server that `exc` was the last word of; `met`: it has been there."""
    if isinstance(exc, REFUSALS):
        return str(exc)
    return f"the server is {'gone' if met else 'not there'}: {exc}"
