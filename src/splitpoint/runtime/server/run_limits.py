"""What runs on the server, how long it may, and what becomes of the others meanwhile.

a run that is too long ─ is told to end ─┬─ ends: its request gets an ERROR
                                         └─ does not hear it: its worker is replaced
a run apart that is slow ─ another worker works meanwhile: only its own process is held up
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from splitpoint.engines import Session, underway
from splitpoint.engines.process_memory import resident_bytes
from splitpoint.errors import BusyError, EngineError
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.tensors import Array

#: How often is looked: what is late is noticed that much later.
_LOOK_S = 0.25
#: How many times what its kind takes a run may take, and how long every run may.
_MANY, _LEAST_S = 20.0, 5.0
#: Runs of a kind before it is known what they take, and the weight of a new one in that.
_ENOUGH, _SMOOTH = 3, 0.2
#: How long a run apart, and one that was told to end, holds its worker's place.
PATIENCE_S, _HEARING_S = 0.25, 2.0
#: Places that runs which last or hang can have besides; more of them take those of the others.
_MOST_LENT = 8
#: Runs of more memory are noted: what they have left behind is given back this long after the last of them.
LARGE_BYTES, _SETTLED_S = 64 << 20, 5.0
#: Who waits for its turn apart waits no longer than that.
_TURN_S = 1.0
#: An address whose run was given up waits that long, twice as long each time, before it may run such tails again.
_BAN_S, _LONGEST_BAN_S = 10.0, 600.0
_MOST_BANS = 4096


class Like:
    """Runs that are alike: of one connection, tail and shape. No other client has a say in what is too long.

    `nbytes`: about what one takes (0: not known); `batches`: whether there is memory for the largest batch of them.
    """

    __slots__ = ("_mean_s", "_runs", "batches", "nbytes")

    def __init__(self, nbytes: float, *, batches: bool = True) -> None:
        self.nbytes, self.batches = nbytes, batches
        self._runs = 0
        self._mean_s = 0.0

    def took(self, seconds: float) -> None:
        self._runs += 1
        self._mean_s += (seconds - self._mean_s) * (_SMOOTH if self._runs > _ENOUGH else 1 / self._runs)

    def limit_s(self, most_s: float) -> float:
        """When one is given up: `most_s`, or sooner once it is known what they take."""
        if self._runs < _ENOUGH:
            return most_s
        return min(most_s, max(_LEAST_S, _MANY * self._mean_s))


class _UnderWay:
    """A run under way, in the thread that has made it."""

    __slots__ = ("apart", "done", "given_up_s", "lent", "like", "limit_s", "name", "started_s", "thread")

    def __init__(self, like: Like, limit_s: float, name: str, apart: bool) -> None:
        self.like, self.limit_s, self.name, self.apart = like, limit_s, name, apart
        self.thread = threading.get_ident()
        self.started_s = monotonic()
        self.given_up_s = 0.0
        self.lent = self.done = False


class GuardedRun:
    """A thread that runs one thing after the other, of which none may last; `given_up` says that one did."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.given_up = False
        self._run: underway.RunUnderWay | None = None
        self._since_s = 0.0

    def look(self, now_s: float, most_s: float) -> None:
        """Gives what it runs up, if that is what it ran `most_s` ago."""
        run = underway.noted.get(self.thread)
        if run is not self._run:
            self._run, self._since_s = run, now_s
        elif run is not None and now_s - self._since_s > most_s:
            self.given_up = run.terminate = True


