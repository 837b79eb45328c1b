"""Who has connected and is not let in yet: they have a room of their own, little time, and get one word at most.

    accept ─ a place in the room ─ TLS, HELLO, the token: 5 s altogether ─ let in, if there is room: `connection`

Nothing that they do counts against those who are let in, whose places are counted only then. The room is never too
full for one more: the address that has most places in it loses the one it has had longest. So a newcomer stays as long
as it needs, or, beside an attacker at its own address, as long as that one needs to fill the room.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Generic, TypeVar

from splitpoint import wire
from splitpoint.errors import AccessError, BusyError, ProtocolError, ServerError
from splitpoint.runtime.events import Event, OnEvent, ignore
from splitpoint.runtime.server.accounts import name_of
from splitpoint.runtime.server.services import Replies
from splitpoint.security import ServerSecurity
from splitpoint.transports import Connection, Ended
from splitpoint.transports.budget import Budget
from splitpoint.units import counted
from splitpoint.wire import Frame, Limits, plain

#: How long a wrong token is thought about,
GUESS_S = 0.25
#: and how many of one address at once: 20 guesses a second, however many connections it has.
_GUESSES = 5
#: The largest HELLO.
_HELLO_NBYTES = 64 << 10
#: What those are told who lose their place.
_CROWDED = "too many others want to be let in at once: try again"
#: Connections refused for want of room that are kept for a moment, so that they can read why.
_TURNED_AWAY = 32
#: How long the last word may take to be sent, and its reader to hang up.
_LINGER_S = 0.2
#: Lines about those who were turned away: some at once, and then one a second.
_LINES, _LINES_S = 30, 1.0

G = TypeVar("G", bound=Hashable)


class Room(Generic[G]):
    """Guests by address, at most `most` altogether. Pure; the caller holds a lock.

    >>> room = Room[str](2)
    >>> room.enter("10.0.0.1", "a"), room.enter("10.0.0.1", "b"), room.enter("10.0.0.2", "c")
    (None, None, 'a')
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[str, dict[G, None]] = {}  # oldest first

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[G]:
        return (guest for guests in self._of.values() for guest in guests)

    def enter(self, address: str, guest: G) -> G | None:
        """Gives `guest` a place; returns who loses its own for that."""
        self._of.setdefault(address, {})[guest] = None
        if len(self) <= self._most:
            return None
        fullest = max(self._of, key=lambda name: len(self._of[name]))  # the one that came first among equals
        out = next(iter(self._of[fullest]))
        self.leave(fullest, out)
        return out

    def leave(self, address: str, guest: G) -> bool:
        """Takes its place away; False if it had none."""
        guests = self._of.get(address, {})
        if guest not in guests:
            return False
        del guests[guest]
        if not guests:
            del self._of[address]
        return True


class Guesses:
    """Compares tokens, and counts the wrong ones that are being thought about."""

    def __init__(self, security: ServerSecurity) -> None:
        self._security, self._lock = security, threading.Lock()
        self._wrong: Counter[str] = Counter()

    def fits(self, address: str, token: str) -> bool:
        """Whether `token` is the server's; if not, `forget` must be called. BusyError, without a look at it, while too
        many wrong ones from `address` are thought about."""
        with self._lock:
            if self._wrong[address] >= _GUESSES:
                raise BusyError("too many wrong tokens come from this address: try again later", 1.0)
            fits = self._security.admits(token)
            if not fits:
                self._wrong[address] += 1
        return fits

    def forget(self, address: str) -> None:
        with self._lock:
            self._wrong -= Counter([address])  # keeps no address that has none


class Refusals:
    """Tells of those who were turned away: a stranger must not fill the disk with lines about itself."""

    def __init__(self, tell: OnEvent) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._lines = Budget(_LINES, 1 / _LINES_S)
        self._untold = 0
        #: How many there were.
        self.count = 0

    def __call__(self, text: str, peer: str, why: str) -> None:
        """`peer` was turned away because of `why`: `text` says so."""
        with self._lock:
            self.count += 1
            if self._lines.take(1, monotonic()):
                self._untold += 1
                return
            untold, self._untold = self._untold, 0
        more = f" (and {counted(untold, 'other')} before, of whom nothing was said)" if untold else ""
        self._tell(Event("refused", text + more, {"peer": peer, "why": why, "untold": untold}))


#: Serves a client that has been let in, until its connection ends.
Serve = Callable[[], None]


