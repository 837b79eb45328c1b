"""Several waiting requests for one tail, answered as one batch (`runtime.batching` says when that is worth it)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, cast

from splitpoint.errors import SplitpointError
from splitpoint.runtime.batching import Feed, Gain, run_stacked, tried
from splitpoint.runtime.events import Event
from splitpoint.runtime.fair import Job

if TYPE_CHECKING:
    from splitpoint.runtime.peer import Request


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
            made = run_stacked(session, [feed for _, feed in feeds])
        finally:
            tails.release(tail)
    except Exception:  # engines are foreign code, and whose request it was shows when each is run alone
        return False
    computed = perf_counter()
    gain.add(len(feeds), computed - decoded)
    # An equal part of the run is each one's own; the rest it has waited for the others. Told otherwise, edges took a
    # server with a full queue for one that computes eight times slower, and believed that long after.
    others_s = (computed - decoded) * (1 - 1 / len(feeds))
    clock = (started, started + decoded - ready + others_s, decoded + others_s, computed)
    for (job, _), outputs in zip(feeds, made, strict=True):
        request = _request(job)
        request.peer.answer(request, outputs, job.waited_s, clock)
    return True


def _try_out(request: Request, gain: Gain) -> None:
    """Finds out whether requests like this one, which has been answered, can be run together."""
    tails, tail, tell = request.peer.server.tails, request.opened.tail, request.peer.server.tell
    feed = request.feed(0.0)
    if feed is None:
        return
    try:
        session = tails.acquire(tail)
        if session is None:
            return
        try:
            verdict, why = tried(session, feed)
        finally:
            tails.release(tail)
    except SplitpointError:  # this one fails by itself: it says nothing about others
        return
    except Exception as exc:
        verdict, why = "inconclusive", f"it could not be tried: {exc!r}"
    gain.judge(verdict, why)
    if gain.verdict is not None:
        said = "may be run together" if not gain.verdict else f"are run one by one: {gain.verdict}"
        tell(Event("batched", f"requests that wait for tail {tail.segment.key} {said}"))


def _request(job: Job) -> Request:
    return cast("Request", job.what)
