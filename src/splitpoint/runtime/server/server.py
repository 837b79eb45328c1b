"""The server: where it listens, who is connected, how it begins and ends. The room's door says what is where."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import inf
from time import monotonic
from weakref import ReferenceType, ref

from splitpoint import wire
from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import Engine, underway
from splitpoint.engines.process_memory import give_back
from splitpoint.errors import BusyError, UsageError
from splitpoint.lifetime import Closable
from splitpoint.machine import half_the_memory
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event, OnEvent, Teller, ignore
from splitpoint.runtime.server import MakeRunner, TailRunner
from splitpoint.runtime.server.accounts import Account, Ledger, name_of
from splitpoint.runtime.server.admission import Admission, Serve
from splitpoint.runtime.server.catalogue import Catalogue, Sharing
from splitpoint.runtime.server.connection import Peer
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.services import Services
from splitpoint.runtime.server.stats import ServerStats
from splitpoint.runtime.server.tail_pool import TailPool
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.threads import begin, join, persist
from splitpoint.security import ServerSecurity
from splitpoint.transports import Connection, Listener, listen
from splitpoint.transports.addresses import parse_address
from splitpoint.units import counted
from splitpoint.wire import Frame, Limits

#: What those are told who are not let in.
_ENDING = "the server is ending: try again later"
#: Tails that wait to be made, and how many are at once: two, since one may wait for what it tells of to end.
_BUILDS, _BUILDERS = 128, 2
#: When connections end, free memory is given back to the system; not more often than this.
_TIDY_S = 5.0
#: How long what has been told to end may take, when the server does.
_END_S = 5.0
_TOLD_S = 0.5


class Server(Closable):
    """Serves `models` (several versions of one name are fine) until it is closed.

    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address) as edge:
    ...         edge.infer(digit).outputs["logits"].shape
    (1, 10)

    It listens at `host` (with a scheme, ``memory://kitchen``, by another transport) and `port`; or, if `listeners` are
    given, at those, which it closes: it then cannot be started again. `share` is what devices may fetch: ``"model"``
    everything, ``"head:CUT"`` the graph and the weights of the head up to that cut, which is then the deepest one whose
    tail is run, ``"none"`` nothing; several, ``"head:MODEL=CUT"``, say it model by model. `calibrations` have the
    tables of codecs that need them; those of a tensor may be fetched with the head that makes it. `security` says whom
    it lets in: where other machines can reach it TLS and a token or client certificates are a must, unless it is
    insecure on purpose. `on_event` gets one `Event` a connection made, left or refused, from any thread
    (`runtime.events`).

    `workers` requests run at once: 1 is right for an engine that uses all cores for one. `tail_cache_bytes` bounds
    compiled tails (2 GiB, or half the memory). Up to `max_batch` requests for one tail that wait at the same time run
    as one batch, where that is right and a tenth faster (measured). A request waits for others to join it if they are
    likely to come within what that saves; with `max_wait_s`, always up to that long. These four are for this process's
    own workers: `runner` makes something else that computes tails (`runtime.server.TailRunner`). ServerError or
    UsageError if it cannot listen there.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = wire.DEFAULT_PORT,
        listeners: Sequence[Listener] = (),
        share: str | Sequence[str] = "model",
        calibrations: Sequence[Calibration] = (),
        workers: int = 1,
        limits: Limits | None = None,
        tail_cache_bytes: int | None = None,
        max_batch: int = 8,
        max_wait_s: float | None = None,
        runner: MakeRunner | None = None,
        security: ServerSecurity | None = None,
        on_event: OnEvent = ignore,
    ) -> None:
        if not models:
            raise UsageError("a server needs at least one model")
        if max_batch < 1 or (max_wait_s is not None and not 0 <= max_wait_s < inf):
            raise UsageError(f"a batch has 1 request or more, and waits 0 s or more: not {max_batch}, {max_wait_s}")
        #: What is told of events, and cannot fail the server; `redirect` has another one told.
        self.tell = tell = Teller(on_event)
        self.catalogue = catalogue = Catalogue(models, tell, calibrations)
        self.sharing = Sharing(share, catalogue.models, catalogue.names, catalogue.tables)
        self.limits = limits or Limits(
            memory_bytes=half_the_memory(Limits.memory_bytes), work_bytes=half_the_memory(Limits.work_bytes)
        )
        self.security = security or ServerSecurity()
        self._engine, self._make_runner = engine, runner
        self._host, self._port, self._given = host, port, tuple(listeners)
        self._pool = partial(
            TailPool,
            engine,
            self.limits,
            workers=max(1, workers),
            tail_bytes=half_the_memory(2 << 30) if tail_cache_bytes is None else tail_cache_bytes,
            max_batch=max_batch,
            max_wait_s=max_wait_s,
        )
        self.ledger = Ledger(self.limits)
        self.admission = Admission(self.limits, self.security, tell, partial(_let_in, ref(self)))
        self._lock = threading.Lock()
        self._life = threading.RLock()  # it is started and closed by one at a time
        self._peers: set[Peer] = set()
        self._bytes_in = self._bytes_out = 0  # of connections that have ended
        self._tidied_s = -inf
        self._stop = threading.Event()
        self._listeners: Sequence[Listener] = ()
        self._accepting: list[threading.Thread] = []
        self._services: Services | None = None
        #: Once it is closed: whether a run did not end. Its thread outlives the server.
        self.hanging = False

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def addresses(self) -> Sequence[str]:
        """What others can connect to, once started: one a listener."""
        self.check()
        if not self._listeners:
            raise UsageError("the server is not started: use it in a with statement, or call start()")
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def everywhere(self) -> bool:
        """Whether it listens at every address of this machine, of which `address` is one."""
        return any(listener.everywhere for listener in self._listeners)

    @property
    def services(self) -> Services:
        """Its parts, once it has been started."""
        if self._services is None:
            raise UsageError("the server is not started: use it in a with statement, or call start()")
        return self._services

    def start(self) -> None:
        """Begins to listen and to answer, in threads of its own. UsageError from `on_event`, while it is closed."""
        self.check()
        if self._listeners:
            return
        if self.tell.telling:  # whoever closes it waits for the very thread that tells
            raise UsageError("on_event cannot start a server: start it from a thread of your own")
        with self._life:
            if not self._listeners:
                self._start()

    def _start(self) -> None:
        if self._given and self._services is not None:
            raise UsageError("this server has closed its listeners: make another one, with new listeners")
        listeners = self._given or (listen(self._host, self._port, self.limits, self.security),)
        with ExitStack() as undo:  # of what has begun, if the rest cannot
            for listener in listeners:
                undo.callback(listener.close)
            self._check(listeners)
            self._stop.clear()
            self.ledger.drain(False)
            #: Compiling is slow and must hold up neither a connection's reader nor the running of other tails.
            builders = Compute(_BUILDERS, _BUILDS, on_event=self.tell, slack=0.0, name="compile")
            undo.callback(builders.close)
            runner, profiling = self._workers(builders)
            undo.callback(runner.close, _END_S)
            kept = self.limits, self.catalogue, self.sharing, self.ledger  # from one start to the next
            self._services = Services(*kept, runner, builders, profiling, self.tell, self._stop.wait)
            self._accepting = []
            for listener in listeners:
                # A forgotten server is not kept alive by its own thread.
                step = partial(_accept, listener, ref(self), self.tell)
                work = (step, "accepting connections", self.tell, self._stop.wait)
                self._accepting.append(threading.Thread(target=persist, args=work, name="accept", daemon=True))
                begin(self._accepting[-1])
            undo.pop_all()
        self._listeners = listeners
        if self._closing is None:
            self._opened()
        for listener in listeners:
            self.tell(Event("listening", f"listening at {listener.address}", {"address": listener.address}))
            if lacks := self._lacks(listener):
                text = f"{listener.address} can be reached from other machines, {lacks}: "
                text += "let only trusted ones through, or use an SSH tunnel or a VPN"
                self.tell(Event("warning", text, {"address": listener.address, "why": lacks}))

    def _check(self, listeners: Sequence[Listener]) -> None:
        """UsageError for a server that strangers could use."""
        for listener in listeners:
            if (lacks := self._lacks(listener)) and not self.security.insecure:
                where = listener.address if self._given else self._host
                raise UsageError(
                    f"at {where} other machines could use this server, {lacks}: give it --tls-cert, "
                    "--tls-key and --token-file or --client-ca (splitpoint keys makes them), or say --insecure"
                )
        if not self._given and "://" not in listeners[0].address:
            self._port = parse_address(listeners[0].address)[1]  # `start` after `close` serves at the same one

    def _lacks(self, listener: Listener) -> str:
        """Without what other machines can reach it and get in, or read what goes over; empty if they cannot."""
        if not listener.exposed or (listener.private and (self.security.token or listener.identifies)):
            return ""
        if not listener.private:
            return "without encryption" + ("" if self.security.token else " or a token")
        return "without a token or client certificates"

    def _workers(self, builders: Compute) -> tuple[TailRunner, Profiling | None]:
        """Where tails compute; and what measures that, where it is this process."""
        if self._make_runner is not None:
            return self._make_runner(self.tell), None
        pool = self._pool(builders, self.tell)
        return pool, Profiling(self._engine, self.limits.profile_s, self.tell, self.ledger.answered, pool.watch)

    def serve_forever(self) -> None:
        """Returns after `stop`, or by an exception (KeyboardInterrupt). Call `close` after it, or use ``with``."""
        self.start()
        self._stop.wait()

    def stop(self) -> None:
        """Makes `serve_forever` return. May be called from a signal handler."""
        self._stop.set()

    def _end(self) -> None:
        self.close()

    def forked(self) -> None:
        if self._closing is not None:  # one that does not run has nothing that could not be used on both sides
            super().forked()

    def close(self, drain_s: float = 0.0) -> None:
        """Stops: no new requests, up to `drain_s` for those in flight to be answered, then every connection ends.

        A run that has not ended by then is given up; one that does not hear it is left behind (`hanging`), and this
        returns all the same. `start` serves again, at the same port. Called by `on_event` it does not wait for that: it
        would wait for the thread that tells.
        """
        if isinstance(self._over, UsageError):  # the process has forked: it is for the parent to stop it
            return
        self._stop.set()
        if self.tell.telling:
            threading.Thread(target=self._close, args=(drain_s,), name="close", daemon=True).start()
            return
        self._close(drain_s)

    def _close(self, drain_s: float) -> None:
        with self._life:
            self._close_alone(drain_s)

    def _close_alone(self, drain_s: float) -> None:
        with self._lock:
            listeners, self._listeners = self._listeners, ()
            if not listeners:
                return
            peers = list(self._peers)
        services, runner = self.services, self.services.runner
        self.ledger.drain(True)
        for listener in listeners:
            listener.wake()
        join(self._accepting, _END_S)
        for listener in listeners:
            listener.close()
        arriving = self.admission.close(_ENDING)
        for peer in peers:
            peer.say_bye()
        if services.profiling is not None:
            services.profiling.stop()
        end = monotonic() + drain_s
        self.ledger.wait(drain_s)
        runner.end()
        if drain_s:  # so that who asked is told
            self.ledger.wait(_TOLD_S)
        with self._lock:
            peers = list(self._peers)
        closers = [
            threading.Thread(
                target=p.connection.close, args=(max(0.2, end - monotonic()) if drain_s else 0.0,), daemon=True
            )
            for p in peers
        ]
        for thread in closers:
            thread.start()
        threads = [*closers, *(p.thread for p in peers), *arriving]
        if services.profiling is not None and (measuring := services.profiling.thread) is not None:
            threads.append(measuring)
        ended = join(threads, max(_END_S, end - monotonic() + _END_S))
        ended = services.builders.close(_END_S) and ended
        if not ended:  # a session apart that is being built, and what a profile runs, end so
            threads += services.builders.threads
            underway.give_up(t.ident for t in threads if t.ident is not None)
            ended = join(threads, 1.0)
        self.hanging = not (runner.close(_END_S) and ended)
        if self.hanging:
            self.tell(Event("failed", "something that the server computes does not end: it is left behind"))
        self._closing = None  # nothing is left that could be forgotten

    # --- connections --------------------------------------------------------------------------------------------

    def full(self, address: str) -> str:
        """Why there is no room for one more connection of `address`; empty if there is."""
        with self._lock, self.ledger.lock:
            return self._full(address)

    def _full(self, address: str) -> str:
        limits = self.limits
        if self.ledger.draining:
            return _ENDING
        if len(self._peers) >= limits.connections:
            return f"the server has {limits.connections} connections already: try again later"
        if self.ledger.origins.full(address):
            many = counted(limits.client_connections, "connection")
            return f"{many} from this address already: close one, or serve with more --client-connections"
        return ""

    def let_in(self, connection: Connection, hello: Frame) -> Serve:
        """Makes `connection` one of those that are served; returns what does that. BusyError if there is no room."""
        with self._lock, self.ledger.lock:
            if full := self._full(name_of(connection.peer)):
                raise BusyError(full, 1.0)
            origin = self.ledger.origins.enter(connection.peer)
            assert origin is not None
            account = Account(self.ledger, origin, connection.peer)
            peer = Peer(self.services, connection, account, hello, self._left)
            self._peers.add(peer)
        return peer.serve

    def _left(self, peer: Peer) -> None:
        """Nothing is left of the connection of `peer`."""
        now_s = monotonic()
        with self._lock:
            self._peers.discard(peer)
            self._bytes_in += peer.bytes_in
            self._bytes_out += peer.connection.sent_nbytes
            tidy = now_s >= self._tidied_s + _TIDY_S
            if tidy:
                self._tidied_s = now_s
        if tidy:  # what its thread has freed stays with the C library, which keeps it for every thread apart
            give_back()

    # --- numbers ------------------------------------------------------------------------------------------------

    def stats(self) -> ServerStats:
        """What it has done since it was made, and what it has to do now: cheap enough for once a second.

        >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
        ...     with Edge(server.address, at="pool1") as edge:
        ...         result = edge.infer(digit)
        ...     stats = server.stats()
        >>> over = stats.answered + sum(stats.refused.values()) + stats.failed + stats.dropped
        >>> stats.received == over + stats.in_flight
        True
        """
        services = self.services
        stats, runner = self.ledger.stats(), services.runner.stats()
        with self._lock:
            return replace(
                stats,
                bytes_in=self._bytes_in + sum(peer.bytes_in for peer in self._peers),
                bytes_out=self._bytes_out + sum(peer.connection.sent_nbytes for peer in self._peers),
                connections=len(self._peers),
                arrivals=len(self.admission.arrivals),
                turned_away=self.admission.refusals.count,
                opening=services.builders.waiting,
                runner=runner,
            )


def _accept(listener: Listener, server: ReferenceType[Server], tell: OnEvent) -> bool:
    """Hands the next connection to the server; False once that is closed or was forgotten."""

    def starved(why: str) -> None:
        tell(Event("warning", f"others wait to be connected: {why}", {"why": why}))

    connection = listener.accept(starved)
    alive = server()
    if connection is None:
        return False
    if alive is None:
        connection.close()
        return False
    alive.admission.take(connection, alive.full(name_of(connection.peer)))
    return True


def _let_in(server: ReferenceType[Server], connection: Connection, hello: Frame) -> Serve:
    alive = server()
    if alive is None:
        raise BusyError(_ENDING, 1.0)
    return alive.let_in(connection, hello)
