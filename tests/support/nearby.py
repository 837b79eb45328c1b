"""A second implementation of `RemoteProvider`: tails are computed in this process, by an engine.

It knows no frames and no sockets, and shows that requests, reconnecting, time limits, the planner and what is finished
on the device need none. `Nearby` can be late, busy, wrong or gone, whenever a test says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import NoReturn

from splitpoint.engines import Engine, Session
from splitpoint.errors import RefusedError, ServerError, SplitpointError, UnreachableError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.client import Abortable, Encoding, Offer, TailAnswer
from splitpoint.runtime.codec_choice import FrameRoom
from splitpoint.runtime.model_choice import info_of
from splitpoint.runtime.probe.server_clock import Offset, ServerClock
from splitpoint.tensors import Array
from splitpoint.wire import Times


class Nearby:
    """`model` on `engine`. `answers` is what becomes of requests: a function of their outputs, which may wait or raise;
    `there`, whether it can be reached; `repeatable`, whether it may be asked again."""

    def __init__(self, model: Model, engine: Engine, *, repeatable: bool = True) -> None:
        self.model, self.engine, self.repeatable = model, engine, repeatable
        self.answers: Callable[[dict[str, Array]], dict[str, Array]] = lambda outputs: outputs
        self.there = True
        self.connections: list[NearbyRemote] = []
        self.asked = 0

    @property
    def address(self) -> str:
        return "nearby"

    def connect(self, timeout_s: float, greeting: Callable[[Abortable], None] = lambda _: None) -> NearbyRemote:
        if not self.there:
            raise UnreachableError("nobody is nearby")
        remote = NearbyRemote(self)
        self.connections.append(remote)
        return remote


class NearbyRemote:
    peer = "nearby"
    moved_nbytes = 0

    def __init__(self, place: Nearby) -> None:
        self.place = place
        self.offer, self.clock = Offer((info_of(place.model),)), ServerClock()
        self.why: str | None = None
        self._on_end: Callable[[SplitpointError], None] = lambda _: None
        self.tails: list[NearbyTail] = []

    @property
    def ended(self) -> bool:
        return self.why is not None

    def open(self, fingerprint: str, cut: Cut, outputs: Sequence[str]) -> NearbyTail:
        self.check()
        tail = NearbyTail(self, fingerprint, cut, outputs)
        self.tails.append(tail)
        return tail

    def check(self) -> None:
        if self.why is not None:
            raise ServerError(self.why)

    def keep_reading(self, on_end: Callable[[SplitpointError], None]) -> None:
        self._on_end = on_end

    def ping(self, timeout_s: float) -> float | None:
        return None if self.ended else 0.0

    def channel(self) -> NoReturn:
        raise RefusedError("who is nearby hands out no weights, and measures nothing")

    def abort(self, why: str) -> None:
        if self.why is None:
            self.why = f"nearby {why}"
            for tail in self.tails:
                tail.close()
            self._on_end(ServerError(self.why))

    def close(self, why: str = "the connection is closed") -> None:
        if self.why is None:
            self.why = why
            for tail in self.tails:
                tail.close()


class NearbyTail:
    def __init__(self, remote: NearbyRemote, fingerprint: str, cut: Cut, outputs: Sequence[str]) -> None:
        self.remote, self.fingerprint, self.repeatable = remote, fingerprint, remote.place.repeatable
        self._cut, self._outputs = cut, outputs
        self._session: Session | None = None

    def ready(self, within_s: float, alive_s: float = 0.0) -> None:
        place = self.remote.place
        self._session = place.engine.compile(place.model.tail(self._cut))

    def begin(
        self, known: Mapping[str, Array], encoding: Encoding, most_nbytes: int, deadline_s: float = 0.0,
        more: bool = False, room: FrameRoom | None = None,
    ) -> NearbyCall:  # fmt: skip
        self.remote.check()
        return NearbyCall(self, {name: array.copy() for name, array in known.items()})

    def run(self, known: Mapping[str, Array]) -> list[Array]:
        assert self._session is not None
        self.remote.place.asked += 1
        outputs = self.remote.place.answers({**known, **self._session.run(known)})
        return [outputs[name] for name in self._outputs]

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class NearbyCall:
    codecs: Mapping[str, str] = {}

    def __init__(self, tail: NearbyTail, known: Mapping[str, Array]) -> None:
        self._tail, self._known = tail, known
        self.nbytes = sum(a.nbytes for a in known.values())
        self.packed = perf_counter()
        self._came: SimpleQueue[TailAnswer | SplitpointError] = SimpleQueue()
        self._told: Callable[[TailAnswer | SplitpointError], None] = self._came.put
        self._sent = False

    def send(self) -> None:
        self._tail.remote.check()
        self._sent = True
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        received = perf_counter()
        try:
            tensors = self._tail.run(self._known)
            now = perf_counter()
            times = Times(received_s=received, compute_s=now - received)
            nbytes = sum(a.nbytes for a in tensors)
            self._told(TailAnswer(tensors, now, None, nbytes, times, Offset(0.0, 0.0, now)))
        except SplitpointError as exc:
            self._told(exc)

    def answer(self, within_s: float, whole: bool = True) -> TailAnswer | None:
        try:
            outcome = self._came.get(timeout=within_s)
        except Empty:
            self._tail.remote.check()
            return None
        if isinstance(outcome, SplitpointError):
            raise outcome
        return outcome

    def leave(self, tell: Callable[[TailAnswer | SplitpointError], None]) -> None:
        self._told = tell
        while self._sent:
            try:
                tell(self._came.get_nowait())
            except Empty:
                return
