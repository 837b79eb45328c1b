"""Several waiting requests for one tail, answered as one batch (`batching` says when that is worth it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import randbelow
from time import perf_counter
from typing import TYPE_CHECKING, cast

from splitpoint.engines import Session
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.batching import Feed, Gain, Runs, recomputed, run_stacked, tried
from splitpoint.runtime.server.fair_queue import Job
from splitpoint.runtime.server.run_limits import Watched
from splitpoint.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from splitpoint.runtime.server.connection import Request


def run_together(jobs: Sequence[Job]) -> None:
    """Answers all of `jobs`. Whatever cannot be run with others runs by itself, and gets its own error."""
    gain = cast(Gain, jobs[0].key)
    if gain.verdict is None:
        _alone(jobs)
        _try_out(_request(jobs[0]), gain)
        return
    started = perf_counter()
    feeds: list[tuple[Job, Feed]] = []
    for job in jobs:
        feed = _request(job).feed(started)
        if feed is None:
            _alone([job])
        else:
            feeds.append((job, feed))
    if len(feeds) < 2 or not _as_one(feeds, gain, started):
        _alone([job for job, _ in feeds])


def _alone(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.run(job.waited_s)


def _as_one(feeds: Sequence[tuple[Job, Feed]], gain: Gain, started: float) -> bool:
    """Whether they have been run as one, and answered."""
    first = _request(feeds[0][0])
    tails, tail = first.peer.server.tails, first.opened.tail
    ready = perf_counter()
    try:
        session = tails.acquire(tail)
        if session is None:
            return False
        try:
            decoded = perf_counter()
            watched = _watched(first, session, len(feeds))
            made = run_stacked(watched, [feed for _, feed in feeds])
            computed = perf_counter()
            if gain.look_again() and _strays(watched, feeds, made, first, gain):
                return False
        finally:
            tails.release(tail)
    except Exception:  # engines are foreign code, and whose request it was shows when each is run alone
        return False
    gain.add(len(feeds), computed - decoded)
    # An equal part of the run is each one's own; the rest it has waited for the others. Told otherwise, edges took a
    # server with a full queue for one that computes eight times slower, and believed that long after.
    others_s = (computed - decoded) * (1 - 1 / len(feeds))
    clock = (started, started + decoded - ready + others_s, decoded + others_s, computed)
    for (job, _), outputs in zip(feeds, made, strict=True):
        request = _request(job)
        request.peer.answer(request, outputs, job.waited_s, clock)
    return True


def _strays(
    session: Runs,
    feeds: Sequence[tuple[Job, Feed]],
    made: Sequence[Mapping[str, Array]],
    request: Request,
    gain: Gain,
) -> bool:
    """Computes one request of a batch again, by itself: whether it gets something else. Which one, nobody can know."""
    why = recomputed(session, [feed for _, feed in feeds], made, randbelow(len(feeds)))
    if why:
        gain.judge("different", why)
        _tell(request, gain)
    return bool(why)


def _try_out(request: Request, gain: Gain) -> None:
    """Finds out whether requests with these shapes can be run together; what this one holds has no part in it."""
    tails, tail = request.peer.server.tails, request.opened.tail
    sent = zip(tail.segment.inputs, request.header.tensors, strict=True)
    specs = [TensorSpec(spec.name, spec.dtype, tensor.shape) for spec, tensor in sent]
    try:
        session = tails.acquire(tail)
        if session is None:
            return
        try:
            verdict, why = tried(_watched(request, session, 2), specs)
        finally:
            tails.release(tail)
    except Exception as exc:  # what is made up need not be to the graph's liking
        verdict, why = "inconclusive", f"it could not be tried: {exc!r}"
    gain.judge(verdict, why)
    _tell(request, gain)


def _tell(request: Request, gain: Gain) -> None:
    said = "may be run together" if not gain.verdict else f"are run one by one: {gain.verdict}"
    request.peer.server.tell(Event("batched", f"requests that wait for tail {request.opened.tail.segment.key} {said}"))


def _watched(request: Request, session: Session, times: int) -> Watched:
    peer, like = request.peer, request.opened.like(request.header)
    return Watched(peer.server.watch, session, like, peer.name, times)


def _request(job: Job) -> Request:
    return cast("Request", job.what)
