"""Several waiting requests for one tail, answered as one batch (`batching` says when that is worth it)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from secrets import randbelow
from time import perf_counter
from typing import NamedTuple, cast

from splitpoint.engines import Session
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server import RunMarks, TailRequest
from splitpoint.runtime.server.batching import Feed, Gain, Runs, recomputed, run_stacked, tried
from splitpoint.runtime.server.compiled_tails import Tail, Tails
from splitpoint.runtime.server.fair_queue import WaitingJob
from splitpoint.runtime.server.run_limits import Like, Watch, WatchedSession
from splitpoint.tensors import Array, TensorSpec
from splitpoint.wire import BatchRun


class RunKind(NamedTuple):
    """What requests of one connection with inputs of these `shapes` have in common: how long they take, and, if they
    can run as one batch with each other and with those of other connections, what that gains."""

    shapes: Sequence[Sequence[int]]
    like: Like
    gain: Gain | None


class Queued(NamedTuple):
    """What a job of the pool's queue computes. `session` is the tail's, if it is in use already for this request."""

    request: TailRequest
    tail: Tail
    kind: RunKind
    session: Session | None = None


class BatchRunner:
    """Runs jobs of `Queued` as one."""

    def __init__(self, tails: Tails, watch: Watch, tell: OnEvent) -> None:
        self._tails, self._watch, self._tell = tails, watch, tell
        self._numbers = itertools.count()

    def __call__(self, jobs: Sequence[WaitingJob]) -> None:
        """Answers all of `jobs`. Whatever cannot be run with others runs by itself, and gets its own error."""
        gain = cast(Gain, jobs[0].key)
        if gain.verdict is None:
            _alone(jobs)
            self._try_out(_queued(jobs[0]), gain)
            return
        started = perf_counter()
        feeds: list[tuple[WaitingJob, Feed]] = []
        for job in jobs:
            feed = _feed(_queued(job).request, started)
            if feed is None:
                _alone([job])
            else:
                feeds.append((job, feed))
        if len(feeds) < 2 or not self._as_one(feeds, gain, started):
            _alone([job for job, _ in feeds])

    def _as_one(self, feeds: Sequence[tuple[WaitingJob, Feed]], gain: Gain, started: float) -> bool:
        """Whether they have been run as one, and answered."""
        first = _queued(feeds[0][0])
        ready = perf_counter()
        try:
            session = self._tails.acquire(first.tail)
            if session is None:
                return False
            try:
                decoded = perf_counter()
                watched = self._watched(first, session, len(feeds))
                outputs = run_stacked(watched, [feed for _, feed in feeds])
                computed = perf_counter()
                if gain.look_again() and self._strays(watched, feeds, outputs, first, gain):
                    return False
            finally:
                self._tails.release(first.tail)
        except Exception:  # engines are foreign code, and whose request it was shows when each is run alone
            return False
        gain.add(len(feeds), computed - decoded)
        # An equal part of the run is each one's own; the rest it has waited for the others. Told otherwise, edges took
        # a server with a full queue for one that computes eight times slower, and believed that long after.
        others_s = (computed - decoded) * (1 - 1 / len(feeds))
        run = BatchRun(next(self._numbers) % 0xFFFFFFFF + 1, len(feeds))
        for (job, _), own in zip(feeds, outputs, strict=True):
            marks = RunMarks(
                started, job.waited_s, started + decoded - ready + others_s, decoded + others_s, computed, run
            )
            _queued(job).request.answer(own, marks)
        return True

    def _strays(
        self,
        session: Runs,
        feeds: Sequence[tuple[WaitingJob, Feed]],
        outputs: Sequence[Mapping[str, Array]],
        queued: Queued,
        gain: Gain,
    ) -> bool:
        """Computes one request of a batch again, by itself: whether it gets something else. Which one, nobody can
        know."""
        why = recomputed(session, [feed for _, feed in feeds], outputs, randbelow(len(feeds)))
        if why:
            gain.judge("different", why)
            self._say(queued.tail, gain)
        return bool(why)

    def _try_out(self, queued: Queued, gain: Gain) -> None:
        """Finds out whether requests with these shapes can be run together; what this one holds has no part in it."""
        tail, shapes = queued.tail, queued.kind.shapes
        specs = [TensorSpec(t.name, t.dtype, tuple(s)) for t, s in zip(tail.segment.inputs, shapes, strict=True)]
        try:
            session = self._tails.acquire(tail)
            if session is None:
                return
            try:
                verdict, why = tried(self._watched(queued, session, 2), specs)
            finally:
                self._tails.release(tail)
        except Exception as exc:  # what is made up need not be to the graph's liking
            verdict, why = "inconclusive", f"it could not be tried: {exc!r}"
        gain.judge(verdict, why)
        self._say(tail, gain)

    def _say(self, tail: Tail, gain: Gain) -> None:
        said = "may be run together" if not gain.verdict else f"are run one by one: {gain.verdict}"
        fields = {"tail": tail.segment.key, "why": gain.verdict or ""}
        self._tell(Event("batched", f"requests that wait for tail {tail.segment.key} {said}", fields))

    def _watched(self, queued: Queued, session: Session, times: int) -> WatchedSession:
        return WatchedSession(self._watch, session, queued.kind.like, queued.request.account.name, times)


def _feed(request: TailRequest, now_s: float) -> Feed | None:
    """What the session is run with for `request`. None if its deadline has passed, its bytes are wrong, or answers wait
    to be read: run by itself it is told so."""
    if request.refusal(now_s) is not None:
        return None
    try:
        return request.feed()
    except Exception:  # codecs meet foreign bytes
        return None


def _alone(jobs: Sequence[WaitingJob]) -> None:
    for job in jobs:
        job.run(job.waited_s)


def _queued(job: WaitingJob) -> Queued:
    return cast(Queued, job.what)