class Watch:
    """Looks at every run, from one thread of its own. `lend` gives the workers a place more, `regain` takes it back.

    `give_back` is called when a large run was a while ago, or its like has left more than `keep_bytes` behind.
    """

    def __init__(
        self,
        run_s: float,
        keep_bytes: int,
        lend: Callable[[], None],
        regain: Callable[[], None],
        give_back: Callable[[], None],
        tell: OnEvent,
    ) -> None:
        self.run_s, self._keep = run_s, keep_bytes
        self._lend, self._regain, self._give_back, self._tell = lend, regain, give_back, tell
        self._runs: dict[int, _UnderWay] = {}
        self._lent: list[_UnderWay] = []
        self._guarded: set[GuardedRun] = set()
        self._closed = threading.Event()
        self._ending = False
        self._large_s = 0.0
        self._settled = 0

    def run(
        self, session: Session, feed: Mapping[str, Array], like: Like, name: str, apart: bool = False, times: int = 1
    ) -> dict[str, Array]:
        """`session.run(feed)` for the client `name`, which may be a batch of so many `times` a run of that like.

        EngineError if it was given up.
        """
        entry = _UnderWay(like, min(self.run_s, times * like.limit_s(self.run_s)), name, apart)
        if self._ending:
            raise EngineError("the server is ending")
        self._runs[entry.thread] = entry
        try:
            outputs = session.run(feed)
        except EngineError as exc:
            if entry.given_up_s:
                raise type(exc)(self._why(entry)) from exc
            raise
        finally:
            del self._runs[entry.thread]
            entry.done = True
            if like.nbytes > LARGE_BYTES:
                self._large_s = monotonic()
        if times == 1:
            like.took(monotonic() - entry.started_s)
        return outputs

    @contextmanager
    def guard(self) -> Iterator[GuardedRun]:
        """Inside, what this thread runs, and nobody has asked for as a request, is given up as late as a request is."""
        guarded = GuardedRun()
        self._guarded.add(guarded)
        try:
            yield guarded
        finally:
            self._guarded.discard(guarded)

    def _why(self, entry: _UnderWay) -> str:
        if self._ending:
            return "the server is ending, and this run was given up"
        took = f"{entry.limit_s:.3g} s"
        return f"this run was given up after {took}: none may take longer here (serve --max-run), or 20 times its like"

    def look(self) -> bool:
        """One look at all of them, and a pause; False when it is closed."""
        now_s = monotonic()
        for entry in self._runs.copy().values():
            age_s = now_s - entry.started_s
            if self._ending or age_s > entry.limit_s:
                if not entry.given_up_s:
                    entry.given_up_s = now_s
                    if not self._ending:
                        self._tell(Event("failed", f"a run of {entry.name} is given up after {age_s:.1f} s"))
                underway.give_up([entry.thread])  # each time: it may be one of several in a row
            slow = entry.apart and age_s > PATIENCE_S
            deaf = entry.given_up_s and now_s - entry.given_up_s > _HEARING_S
            if (slow or deaf) and not entry.lent and len(self._lent) < _MOST_LENT:
                entry.lent = True
                self._lent.append(entry)
                self._lend()
                if not entry.apart:
                    text = f"a run of {entry.name} does not end: another worker works in its place"
                    self._tell(Event("failed", text))
        for guarded in self._guarded.copy():
            guarded.look(now_s, self.run_s)
        for entry in [entry for entry in self._lent if entry.done]:
            self._lent.remove(entry)
            self._regain()
        self._settle(now_s)
        return not self._closed.wait(_LOOK_S)

    def _settle(self, now_s: float) -> None:
        if not self._large_s:
            self._settled = self._settled or resident_bytes()
        elif now_s - self._large_s > _SETTLED_S or resident_bytes() > self._settled + self._keep:
            self._large_s, self._settled = 0.0, 0
            self._give_back()

    def end(self) -> None:
        """From now on nothing is run, and what is under way is given up."""
        self._ending = True
        under_way = self._runs.copy()
        for entry in under_way.values():
            entry.given_up_s = entry.given_up_s or monotonic()
        underway.give_up(under_way)

    def close(self) -> None:
        """`look` returns False."""
        self._closed.set()


class Turns:
    """Runs apart: one at a time for an address and for a tail, so that the others' are never held up for long.

    >>> turns = Turns()
    >>> with turns.turn("10.0.0.1", "a tail"):
    ...     pass
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held: dict[str, float] = {}
        self._bans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def turn(self, address: str, tail: str) -> Iterator[None]:
        """Inside, it is `address`'s turn at `tail`. BusyError if that is not to be expected soon."""
        keys = (f"address {address}", f"tail {tail}")
        with self._free:
            self._wait(address, keys)
            now_s = monotonic()
            for key in keys:
                self._held[key] = now_s
        try:
            yield
        finally:
            with self._free:
                for key in keys:
                    del self._held[key]
                self._free.notify_all()

    def _wait(self, address: str, keys: tuple[str, str]) -> None:
        end_s = monotonic() + _TURN_S
        while True:
            now_s = monotonic()
            until_s, _ = self._bans.get(address, (0.0, 0.0))
            if until_s > now_s:
                raise BusyError(
                    "runs of this address had to be given up: such tails are not run for it yet", until_s - now_s
                )
            since = [self._held[key] for key in keys if key in self._held]
            if not since:
                return
            left_s = min(min(since) + PATIENCE_S, end_s) - now_s
            if left_s <= 0:
                raise BusyError("another request for this tail, or of this address, takes long: wait for it", 1.0)
            self._free.wait(left_s)

    def ban(self, address: str) -> None:
        """A run of `address` was given up, or has ended its process."""
        with self._free:
            now_s = monotonic()
            until_s, before_s = self._bans.get(address, (0.0, 0.0))
            forgotten = now_s > until_s + _LONGEST_BAN_S
            seconds = _BAN_S if forgotten else min(_LONGEST_BAN_S, 2 * before_s)
            self._bans.pop(address, None)
            self._bans[address] = (now_s + seconds, seconds)
            if len(self._bans) > _MOST_BANS:
                del self._bans[next(iter(self._bans))]
