"""The server: holds models, hands out graphs and weights, compiles tails on demand and runs them.

    frame ─ reader thread of its connection ─┬─ a worker is free: runs it right here      ─┬─ reply, sent without
                                             └─ no, or more requests follow: bounded queue ─┘  waiting for the peer

Every connection has a thread that receives. A request whose sender waits for the answer (no PIPELINED flag) is run
by that thread if a worker's place is free, which saves two context switches; otherwise by the pool, so that the next
request is received meanwhile. Each connection has a queue of its own, and computing time is shared out evenly among
those that wait (`fair_queue`). What a request takes is known before it is received (`models.memory_estimate`), or it
runs in a process of its own (`engines.apart`); what takes too long is given up (`run_limits`). A peer that reads slowly
holds up nobody: see `transports.tcp`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from weakref import ReferenceType, ref

from splitpoint import wire
from splitpoint.engines import Engine, underway
from splitpoint.engines.apart import Apart
from splitpoint.engines.onnxruntime import OnnxRuntimeEngine, shrink_workspace
from splitpoint.engines.process_memory import give_back
from splitpoint.errors import BusyError, ChangedError, ModelError, RefusedError, ServerError, UsageError, nearest
from splitpoint.lifetime import Closable
from splitpoint.machine import half_the_memory, usable_cores
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event, OnEvent, Teller, ignore
from splitpoint.runtime.model_choice import info_of
from splitpoint.runtime.server.admission import Arrival, Guesses, Refusals, Room
from splitpoint.runtime.server.batch_runner import run_together
from splitpoint.runtime.server.compiled_tails import Tail, Tails
from splitpoint.runtime.server.connection import Peer
from splitpoint.runtime.server.fair_queue import within
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.quotas import Origin, Origins
from splitpoint.runtime.server.run_limits import Turns, Watch
from splitpoint.runtime.server.weight_sharing import Sharing
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.threads import begin, join, persist
from splitpoint.security import ServerSecurity
from splitpoint.text import listed
from splitpoint.transports import Ended
from splitpoint.transports.addresses import is_loopback
from splitpoint.transports.tcp import TcpConnection, TcpListener, Wrap
from splitpoint.units import counted
from splitpoint.wire import Kind, Limits

#: Connections refused for want of room that are kept for a moment, so that they can read why.
_TURNED_AWAY = 32
#: What those are told who are not let in.
_ENDING = "the server is ending: try again later"
_CROWDED = "too many others want to be let in at once: try again"
#: Tails that wait to be made, and how many are at once: two, since one may wait for what it tells of to end. They are
#: compiled one by one on two cores, so that the other is left to requests.
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

    `share` is what devices may fetch: ``"model"`` everything, ``"head:CUT"`` the graph and the weights of the head up
    to that cut, which is then the deepest one whose tail is run, ``"none"`` nothing; several, ``"head:MODEL=CUT"``, say
    it model by model. `workers` requests run at once: 1 is right for an
    engine that uses all cores for one. `tail_cache_bytes` bounds compiled tails (2 GiB, or half the memory). Up to
    `max_batch` requests for one tail that wait at the same time run as one batch, where that is right and a tenth
    faster (measured); with `max_wait_s` a request waits that long for others to join it. `security` says whom it lets
    in: off loopback TLS and a token or client certificates are a must, unless it is insecure on purpose. `on_event`
    gets one `Event` a connection made, left or refused, from any thread (`runtime.events`). ServerError or UsageError
    if it cannot listen there.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = wire.DEFAULT_PORT,
        share: str | Sequence[str] = "model",
        workers: int = 1,
        limits: Limits | None = None,
        tail_cache_bytes: int | None = None,
        max_batch: int = 8,
        max_wait_s: float = 0.0,
        security: ServerSecurity | None = None,
        on_event: OnEvent = ignore,
    ) -> None:
        if not models:
            raise UsageError("a server needs at least one model")
        self.models: dict[str, Model] = {}
        self._infos: dict[tuple[str, str], wire.ModelInfo] = {}
        changed = _Changed(partial(_tell, ref(self)))
        for model in models:  # the same one given twice is one model, under each of its names
            self.models.setdefault(model.fingerprint, replace(model, weights=_Watched(model, changed)))
            self._infos.setdefault((model.name, model.fingerprint), info_of(model))
        names: dict[str, list[str]] = {}
        for name, fingerprint in self._infos:
            names.setdefault(fingerprint, []).append(name)
        self.sharing = Sharing(share, self.models, names)
        self.limits = limits or Limits(
            memory_bytes=half_the_memory(Limits.memory_bytes), work_bytes=half_the_memory(Limits.work_bytes)
        )
        self.security = security or ServerSecurity()
        self._tell = Teller(on_event)
        self._host, self._port = host, port
        self._workers = max(1, workers)
        self._engine = engine
        self._tail_bytes = half_the_memory(2 << 30) if tail_cache_bytes is None else tail_cache_bytes
        if max_batch < 1 or not 0 <= max_wait_s < inf:
            raise UsageError(f"a batch has 1 request or more, and waits 0 s or more: not {max_batch}, {max_wait_s}")
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._life = threading.RLock()  # it is started and closed by one at a time
        self._peers: set[Peer] = set()
        self._room = Room[Arrival](self.limits.arrivals)
        self._arrivals: set[Arrival] = set()  # those in the room, and those whose threads are not over yet
        self.guesses, self.refusals = Guesses(self.security), Refusals(self._tell)
        #: Held for an `Origin`.
        self.accounts = self._lock
        self._origins = Origins(self.limits.client_connections, self.limits.client_compiles)
        self._turned_away: deque[TcpConnection] = deque()
        self._received = 0
        self._answered = 0
        self._tidied_s = -inf
        self._stop = threading.Event()
        self._listener: TcpListener | None = None
        self.draining = False
        #: Once it is closed: whether a run did not end. Its thread, which cannot be joined, outlives the server.
        self.hanging = False

    @property
    def tell(self) -> OnEvent:
        """What is told of events; whatever is put here cannot fail the server."""
        return self._tell

    @tell.setter
    def tell(self, on_event: OnEvent) -> None:
        self._tell.on_event = on_event

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """``host:port`` that others can connect to, once started."""
        self.check()
        if self._listener is None:
            raise UsageError("the server is not started: use it in a with statement, or call start()")
        return self._listener.address

    @property
    def everywhere(self) -> bool:
        """Whether it listens at every address of this machine, of which `address` is one."""
        return self._listener is not None and self._listener.everywhere

    def start(self) -> None:
        """Begins to listen and to answer, in threads of its own. UsageError from `on_event`, while it is closed."""
        self.check()
        if self._listener is not None:
            return
        if self._tell.telling:  # whoever closes it waits for the very thread that tells
            raise UsageError("on_event cannot start a server: start it from a thread of your own")
        with self._life:
            self._start()

    def _start(self) -> None:
        if self._listener is not None:
            return
        self._listener = listener = self._listen()
        try:
            self._run(listener)
        except BaseException:  # no thread is left
            self._listener = self._closing = None
            listener.close()
            raise
        self.tell(Event("listening", f"listening at {self.address}"))
        if self._is_exposed(listener):
            self.tell(
                Event(
                    "warning",
                    f"{self.address} can be reached from other machines, {self._lacks()}: "
                    "let only trusted ones through, or use an SSH tunnel or a VPN",
                )
            )

    def _run(self, listener: TcpListener) -> None:
        self._port = listener.sockaddr[1]
        server = ref(self)  # a server that is forgotten is not kept alive by its own thread
        listener.on_starved = partial(_starved, server)
        self._stop.clear()
        self.draining = False
        self._turned_away.clear()
        if self._closing is None:
            self._opened()
        limits = self.limits
        self.compute = compute = Compute(self._workers, limits.queue, run_together, self._max_wait_s, self.tell)
        #: Compiling is slow and must hold up neither a connection's reader nor the running of other tails.
        try:
            self.builders = Compute(_BUILDERS, _BUILDS, on_event=self.tell, slack=0.0, name="compile")
        except BaseException:
            self.compute.close()
            raise
        apart = Apart(self._engine, limits.work_bytes) if isinstance(self._engine, OnnxRuntimeEngine) else None
        at_once = max(1, min(_BUILDERS, usable_cores() - 1))
        self.tails = Tails(self._engine, self._tail_bytes, self.tell, self._max_batch, apart, at_once)
        self.turns = Turns()
        self.watch = Watch(
            limits.run_s,
            2 * self._workers * limits.work_bytes,
            compute.lend,
            compute.regain,
            shrink_workspace,
            lambda text: _tell(server, Event("failed", text)),
        )
        answered = partial(_answered, server)
        self.profiling = Profiling(self._engine, limits.profile_s, self.tell, answered, self.watch)
        self._accepting = self._thread(partial(_accept, listener, server), "accepting connections", "accept")
        self._watching = self._thread(self.watch.look, "watching what runs", "watch")
        try:
            begin(self._watching)
            begin(self._accepting)
        except BaseException:
            self.watch.close()
            self.builders.close()
            self.compute.close()
            raise

    def _thread(self, step: Callable[[], object], what: str, name: str) -> threading.Thread:
        work = (step, what, partial(_tell, ref(self)), self._stop.wait)
        return threading.Thread(target=persist, args=work, name=name, daemon=True)

    def _listen(self) -> TcpListener:
        """Listens there. UsageError for files that are of no use, and for a server that strangers could use."""
        wrap: Wrap = TcpConnection
        if self.security.certificate is not None:
            from splitpoint.transports.tls import TlsConnection, handshake_pace, server_context

            context = server_context(self.security)
            wrap = partial(TlsConnection, context=context, pace=handshake_pace())
        listener = TcpListener(self._host, self._port, self.limits, wrap)
        if self._is_exposed(listener) and not self.security.insecure:
            listener.close()
            raise UsageError(
                f"at {self._host} other machines could use this server, {self._lacks()}: give it --tls-cert, --tls-key "
                "and --token-file or --client-ca (splitpoint keys makes them), or say --insecure"
            )
        return listener

    def _is_exposed(self, listener: TcpListener) -> bool:
        """Whether strangers can reach it and get in, or read what goes over."""
        return not is_loopback(listener.sockaddr[0]) and not self.security.guarded

    def _lacks(self) -> str:
        """What keeps `_is_exposed` from being untrue."""
        if self.security.certificate is None:
            return "without encryption" + ("" if self.security.token else " or a token")
        return "without a token or client certificates"

    def pause(self, seconds: float) -> None:
        """Waits; less long if the server ends meanwhile."""
        self._stop.wait(seconds)

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
        if self._tell.telling:
            threading.Thread(target=self._close, args=(drain_s,), name="close", daemon=True).start()
            return
        self._close(drain_s)

    def _close(self, drain_s: float) -> None:
        with self._life:
            self._close_alone(drain_s)

    def _close_alone(self, drain_s: float) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is None:
                return
            self.draining = True
            peers = list(self._peers)
        listener.wake()
        self._accepting.join(_END_S)
        listener.close()
        with self._lock:
            arrivals = list(self._arrivals)
        for arrival in arrivals:
            arrival.send_away(_ENDING)
        for connection in self._turned_away:
            connection.close()
        for peer in peers:
            peer.say_bye()
        self.profiling.stop()
        end = monotonic() + drain_s
        self._drain(drain_s)
        self.watch.end()
        if drain_s:  # so that who asked is told
            self._drain(_TOLD_S)
        with self._lock:
            peers = list(self._peers)
        closers = [
            threading.Thread(target=p.close, args=(max(0.2, end - monotonic()) if drain_s else 0.0,), daemon=True)
            for p in peers
        ]
        for thread in closers:
            thread.start()
        readers = [*(p.thread for p in peers), *(a.thread for a in arrivals)]
        threads = [*closers, *readers, *self.profiling.threads()]
        ended = join(threads, max(_END_S, end - monotonic() + _END_S))
        ended = self.builders.close(_END_S) and ended
        ended = self.compute.close(_END_S) and ended
        if not ended:  # a session apart that is being built, and what a profile runs, end so
            threads += self.builders.threads
            underway.give_up(t.ident for t in threads if t.ident is not None)
            ended = join(threads, 1.0)
        self.tails.close()
        self.watch.close()
        ended = join([self._watching], _END_S) and ended
        self.hanging = not ended
        if self.hanging:
            self.tell(Event("failed", "something that the server computes does not end: it is left behind"))
        self._closing = None  # nothing is left that could be forgotten

    def _drain(self, seconds: float) -> None:
        """Waits until every request is answered, at most so long."""
        with self._lock:
            self._idle.wait_for(lambda: not any(p.unanswered for p in self._peers), max(0.0, seconds))

    # --- connections --------------------------------------------------------------------------------------------

    def take(self, connection: TcpConnection) -> None:
        """Hears who it is that has connected. It is refused at once if there would be no room for it anyway."""
        arrival = Arrival(self, connection)
        with self._lock:
            full, out = self._full(arrival), None
            if not full:
                out = self._room.enter(arrival.address, arrival)
                self._arrivals.add(arrival)
        if full:
            self._turn_away(connection, full)
            return
        if out is not None:
            out.send_away(_CROWDED)
            self.refusals(f"{out.name} turned away: {_CROWDED}")
        self._begin(arrival)

    def _full(self, arrival: Arrival) -> str:
        """Why there is no room for `arrival` among those who are let in; the lock is held."""
        limits = self.limits
        if self.draining:
            return _ENDING
        if len(self._peers) >= limits.connections:
            return f"the server has {limits.connections} connections already: try again later"
        if self._origins.full(arrival.address):
            many = counted(limits.client_connections, "connection")
            return f"{many} from this address already: close one, or serve with more --client-connections"
        return ""

    def _begin(self, arrival: Arrival) -> None:
        try:
            arrival.thread.start()
        except RuntimeError:  # the system has no more threads for us: whoever is here is served on
            self.gone(arrival)
            self._turn_away(arrival.connection, "the server has no thread left for another connection: try again later")

    def let_in(self, arrival: Arrival) -> Peer:
        """Makes `arrival`, whose thread calls this, one of those who are served.

        BusyError if there is no room, Ended if it has been turned away meanwhile.
        """
        with self._lock:
            if not self._room.leave(arrival.address, arrival):
                raise Ended(_CROWDED)
            if full := self._full(arrival):
                raise BusyError(full, 1.0)
            origin = self._origins.enter(arrival.name)
            assert origin is not None
            peer = Peer(self, arrival.connection, origin)
            self._peers.add(peer)
            self._arrivals.discard(arrival)
            return peer

    def gone(self, arrival: Arrival) -> None:
        """`arrival` was not let in, and its connection has ended."""
        with self._lock:
            self._room.leave(arrival.address, arrival)
            self._arrivals.discard(arrival)

    # --- accounts -----------------------------------------------------------------------------------------------

    def identify(self, peer: Peer, identity: str) -> None:
        """`peer` has shown the certificate `identity`, and has an account of its own for it."""
        with self.accounts:
            peer.account(self._origins.identify(peer.home, identity))

    def may_compile(self, origin: Origin) -> float:
        """0.0, if one more tail may be compiled for `origin` (it is counted); else in how many seconds that will be."""
        with self.accounts:
            return origin.compiles.take(1.0, monotonic())

    def may_build(self, origin: Origin) -> float:
        """0.0, if there is time left for making tails for `origin`; else in how many seconds there will be."""
        with self.accounts:
            return origin.building.take(0.0, monotonic())

    def charge_build(self, origin: Origin, seconds: float) -> None:
        """So much time was spent on making a tail for `origin`."""
        with self.accounts:
            origin.building.spend(seconds)

    def may_open(self, origin: Origin, tail: Tail) -> bool:
        """Whether `origin` may have one more segment of `tail` open, which is counted until `has_closed`."""
        with self.accounts:
            return origin.opens(tail, tail.graph_nbytes)

    def has_closed(self, origin: Origin, tail: Tail) -> None:
        """A segment of `tail` is open no longer, and nothing is held for it."""
        with self.accounts:
            origin.closes(tail, tail.graph_nbytes)

    def charge(self, origin: Origin, seconds: float) -> float:
        """So much was spent on what is no request of `origin`. Returns in how many seconds it may have more."""
        with self.accounts:
            origin.talking.spend(seconds)
            return origin.talking.take(0.0, monotonic())

    def may_probe(self, origin: Origin, nbytes: int) -> float:
        """0.0, if `origin` may be sent so much to measure its link (it is counted); else in how many seconds."""
        with self._lock:
            return origin.probes.take(nbytes, monotonic())

    def _turn_away(self, connection: TcpConnection, text: str) -> None:
        with suppress(ServerError):
            connection.send(wire.encode(Kind.ERROR, 0, wire.Error("busy", text, 1.0)), wait=False)
        # Not closed at once: its HELLO may be on the way, and a reset could overtake what was just said.
        self._turned_away.append(connection)
        if len(self._turned_away) > _TURNED_AWAY:
            self._turned_away.popleft().close()
        self.refusals(f"{connection.peer} turned away: {text}")

    def left(self, peer: Peer) -> None:
        """The connection of `peer` has ended."""
        now_s = monotonic()
        with self._lock:
            self._peers.discard(peer)
            self._origins.leave(peer.home)
            if peer.origin is not peer.home:
                self._origins.leave(peer.origin)
            self._idle.notify_all()
            tidy = now_s >= self._tidied_s + _TIDY_S
            if tidy:
                self._tidied_s = now_s
        if tidy:  # what its thread has freed stays with the C library, which keeps it for every thread apart
            give_back()

    # --- memory of requests that have been received and not answered --------------------------------------------

    def reserve(self, peer: Peer, nbytes: int) -> bool:
        """Takes `nbytes` of the room for requests, if they are there: `peer` sends one.

        An address that has some already may have as much as is left: none gets all of it, or leaves nothing to others.
        """
        with self._lock:
            left = self.limits.memory_bytes - self._received
            held = peer.origin.held_nbytes
            if self._received and (
                nbytes > left or (held and not within(held + nbytes - 1, left, not peer.held_nbytes))
            ):
                return False
            self._received += nbytes
            peer.held_nbytes += nbytes
            peer.origin.held_nbytes += nbytes
            peer.unanswered += 1
            return True

    def free(self, peer: Peer, nbytes: int) -> None:
        """Gives them back: the answer to a request of `peer` is on its way."""
        with self._lock:
            self._received -= nbytes
            peer.held_nbytes -= nbytes
            peer.origin.held_nbytes -= nbytes
            peer.unanswered -= 1
            peer.answers += 1
            self._answered += nbytes > 0  # not profiles: they hold no room
            if self.draining:
                self._idle.notify_all()

    # --- models -------------------------------------------------------------------------------------------------

    def model(self, fingerprint: str) -> Model:
        """The model with this fingerprint; ModelError says which ones there are."""
        found = self.models.get(fingerprint)
        if found is None:
            known = listed(f"{m.name} {m.fingerprint[:12]}" for m in self.models.values())
            near = nearest(fingerprint, {m.name: None for m in self.models.values()})
            raise ModelError(f"the server has no model {wire.plain(fingerprint, 64)}; it has {known}{near}")
        return found

    def infos(self) -> tuple[wire.ModelInfo, ...]:
        """What WELCOME says about each model, in the order given: once for each of its names."""
        return tuple(self._infos.values())

        return True


class _Changed:
    """Tells once of each file that is no longer what it was."""

    def __init__(self, tell: OnEvent) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._told: set[Path] = set()

    def tell(self, model: str, exc: ChangedError) -> None:
        with self._lock:
            if exc.path in self._told:
                return
            self._told.add(exc.path)
        self._tell(
            Event(
                "failed",
                f"{exc}. Until then nothing new is made of {model}'s weights in it; what is compiled is served on",
            )
        )


class _Watched:
    """The weights of `model` as this server hands them out and compiles them: none that is no longer the one in its
    fingerprint. A client gets a RefusedError then, since asking again is of no use."""

    def __init__(self, model: Model, changed: _Changed) -> None:
        self._weights, self._name, self._changed = model.weights, model.name, changed

    def open(self, hash: str) -> memoryview:
        try:
            return self._weights.open(hash)
        except ChangedError as exc:
            self._changed.tell(self._name, exc)
            raise RefusedError(
                f"{exc.path.name}, the server's file of {self._name}, has changed while it was served: "
                "start that server again"
            ) from exc


def _accept(listener: TcpListener, server: ReferenceType[Server]) -> bool:
    """Hands the next connection to the server; False once that is closed or was forgotten."""
    connection = listener.accept()
    found = server()
    if connection is None:
        return False
    if found is None:
        connection.close()
        return False
    found.take(connection)
    return True


def _tell(server: ReferenceType[Server], event: Event) -> None:
    if (found := server()) is not None:
        found.tell(event)


def _starved(server: ReferenceType[Server], why: str) -> None:
    _tell(server, Event("warning", f"others wait to be connected: {why}"))


def _answered(server: ReferenceType[Server]) -> int:
    found = server()
    return found._answered if found is not None else 0
