"""Compiled tails: built when asked for, once for all who ask, and dropped when they take too much memory."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from time import monotonic, perf_counter
from weakref import WeakValueDictionary

from splitpoint.engines import Engine, Session
from splitpoint.models.memory_estimate import Work
from splitpoint.models.model import Segment
from splitpoint.models.rows import mixing
from splitpoint.runtime.events import Event, OnEvent, ignore
from splitpoint.runtime.server.batching import Gain, alike, stackable
from splitpoint.units import size

#: Shapes of one tail whose batches are measured for one client, and for all; requests of others run alone.
_OWN_SHAPES, _MOST_SHAPES = 4, 64
#: A shape of which nothing was measured for so long makes room for another. Sooner, and who asks for many in turn would
#: have them tried out again and again.
_IDLE_S = 60.0
#: How long a tail that is to be compiled lets others be first: one of them may be told of, or take, so long that this
#: one must not wait for its end.
_PATIENCE_S = 1.0
#: Threads of all compiled tails together (each has as many as the engine), and tails there may be in any case.
_MOST_THREADS, _FEWEST = 1024, 16


class Tail:
    """A segment and, while it is in the cache, its session. `users` counts the requests that run it now, `owner` is
    whose request it was compiled for.

    `most` requests for it run as one batch, if their rows stay apart in it; `mixes` says why they do not, where it is
    not plain from its shapes. Once compiled, `work` says what memory a request takes; where nobody can know, it is
    None, and the session runs `apart` if the engine can.
    """

    def __init__(self, segment: Segment, most: int = 1) -> None:
        self.segment = segment
        #: About what its graph takes while anyone has it open: twice its bytes, and 2 KiB a node (measured).
        self.graph_nbytes = 2 * segment.proto.ByteSize() + 2048 * len(segment.proto.graph.node)
        fits = most > 1 and alike(segment)
        self.mixes = mixing(segment) if fits else ""
        self.most = most if fits and not self.mixes else 1
        #: By shape, with whose it was at first.
        self._gains: dict[object, tuple[str, Gain]] = {}
        self._shaping = threading.Lock()
        self.session: Session | None = None
        self.owner: object = None
        self.nbytes = 0
        self.compile_s = 0.0
        self.users = 0
        self.open = 0
        self.building = threading.Lock()
        self.work: Work | None = None
        self.apart = False

    def gain(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], owner: str) -> Gain | None:
        """What requests of `owner` with such tensors have in common with others like them; None if they run alone."""
        if self.most == 1 or self.apart or not stackable(dtypes, shapes):
            return None
        key = tuple(map(tuple, shapes))
        with self._shaping:
            if (known := self._gains.get(key)) is not None:
                return known[1]
            own = [k for k, (whose, _) in self._gains.items() if whose == owner]
            if not (self._room(own, _OWN_SHAPES) and self._room(list(self._gains), _MOST_SHAPES)):
                return None
            gain = Gain(self.most)
            self._gains[key] = owner, gain
            return gain

    def _room(self, keys: Sequence[object], most: int) -> bool:
        """Whether there are fewer than `most` of these shapes, or one could be forgotten."""
        if len(keys) < most:
            return True
        oldest = min(keys, key=lambda k: self._gains[k][1].used_s)
        if self._gains[oldest][1].used_s > monotonic() - _IDLE_S:
            return False
        del self._gains[oldest]
        return True


class Tails:
    """The cache: at most `budget` bytes of sessions, as measured, and 1,024 threads, besides those running right now.

    Each session has threads of its own: ONNX Runtime can share a pool among all, but its threads spin then, and nothing
    in Python stops that. Of the owner that has most in it the least recently used goes first: who has many compiled
    loses its own, not those of others. One that is in use is never closed, but as soon as it is free again, and the one
    that was used last stays, even if it is larger than the budget: else it would be compiled for each request. Tails
    whose work values decide are compiled by the engine `apart`, if there is one. So many `at_once` are compiled.
    """

    def __init__(
        self,
        engine: Engine,
        budget: int,
        on_event: OnEvent = ignore,
        max_batch: int = 1,
        apart: Engine | None = None,
        at_once: int = 1,
    ) -> None:
        self._engine, self._apart, self._budget, self._tell = engine, apart, budget, on_event
        self._turn = threading.BoundedSemaphore(at_once)
        self._most_tails = max(_FEWEST, _MOST_THREADS // engine.threads)
        self._most = max_batch
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[str, Tail] = WeakValueDictionary()
        self._cached: OrderedDict[int, Tail] = OrderedDict()
        self.nbytes = 0
        #: How many tails were compiled, and how many of them have left memory.
        self.compiled = self.evicted = 0

    @property
    def count(self) -> int:
        return len(self._cached)

    def tail(self, segment: Segment) -> Tail:
        """The tail for `segment`: the same one for everybody, so that it is compiled once."""
        with self._lock:
            known = self._known.get(segment.key)
        # Reading a large graph takes milliseconds, in which no request may wait for the lock.
        new = known or Tail(segment, self._most)
        with self._lock:
            tail = self._known.setdefault(segment.key, new)
            tail.open += 1
        if tail is new is not known and tail.mixes:
            tell_batched(self._tell, segment, tail.mixes)
        return tail

    def leave(self, tail: Tail, *, drop: bool = False) -> None:
        """One who had it open is done with it. With `drop` it leaves memory too, if that was the last one."""
        with self._lock:
            tail.open -= 1
            closed = self._evict(tail) if drop and not tail.open and not tail.users else None
        if closed is not None:
            closed.close()

    def acquire(self, tail: Tail) -> Session | None:
        """Its session, if it is in memory; call `release` after use."""
        with self._lock:
            if tail.session is not None:
                tail.users += 1
                self._cached.move_to_end(id(tail))
            return tail.session

    def build(self, tail: Tail, owner: object) -> Session:
        """Its session, compiled now for `owner` if need be; call `release` after use. EngineError if it cannot be."""
        with tail.building:
            if (session := self.acquire(tail)) is not None:
                return session
            session = self._compiled(tail)
            with self._lock:
                tail.session, tail.nbytes, tail.owner = session, session.nbytes, owner
                tail.users += 1
                self._cached[id(tail)] = tail
                self.nbytes += tail.nbytes
                self.compiled += 1
                closed = self._shrink()
        self._close(closed)
        return session

    def _compiled(self, tail: Tail) -> Session:
        first = self._turn.acquire(timeout=_PATIENCE_S)
        try:
            started = perf_counter()
            tail.work = Work.of(tail.segment)
            tail.apart = tail.work is None and self._apart is not None
            session = (self._apart if tail.apart and self._apart else self._engine).compile(tail.segment)
            tail.compile_s = perf_counter() - started
            return session
        finally:
            if first:
                self._turn.release()

    def release(self, tail: Tail) -> None:
        """The session that `acquire` gave is no longer used by this caller: it may leave memory."""
        with self._lock:
            tail.users -= 1
            if not self._full():
                return
            closed = self._shrink()
        self._close(closed)

    def _full(self) -> bool:
        return self.nbytes > self._budget or len(self._cached) > self._most_tails

    def _shrink(self) -> list[tuple[Tail, Session]]:
        closed: list[tuple[Tail, Session]] = []
        while self._full():
            *older, _ = self._cached.values()
            held: Counter[object] = Counter()
            for tail in self._cached.values():
                # By what there is too much of: else a few large ones would go for many that hold threads.
                held[tail.owner] += tail.nbytes if self.nbytes > self._budget else 1
            idle = [tail for tail in older if not tail.users]
            if not idle:
                break
            victim = max(idle, key=lambda tail: held[tail.owner])  # the first among equals
            if (session := self._evict(victim)) is not None:
                closed.append((victim, session))
        return closed

    def _evict(self, tail: Tail) -> Session | None:
        session, tail.session = tail.session, None
        if session is not None:
            del self._cached[id(tail)]
            self.nbytes -= tail.nbytes
            self.evicted += 1
        return session

    def _close(self, closed: list[tuple[Tail, Session]]) -> None:
        for tail, session in closed:
            session.close()
            text = f"tail {tail.segment.key} left memory, {size(tail.nbytes)} are free"
            self._tell(Event("evicted", text, {"tail": tail.segment.key, "nbytes": tail.nbytes}))

    def close(self) -> None:
        with self._lock:
            tails = list(self._cached.values())
            sessions = [s for t in tails if (s := self._evict(t)) is not None]
        for session in sessions:
            session.close()


def tell_batched(tell: OnEvent, segment: Segment, why_not: str) -> None:
    """Tells that requests for `segment` may run as one batch; or why they do not."""
    said = f"are run one by one: {why_not}" if why_not else "may be run together"
    text = f"requests that wait for tail {segment.key} {said}"
    tell(Event("batched", text, {"tail": segment.key, "why": why_not}))
