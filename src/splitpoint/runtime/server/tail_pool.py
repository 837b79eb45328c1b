"""Tails computed by this process: a pool of workers, compiled tails in memory, and batches of what waits.

request ─┬─ a worker is free, and its sender waits: computed right here, by the thread that received it
         ├─ else: a fair and bounded queue ─ a worker ─┬─ computed by itself
         │                                             └─ as one batch, with others like it
         └─ its tail has left memory: compiled again first, in turns with all others that are
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter, sleep, thread_time

from splitpoint.engines import Engine, Reopenable, Session
from splitpoint.engines.apart import Apart, DiedError
from splitpoint.engines.onnxruntime import shrink_workspace
from splitpoint.errors import BusyError, EngineError, InputError, SplitpointError
from splitpoint.machine import usable_cores
from splitpoint.models.model import Segment
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server import RunMarks, TailRequest
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.batch_runner import BatchRunner, Queued, RunKind
from splitpoint.runtime.server.batching import Gain
from splitpoint.runtime.server.compiled_tails import Tail, Tails
from splitpoint.runtime.server.fair_queue import WaitingJob
from splitpoint.runtime.server.run_limits import Like, Turns, Watch
from splitpoint.runtime.server.stats import RunnerStats
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.threads import begin, join, persist
from splitpoint.tensors import Array
from splitpoint.text import plain
from splitpoint.units import size
from splitpoint.wire import Limits

#: The most characters of a reason in an event.
_WHY = 1000
#: Shapes of one open tail of which it is remembered what they take.
_MOST_KINDS = 64


class TailPool:
    """Computes with `engine`, up to `workers` requests at once (`server.TailRunner`).

    At most `tail_bytes` of compiled tails stay in memory. Up to `max_batch` requests that wait run as one, and wait up
    to `max_wait_s` for that. `builders` compile again what has left memory.
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
        max_wait_s: float,
    ) -> None:
        self._builders, self._tell, self._work_bytes = builders, tell, limits.work_bytes
        apart = Apart(engine, limits.work_bytes) if isinstance(engine, Reopenable) else None
        # One by one on two cores, so that the other is left to requests.
        at_once = max(1, min(builders.workers, usable_cores() - 1))
        self.tails = Tails(engine, tail_bytes, tell, max_batch, apart, at_once)
        self.turns = Turns()
        self.compute = compute = Compute(workers, limits.queue, self._run_as_one, max_wait_s, tell)
        self.watch = Watch(
            limits.run_s,
            2 * workers * limits.work_bytes,
            compute.lend,
            compute.regain,
            shrink_workspace,
            lambda text: tell(Event("failed", text)),
        )
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
        """The recent busy share of the workers (0…1)."""
        return self.compute.utilisation

    def open(self, segment: Segment, account: Account) -> PoolTail:
        """`segment`, compiled. EngineError if it cannot be, BusyError if its address has too much open or compiled."""
        tail = self.tails.tail(segment)
        try:
            account.open(tail, tail.graph_nbytes)
        except BaseException:
            self.tails.leave(tail)
            raise
        opened = PoolTail(self, tail, account, self._work_bytes)
        try:
            self.build(tail, account)
        except BaseException:
            opened.close()
            raise
        self.tails.release(tail)
        return opened

    def build(self, tail: Tail, account: Account) -> Session:
        """The session of `tail`, compiled now for `account` if need be; `tails.release` after use."""
        if not self.tails.ready(tail):
            account.check_compile()
        return self.tails.build(tail, account.origin)

    def room(self, account: Account) -> bool:
        """Whether a request of `account` would be taken now."""
        return self.compute.room(account.client, account)

    def retry_after_s(self, account: Account) -> float:
        """When there is likely to be room again."""
        return self.compute.retry_after_s(account.client)

    def drop(self, account: Account) -> None:
        """Its client has gone: requests that have not begun are dropped, also those whose tails are to be compiled."""
        self._builders.drop(account.builds, account)
        self.compute.drop(account.client, account)

    def stats(self) -> RunnerStats:
        """Its numbers."""
        tails, compute = self.tails, self.compute
        return RunnerStats(
            compute.waiting,
            compute.workers,
            compute.utilisation,
            tails.count,
            tails.nbytes,
            tails.compiled,
            tails.evicted,
        )

    def end(self) -> None:
        """From now on nothing is computed, and what is under way is given up."""
        self.watch.end()

    def close(self, within_s: float) -> bool:
        """Frees everything. Whether all that ran has ended within `within_s`."""
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
        account, run = queued.request.account, partial(self.run, *queued, gain)
        job = WaitingJob(account.client, run, gain, queued, account, partial(self._dropped, queued))
        if not self.compute.submit(job):  # there was room before its body was received
            self._dropped(queued, account.no_room(self.retry_after_s(account)))

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
        account = queued.request.account
        job = WaitingJob(
            account.builds, partial(self._rebuild, queued), None, queued, account, partial(self._dropped, queued)
        )
        if not self._builders.submit(job):
            retry_s = self._builders.retry_after_s(account.builds)
            queued.request.refuse(BusyError("the tail left memory, and many wait for theirs", retry_s))

    def _rebuild(self, queued: Queued, waited_s: float) -> None:
        """Compiles the tail of a request, which then waits for a worker, and keeps it in memory until it has run."""
        request, tail, account, began_s = queued.request, queued.tail, queued.request.account, thread_time()
        try:
            account.check_build()
            session = self.build(tail, account)
        except SplitpointError as exc:
            request.refuse(exc)
            return
        except Exception as exc:  # engines are foreign code
            self._tell(Event("failed", f"a tail for {account.name} cannot be built: {plain(repr(exc), _WHY)}"))
            request.refuse(EngineError("the tail cannot be built; the server's log says more"))
            return
        finally:
            account.charge_build(thread_time() - began_s)
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
        self.segment = tail.segment
        self._kinds: dict[object, RunKind] = {}

    @property
    def nbytes(self) -> int:
        """Memory that its session takes."""
        return self._tail.nbytes

    @property
    def compile_s(self) -> float:
        """How long compiling it took."""
        return self._tail.compile_s

    def kind_of(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], *, vectors: bool) -> RunKind:
        """What runs with such inputs have in common. InputError if one would take too much memory."""
        key = tuple(map(tuple, shapes))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kind(dtypes, key, vectors)
            if len(self._kinds) >= _MOST_KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[key] = kind
        return kind

    def _kind(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], vectors: bool) -> RunKind:
        work, tail = self._tail.work, self._tail
        if work is None:
            like = Like(0.0)
        else:
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
        return RunKind(shapes, like, gain)

    def run(self, request: TailRequest) -> float:
        """Computes `request` in this thread, if that may be, or queues it."""
        pool, tail, kind = self._pool, self._tail, request.kind
        compute, client = pool.compute, request.account.client
        # One that others may join is not run at once where a wait for them is allowed.
        at_once = request.alone and (kind.gain is None or not compute.max_wait_s)
        if at_once and tail.session is not None and compute.begin(client):
            started = perf_counter()
            try:
                pool.run(request, tail, kind, None, None, 0.0)
            finally:
                compute.end(client, perf_counter() - started)
            return 0.0
        return pool.queue(Queued(request, tail, kind))

    def close(self, *, drop: bool = False) -> None:
        """The connection is done with it. With `drop` it leaves memory, if nobody else has it open."""
        self._pool.tails.leave(self._tail, drop=drop)
        self._account.close(self._tail, self._tail.graph_nbytes)
