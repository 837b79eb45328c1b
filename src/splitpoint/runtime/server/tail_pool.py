"""Tails computed by this process: a pool of workers, compiled tails in memory, and batches of what waits.

request ─┬─ a worker is free, and its sender waits: computed right here, by the thread that received it
         ├─ else: a fair and bounded queue ─ a worker ─┬─ computed by itself
         │                                             └─ as one batch, with others like it
         └─ its tail has left memory: compiled again first, in turns with all others that are
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from secrets import randbelow
from time import perf_counter, sleep
from typing import NamedTuple, cast

from splitpoint.engines import Engine, Reopenable, Session
from splitpoint.engines.apart import Apart, DiedError
from splitpoint.engines.onnxruntime import shrink_workspace
from splitpoint.errors import BusyError, EngineError, InputError, SplitpointError
from splitpoint.machine import usable_cores
from splitpoint.models.model import Segment
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server import RunMarks, TailRequest
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.batching import Asker, Feed, Gain, Run, recomputed, run_stacked, tried
from splitpoint.runtime.server.compiled_tails import Tail, Tails, tell_batched
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.run_limits import Like, Turns, Watch
from splitpoint.runtime.server.stats import RunnerStats
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.threads import begin, join, persist
from splitpoint.tensors import Array, TensorSpec
from splitpoint.text import plain
from splitpoint.units import size
from splitpoint.wire import BatchRun, Limits

#: Shapes of one open tail of which it is remembered what they take.
_MOST_KINDS = 64


class RunKind(NamedTuple):
    """What requests of one connection with inputs of these `shapes` have in common: how long they take, and, if they
    can run as one batch with each other and with those of other connections, what that gains, and when they come."""

    shapes: Sequence[Sequence[int]]
    like: Like
    gain: Gain | None
    asker: Asker

    def answered(self, now_s: float) -> None:
        """One of them is answered now."""
        if self.gain is not None:
            self.gain.answered(self.asker, now_s)


class Queued(NamedTuple):
    """What a job of the pool's queue computes. `session` is the tail's, if it is in use already for this request."""

    request: TailRequest
    tail: Tail
    kind: RunKind
    session: Session | None = None


class TailPool:
    """Computes with `engine`, up to `workers` requests at once (`server.TailRunner`).

    At most `tail_bytes` of compiled tails stay in memory. Up to `max_batch` requests that wait run as one, and wait for
    others as long as that pays, or up to `max_wait_s`. `builders` compile again what has left memory.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        builders: Compute,
        tell: OnEvent,
        *,
        workers: int,
        tail_bytes: int,
        max_batch: int,
        max_wait_s: float | None,
    ) -> None:
        self._builders, self._tell, self._work_bytes = builders, tell, limits.work_bytes
        apart = Apart(engine, limits.work_bytes) if isinstance(engine, Reopenable) else None
        # One by one on two cores, so that the other is left to requests.
        at_once = max(1, min(builders.workers, usable_cores() - 1))
        self.tails = Tails(engine, tail_bytes, tell, max_batch, apart, at_once)
        self.turns = Turns()
        self.compute = compute = Compute(workers, limits.queue, self._run_as_one, max_wait_s, tell)
        keep_bytes = 2 * workers * limits.work_bytes
        self.watch = Watch(limits.run_s, keep_bytes, compute.lend, compute.regain, shrink_workspace, tell)
        self._batches = BatchRunner(self.tails, self.watch, tell)
        work = (self.watch.look, "watching what runs", tell, sleep)
        self._watching = threading.Thread(target=persist, args=work, name="watch", daemon=True)
        try:
            begin(self._watching)
        except BaseException:
            compute.close()
            raise

    @property
    def utilisation(self) -> float:
        return self.compute.utilisation

    def open(self, segment: Segment, account: Account) -> PoolTail:
        """`segment`, compiled. EngineError if it cannot be, BusyError if its address has too much open or compiled."""
        tail = self.tails.tail(segment)
        with ExitStack() as undo:
            undo.callback(self.tails.leave, tail)
            account.open(tail, tail.graph_nbytes)
            undo.callback(account.close, tail, tail.graph_nbytes)
            self.build(tail, account)
            undo.pop_all()
        self.tails.release(tail)
        return PoolTail(self, tail, account, self._work_bytes)

    def build(self, tail: Tail, account: Account) -> Session:
        """The session of `tail`, compiled now for `account` if need be; `tails.release` after use."""
        if tail.session is None:
            account.check_compile()
        return self.tails.build(tail, account.origin)

    def room(self, account: Account) -> bool:
        return self.compute.room(account.client, account)

    def retry_after_s(self, account: Account) -> float:
        return self.compute.retry_after_s(account.client)

    def drop(self, account: Account) -> None:
        self._builders.drop(account.builds, account)
        self.compute.drop(account.client, account)

    def stats(self) -> RunnerStats:
        tails, compute = self.tails, self.compute
        busy = compute.waiting, compute.workers, compute.utilisation
        return RunnerStats(*busy, tails.count, tails.nbytes, tails.compiled, tails.evicted)

    def end(self) -> None:
        self.watch.end()

    def close(self, within_s: float) -> bool:
        ended = self.compute.close(within_s)
        self.tails.close()
        self.watch.close()
        return join([self._watching], within_s) and ended

    # --- requests -----------------------------------------------------------------------------------------------

    def queue(self, queued: Queued) -> float:
        """Has it computed by a worker, once it is its turn. Returns what `server.OpenTail.run` does."""
        if queued.tail.session is None:  # it has left memory: nobody who waits for a worker waits for it to be built
            self._rebuild_later(queued)
            return 0.0
        self._queue(queued, queued.kind.gain)
        return self.compute.crowded_s(queued.request.account.client)

    def _queue(self, queued: Queued, gain: Gain | None) -> None:
        account = queued.request.account
        job = self._job(queued, account.client, partial(self.run, *queued, gain), gain)
        if not self.compute.submit(job):  # there was room before its body was received
            self._dropped(queued, account.no_room(self.retry_after_s(account)))

    def _job(self, queued: Queued, client: Client, run: Callable[[float], None], gain: Gain | None) -> WaitingJob:
        request, dropped = queued.request, partial(self._dropped, queued)
        return WaitingJob(client, run, gain, queued, request.account, dropped, request.latest_s)

    def _dropped(self, queued: Queued, why: BusyError | None = None) -> None:
        """It is not run after all: because of `why`, or because its client has gone."""
        if queued.session is not None:
            self.tails.release(queued.tail)
        if why is not None:
            queued.request.refuse(why)
        else:
            queued.request.drop()

    def _rebuild_later(self, queued: Queued) -> None:
        """Has the tail compiled for this request, in turns with all others that are."""
        builds = queued.request.account.builds
        if not self._builders.submit(self._job(queued, builds, partial(self._rebuild, queued), None)):
            retry_s = self._builders.retry_after_s(builds)
            queued.request.refuse(BusyError("the tail left memory, and many wait for theirs", retry_s))

    def _rebuild(self, queued: Queued, waited_s: float) -> None:
        """Compiles the tail of a request, which then waits for a worker, and keeps it in memory until it has run."""
        request, tail, account = queued.request, queued.tail, queued.request.account
        try:
            with account.building():
                session = self.build(tail, account)
        except SplitpointError as exc:
            request.refuse(exc)
            return
        except Exception as exc:  # engines are foreign code
            self._tell(Event("failed", f"a tail for {account.name} cannot be built: {plain(repr(exc))}"))
            request.refuse(EngineError("the tail cannot be built; the server's log says more"))
            return
        self._queue(queued._replace(session=session), None)
        if account.gone:  # it left meanwhile
            self.drop(account)

    def _run_as_one(self, jobs: Sequence[WaitingJob]) -> None:
        self._batches(jobs)

    def run(
        self,
        request: TailRequest,
        tail: Tail,
        kind: RunKind,
        session: Session | None,
        gain: Gain | None,
        waited_s: float,
    ) -> None:
        """Computes and answers one; whatever goes wrong is its own. `session`: see `Queued`.

        `gain` is told how long it took: only of those that waited, as a batch does, and not of a thread just awake.
        """
        started = perf_counter()
        try:
            if session is not None:  # all until now was a wait for it
                waited_s = started - request.received_s
            if (why := request.refusal(started)) is not None:
                request.refuse(why)
                return
            session = session or self.tails.acquire(tail)
            if session is None:
                self._rebuild_later(Queued(request, tail, kind))
                return
            try:
                ready = perf_counter()
                feed = request.feed()
                decoded = perf_counter()
                outputs = self._outputs(session, feed, tail, kind.like, request.account)
                computed = perf_counter()
                if gain is not None:
                    gain.add(1, computed - decoded)
            except Exception as exc:  # engines and codecs meet foreign bytes
                request.refuse(exc)
            else:
                kind.answered(computed)
                request.answer(outputs, RunMarks(started, waited_s, ready, decoded, computed))
        finally:
            if session is not None:
                self.tails.release(tail)

    def _outputs(
        self, session: Session, feed: Mapping[str, Array], tail: Tail, like: Like, account: Account
    ) -> Mapping[str, Array]:
        if not tail.apart:
            return self.watch.run(session, feed, like, account.name)
        address = account.origin.name
        with self.turns.turn(address, tail.segment.key):
            try:
                return self.watch.run(session, feed, like, account.name, apart=True)
            except DiedError:
                self.turns.ban(address)
                raise