class Admission:
    """Lets in who may come in. Told of events: `tell`.

    `let_in` makes a connection whose HELLO is in order one of those who are served: BusyError if there is no room.
    """

    def __init__(
        self, limits: Limits, security: ServerSecurity, tell: OnEvent, let_in: Callable[[Connection, Frame], Serve]
    ) -> None:
        self.limits, self._let_in = limits, let_in
        self.guesses, self.refusals = Guesses(security), Refusals(tell)
        self._lock = threading.Lock()
        self.room = Room[Arrival](limits.arrivals)
        #: Those in the room, and those whose threads are not over yet.
        self.arrivals: set[Arrival] = set()
        self._turned_away: deque[Connection] = deque()

    def take(self, connection: Connection, full: str) -> None:
        """Hears who it is that has connected; refused at once if there is no room for it anyway: `full` says why."""
        if full:
            self._turn_away(connection, full)
            return
        arrival = Arrival(self, connection)
        with self._lock:
            out = self.room.enter(arrival.address, arrival)
            self.arrivals.add(arrival)
        if out is not None:
            out.send_away(_CROWDED)
            self.refusals(f"{out.name} turned away: {_CROWDED}", out.name, _CROWDED)
        self._begin(arrival)

    def _begin(self, arrival: Arrival) -> None:
        try:
            arrival.thread.start()
        except RuntimeError:  # the system has no more threads for us: whoever is here is served on
            self.gone(arrival)
            self._turn_away(arrival.connection, "the server has no thread left for another connection: try again later")

    def let_in(self, arrival: Arrival, hello: Frame) -> Serve:
        """What serves `arrival`, whose thread calls this. BusyError if there is no room, Ended if it has been turned
        away meanwhile."""
        with self._lock:
            if not self.room.leave(arrival.address, arrival):
                raise Ended(_CROWDED)
        serve = self._let_in(arrival.connection, hello)
        self.gone(arrival)
        return serve

    def gone(self, arrival: Arrival) -> None:
        """`arrival` is let in, or its connection has ended."""
        with self._lock:
            self.room.leave(arrival.address, arrival)
            self.arrivals.discard(arrival)

    def _turn_away(self, connection: Connection, text: str) -> None:
        Replies(connection, ignore).refuse(0, BusyError(text, 1.0))
        # Not closed at once: its HELLO may be on the way, and a reset could overtake what was just said.
        self._turned_away.append(connection)
        if len(self._turned_away) > _TURNED_AWAY:
            self._turned_away.popleft().close()
        self.refusals(f"{connection.peer} turned away: {text}", connection.peer, text)

    def close(self, why: str) -> list[threading.Thread]:
        """Sends all of them away. Returns the threads that end now."""
        with self._lock:
            arrivals = list(self.arrivals)
        for arrival in arrivals:
            arrival.send_away(why)
        while self._turned_away:
            self._turned_away.popleft().close()
        return [arrival.thread for arrival in arrivals]


class Arrival:
    """One that has connected, and the thread in which it says who it is. That goes on to serve it."""

    def __init__(self, admission: Admission, connection: Connection) -> None:
        self._admission = admission
        self.connection, self.replies = connection, Replies(connection, ignore)
        self.name = connection.peer
        self.address = name_of(self.name)
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._serve, name=f"peer {self.name}", daemon=True)

    def _serve(self) -> None:
        try:
            serve = self._admission.let_in(self, self._greet())
        except Exception as exc:
            why = plain(self.replies.last_word(exc))
            self.connection.close(_LINGER_S if why else 0.0)
            self._admission.gone(self)
            if why and not self._over.is_set():  # of one that was turned away it is said already
                self._admission.refusals(f"{self.name} disconnected: {why}", self.name, why)
        else:
            serve()

    def _greet(self) -> Frame:
        """The HELLO of one that may come in. SplitpointError for any other."""
        connection, limits = self.connection, self._admission.limits
        # Before it has said who it is, it gets little memory and little time, however its bytes drip.
        due_s = monotonic() + limits.handshake_s
        connection.hold_to(dataclasses.replace(limits, header_bytes=_HELLO_NBYTES, frame_bytes=0), due_s)
        connection.handshake(limits.handshake_s)
        try:
            frame = connection.receive(timeout_s=max(due_s - monotonic(), 1e-3))
        except TimeoutError:
            raise ServerError(f"{self.name} said nothing in {limits.handshake_s:g} s") from None
        if not isinstance(frame.header, wire.Hello):
            raise ProtocolError(f"the first frame must be HELLO, not {wire.describe(frame.kind)}")
        self._check_token(frame.header.token)
        connection.hold_to(limits)
        return frame

    def _check_token(self, token: str) -> None:
        """AccessError, after a while, for who does not know the server's token; nothing has been said to it before.
        BusyError: see `Guesses.fits`."""
        guesses = self._admission.guesses
        try:
            if guesses.fits(self.address, token):
                return
        except BusyError:
            self._over.wait(GUESS_S)  # a guess in vain is no faster
            raise
        try:
            self._over.wait(GUESS_S)
        finally:
            guesses.forget(self.address)
        if not token:
            raise AccessError("this server wants a token: --token-file FILE, or SPLITPOINT_TOKEN")
        raise AccessError("this is not the token that the server wants")

    def send_away(self, why: str) -> None:
        """Ends it from another thread, which does not wait for it; `why` is the word that it gets."""
        self._over.set()
        self.replies.refuse(0, BusyError(why, 1.0))
        self.connection.abort()
