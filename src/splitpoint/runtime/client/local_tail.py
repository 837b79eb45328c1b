"""Finishing here what a server was to finish: tails compiled here, and a thread that runs them beside the waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from time import perf_counter

import numpy as np

from splitpoint.engines import Engine, Session
from splitpoint.engines.underway import limited
from splitpoint.errors import EngineError, ServerError, SplitpointError
from splitpoint.models.model import Segment
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.held_weights import Holding
from splitpoint.runtime.client.ready_cuts import Placement
from splitpoint.runtime.threads import begin, join
from splitpoint.tensors import Array

#: ONNX Runtime does not let itself be interrupted while it compiles.
_JOIN_S = 10.0


class LocalTails:
    """Tails of `holding`'s model on `engine`, for the cuts that `placements` lists."""

    def __init__(
        self, holding: Holding, engine: Callable[[], Engine], placements: Callable[[], Iterable[Placement]]
    ) -> None:
        self._holding, self._engine, self._placements = holding, engine, placements
        self._compiling, self._submitting = threading.Lock(), threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._whole = holding.has(tuple(holding.model.blobs))

    def possible(self) -> bool:
        """Whether all weights are here."""
        return self._whole

    def complete(self) -> None:
        """All weights are here now."""
        self._whole = True

    def ready(self, placement: Placement) -> bool:
        """Whether a request at this cut can be finished here now, with nothing left to fetch or compile."""
        return not placement.remote or placement.tail is not None or self._other() is not None

    def _other(self) -> Placement | None:
        """A cut with both halves here: a request can take that way from its inputs."""
        return next((p for p in self._placements() if p.tail is not None or not p.remote), None)

    def prepare(self, placement: Placement) -> None:
        """Compiles the tail, unless it is there. EngineError, StorageError."""
        if not placement.remote:
            return
        with self._compiling:
            if placement.tail is None and not self._closed:
                segment = self._holding.model.tail(placement.cut)
                session = self._engine().compile(segment)
                try:
                    with limited(f"the rest of {self._holding.model.name} behind {placement.cut.name}, on zeros,"):
                        here_s = _try(segment, session)
                except EngineError:
                    session.close()
                    raise
                placement.compile_tail(session, here_s)

    def prepare_soon(self, placement: Placement) -> None:
        """The same, in a thread of its own. What fails then is found again by whoever needs it."""
        if placement.tail is not None or not placement.remote or not placement.hold():
            return

        def work() -> None:
            try:
                self.prepare(placement)
            except Exception:  # engines are foreign code
                pass
            finally:
                placement.release()

        self._start(work, "local tail")

    def finish(self, placement: Placement, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs, out of what the head has made, or, where this tail is not compiled, by another cut's
        halves out of the inputs. EngineError, StorageError."""
        if placement.tail is None:
            other = self._other()
            if other is not None and other.hold():
                try:
                    return other.finish(other.compute(known))
                finally:
                    other.release()
            self.prepare(placement)
            if placement.tail is None:
                raise ServerError(CLOSED)
        began = perf_counter()
        outputs = placement.finish(known)
        placement.times.finished(perf_counter() - began)
        return outputs

    def submit(self, job: Callable[[], None]) -> None:
        """Runs `job` after those before it. ServerError once it is closed: nobody would run it."""
        with self._submitting:
            if self._closed:
                raise ServerError(CLOSED)
            if not any(t.name == "finish here" for t in self._threads):
                self._start(self._work, "finish here")
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with suppress(Exception):  # who waits for it has put it where it is waited for
                job()

    def _start(self, work: Callable[[], None], name: str) -> None:
        self._threads = [t for t in self._threads if t.is_alive()]
        thread = threading.Thread(target=work, name=name, daemon=True)
        begin(thread)
        self._threads.append(thread)

    def close(self) -> None:
        """Ends the threads after what they do now."""
        with self._submitting:
            self._closed = True
            self._jobs.put(None)
        join((t for t in self._threads if t is not threading.current_thread()), _JOIN_S)


def _try(segment: Segment, session: Session) -> float:
    """Seconds of a run on zeros: what the next one takes is then known about, and is not the first."""
    if any(not t.shape or (isinstance(n, str) and k) for t in segment.inputs for k, n in enumerate(t.shape)):
        return 0.0
    zeros = {t.name: np.zeros([n if isinstance(n, int) else 1 for n in t.shape], t.dtype) for t in segment.inputs}
    try:
        for _ in range(2):
            began = perf_counter()
            session.run(zeros)
    except (EngineError, SplitpointError):  # zeros are no valid input everywhere: a division, a shape
        return 0.0
    return perf_counter() - began