class PoolTail:
    """A tail of the pool, as one connection has it open (`server.OpenTail`)."""

    def __init__(self, pool: TailPool, tail: Tail, account: Account, work_bytes: int) -> None:
        self._pool, self._tail, self._account, self._work_bytes = pool, tail, account, work_bytes
        self.segment, self.nbytes, self.compile_s = tail.segment, tail.nbytes, tail.compile_s
        self._kinds: dict[object, RunKind] = {}

    def kind_of(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], *, vectors: bool) -> RunKind:
        key = tuple(map(tuple, shapes))
        if key not in self._kinds:
            kind = self._kind(dtypes, key, vectors)
            if len(self._kinds) >= _MOST_KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[key] = kind
        return self._kinds[key]

    def _kind(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], vectors: bool) -> RunKind:
        work, tail, like = self._tail.work, self._tail, Like(0.0)
        if work is not None:
            nbytes, most = work.peak(shapes), max(work.least, self._work_bytes)
            if nbytes > most:
                rows = "×".join(map(str, work.sizes(shapes)))
                raise InputError(
                    f"a batch of {rows} rows would take about {size(nbytes)} here; the limit is {size(most)}: "
                    "send fewer rows at a time, or serve with more --max-work"
                )
            like = Like(nbytes, batches=work.peak(shapes, tail.most) <= most)
        owner = self._account.origin.name
        gain = tail.gain(dtypes, shapes, owner) if like.batches and not vectors else None
        return RunKind(shapes, like, gain, Asker())

    def run(self, request: TailRequest) -> float:
        """Computes `request` in this thread, if that may be, or queues it."""
        pool, tail, kind = self._pool, self._tail, request.kind
        compute, client = pool.compute, request.account.client
        if kind.gain is not None:
            kind.gain.asked(kind.asker, request.received_s)
        if request.alone and tail.session is not None and compute.begin(client, kind.gain):
            started = perf_counter()
            try:
                pool.run(request, tail, kind, None, None, 0.0)
            finally:
                compute.end(client, perf_counter() - started)
            return 0.0
        return pool.queue(Queued(request, tail, kind))

    def close(self, *, drop: bool = False) -> None:
        self._pool.tails.leave(self._tail, drop=drop)
        self._account.close(self._tail, self._tail.graph_nbytes)


class BatchRunner:
    """Answers several waiting requests for one tail as one batch (`batching` says when that is worth it)."""

    def __init__(self, tails: Tails, watch: Watch, tell: OnEvent) -> None:
        self._tails, self._watch, self._tell = tails, watch, tell
        self._numbers = itertools.count()

    def __call__(self, jobs: Sequence[WaitingJob]) -> None:
        """Answers all of `jobs`. Whatever cannot be run with others runs by itself, and gets its own error."""
        gain = cast(Gain, jobs[0].key)
        if gain.verdict is None:
            _alone(jobs)
            self._try_out(jobs[0].what, gain)
            return
        started = perf_counter()
        jobs[0].what.request.decode_with(job.what.request for job in jobs[1:])
        feeds: list[tuple[WaitingJob, Feed]] = []
        for job in jobs:
            feed = _feed(job.what.request, started)
            if feed is None:
                _alone([job])
            else:
                feeds.append((job, feed))
        if len(feeds) < 2 or not self._as_one(feeds, gain, started):
            _alone([job for job, _ in feeds])

    def _as_one(self, feeds: Sequence[tuple[WaitingJob, Feed]], gain: Gain, started: float) -> bool:
        """Whether they have been run as one, and answered."""
        first: Queued = feeds[0][0].what
        ready = perf_counter()
        try:
            session = self._tails.acquire(first.tail)
            if session is None:
                return False
            try:
                decoded = perf_counter()
                run = self._watched(first, session, len(feeds))
                inputs = [feed for _, feed in feeds]
                outputs = run_stacked(run, inputs)
                computed = perf_counter()
                # One request is computed again, by itself: which one, nobody can know.
                again = randbelow(len(feeds)) if gain.look_again() else None
                if again is not None and (why := recomputed(run, inputs, outputs, again)):
                    gain.judge("different", why)
                    tell_batched(self._tell, first.tail.segment, why)
                    return False
            finally:
                self._tails.release(first.tail)
        except Exception:  # engines are foreign code, and whose request it was shows when each is run alone
            return False
        gain.add(len(feeds), computed - decoded)
        # An equal part of the run is each one's own; the rest it has waited for the others. Told otherwise, edges took
        # a server with a full queue for one that computes eight times slower, and believed that long after.
        others_s = (computed - decoded) * (1 - 1 / len(feeds))
        ran = BatchRun(next(self._numbers) % 0xFFFFFFFF + 1, len(feeds))
        for (job, _), own in zip(feeds, outputs, strict=True):
            marks = RunMarks(
                started, job.waited_s, started + decoded - ready + others_s, decoded + others_s, computed, ran
            )
            job.what.kind.answered(perf_counter())
            job.what.request.answer(own, marks)
        return True

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
        tell_batched(self._tell, tail.segment, gain.verdict or "")

    def _watched(self, queued: Queued, session: Session, times: int) -> Run:
        """Runs `session` as `times` requests like this one may."""
        name = queued.request.account.name
        return partial(self._watch.run, session, like=queued.kind.like, name=name, times=times)


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
