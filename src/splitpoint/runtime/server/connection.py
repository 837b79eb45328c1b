"""One connected client as the server sees it: a thread that receives, and what it does with each frame."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from time import monotonic, perf_counter, sleep, thread_time
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from splitpoint import wire
from splitpoint.codecs import Codec, open_codec
from splitpoint.engines import Session
from splitpoint.engines.apart import DiedError
from splitpoint.errors import (
    BusyError,
    EngineError,
    InputError,
    ModelError,
    ProtocolError,
    RefusedError,
    ServerError,
    SplitpointError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event, software
from splitpoint.runtime.probe.link_probe import MOST_NBYTES, noise
from splitpoint.runtime.server.admission import last_word
from splitpoint.runtime.server.batching import Gain
from splitpoint.runtime.server.compiled_tails import Tail
from splitpoint.runtime.server.fair_queue import Job, Waits
from splitpoint.runtime.server.quotas import OWN_TALK_S, OWN_TALK_SHARE, Origin
from splitpoint.runtime.server.run_limits import Like
from splitpoint.tensors import Array, TensorSpec
from splitpoint.transports.budget import Budget
from splitpoint.transports.tcp import TcpConnection
from splitpoint.units import counted, size
from splitpoint.wire import Frame, Kind, Limits

if TYPE_CHECKING:
    from splitpoint.runtime.server.server import Server

_INFER = int(Kind.INFER)
#: The most characters of a reason in an event: a peer can have words in it.
_WHY = 1000

#: Weights that one address may ask for in turns, a piece of each, without having them read anew.
_GIVING = 4
#: Tails that one connection may wait for.
_MOST_OPENING = 16
#: What a frame that is no request costs before anything is done with it (seconds of the processor), and a byte of its
#: header: what has been read and decoded when its kind is known.
_FRAME_S, _BYTE_S = 50e-6, 5e-9
#: A request whose header is larger than any of our own pays for it too.
_PLAIN_HEADER = 4096
#: The longest that a connection is not read from because it was told BUSY; pings wait as long.
_REFUSED_S = 0.25
#: The longest that a connection is not read from because its address has talked too much.
_PAUSE_S = 10.0
#: When to ask again while answers to earlier requests wait to be read.
_UNREAD_S = 0.1
#: When to ask again a server that is ending: its BYE is on the way, and the next one comes after it.
_ENDING_S = 0.1
#: Profiles that one address may wait for at once.
_MOST_PROFILES = 8

#: Shapes of one open segment of which it is remembered what they take.
_MOST_LIKES = 64


class _Checked(NamedTuple):
    """A header that fits its segment: how each tensor is decoded (empty: all are raw), and the memory that takes.

    `gain` is what it has in common with requests that can run as one batch with it, `like` with those of its shapes.
    """

    header: wire.Infer | None
    decoders: Sequence[tuple[Codec, TensorSpec] | None] = ()
    decoded_nbytes: int = 0
    gain: Gain | None = None
    like: Like | None = None


class _Opened:
    """A segment that a connection has opened: what INFER needs, looked up once."""

    def __init__(self, tail: Tail, vectors: Sequence[str], limits: Limits, owner: str) -> None:
        segment = tail.segment
        wanted = set(vectors)
        self.tail = tail
        self.specs = [t for t in segment.inputs if t.name not in wanted]
        self.vectors = [t for t in segment.inputs if t.name in wanted]
        self.inputs = [t.name for t in self.specs]
        self.outputs = [t.name for t in segment.outputs]
        self.packer = wire.Packer(Kind.RESULT, wire.Result)
        self.checked = _Checked(None)
        self._limits, self._owner = limits, owner
        self._likes: dict[object, Like] = {}

    def check(self, header: wire.Infer) -> int:
        """Bytes that decoding the tensors will take. InputError unless they are what the segment needs: known before
        a byte of them is received."""
        if header is self.checked.header:  # a connection decodes a repeated header once
            return self.checked.decoded_nbytes
        if len(header.tensors) != len(self.specs) or len(header.vectors) != len(self.vectors):
            raise InputError(
                f"this segment needs {len(self.specs)} tensors and {len(self.vectors)} shape vectors, "
                f"but {len(header.tensors)} and {len(header.vectors)} came"
            )
        for spec, got in zip(self.specs, header.tensors, strict=True):
            if not spec.fits(got.dtype, got.shape):
                came = f"{got.dtype}[{','.join(map(str, got.shape))}]"
                raise InputError(f"tensor {spec.name} must be {spec.type}, but {came} came")
        for spec, vector in zip(self.vectors, header.vectors, strict=True):
            _check_vector(spec, vector, self._limits)
        self.checked = self._decoding(header)
        return self.checked.decoded_nbytes

    def like(self, header: wire.Infer) -> Like:
        """What runs with such tensors have in common. InputError if one would take too much memory."""
        if header is self.checked.header and self.checked.like is not None:
            return self.checked.like
        sizes = {t.name: got.shape for t, got in zip(self.specs, header.tensors, strict=True)}
        sizes |= {t.name: (len(v),)[: len(t.shape)] for t, v in zip(self.vectors, header.vectors, strict=True)}
        shapes = tuple(sizes[t.name] for t in self.tail.segment.inputs)
        found = self._likes.get(shapes)
        if found is None:
            found = self._like(shapes)
            if len(self._likes) >= _MOST_LIKES:
                del self._likes[next(iter(self._likes))]
            self._likes[shapes] = found
        return found

    def _like(self, shapes: Sequence[Sequence[int]]) -> Like:
        work = self.tail.work
        if work is None:
            return Like(0.0)
        nbytes, most = work.peak(shapes), max(work.least, self._limits.work_bytes)
        if nbytes > most:
            rows = "×".join(map(str, work.sizes(shapes)))
            raise InputError(
                f"a batch of {rows} rows would take about {size(nbytes)} here; the limit is {size(most)}: "
                "send fewer rows at a time, or serve with more --max-work"
            )
        return Like(nbytes, batches=work.peak(shapes, self.tail.most) <= most)

    def _decoding(self, header: wire.Infer) -> _Checked:
        """How the tensors of `header`, which fit otherwise, are decoded. InputError for what no codec here does."""
        gain, like = None, self.like(header)
        if not header.vectors and like.batches:
            shapes = [t.shape for t in header.tensors]
            gain = self.tail.gain([t.dtype for t in header.tensors], shapes, self._owner)
        if not any(t.codec for t in header.tensors):
            return _Checked(header, gain=gain, like=like)
        decoders = [
            _decoder(name, tensor) if tensor.codec else None
            for name, tensor in zip(self.inputs, header.tensors, strict=True)
        ]
        return _Checked(header, decoders, sum(d[1].nbytes for d in decoders if d is not None), gain, like)

    def decode(self, header: wire.Infer, tensors: Sequence[Array]) -> Sequence[Array]:
        """The tensors as they were before they were encoded. InputError for bytes that are not what they should be."""
        checked = self.checked
        if checked.header is not header:  # while this one waited, another was received
            checked = self._decoding(header)
        if not checked.decoders:
            return tensors
        return [
            array if decoder is None else _decoded(array, *decoder)
            for array, decoder in zip(tensors, checked.decoders, strict=True)
        ]

    def feed(self, header: wire.Infer, tensors: Sequence[Array]) -> dict[str, Array]:
        """What the session is run with: the tensors, decoded, and the shape vectors, by name."""
        known = dict(zip(self.inputs, tensors, strict=True))
        if not self.vectors:
            return known
        for spec, vector in zip(self.vectors, header.vectors, strict=True):
            known[spec.name] = np.array(vector, np.int64).reshape(-1 if spec.shape else ())
        return known


def _decoder(name: str, tensor: wire.Tensor) -> tuple[Codec, TensorSpec]:
    """The codec that `tensor` came with and what it decodes to. InputError if it cannot: nothing is allocated yet."""
    # Only names that we told the peer, with their parameters: no stranger chooses what is looked up here.
    known = len(tensor.codec) <= 40 and wire.codec_feature(tensor.codec) in wire.features()
    try:
        codec = open_codec(tensor.codec) if known else None
    except UsageError:
        codec = None
    if codec is None:
        text = wire.plain(tensor.codec, 40)
        raise InputError(f"tensor {name} came with the codec {text}, which is not known here")
    spec = TensorSpec(name, tensor.dtype, tensor.shape)
    if not codec.accepts(spec):
        raise InputError(f"tensor {name} came with the codec {codec.name}, which does not take {spec.type}")
    most = codec.most(spec)
    if tensor.nbytes > most:
        raise InputError(
            f"tensor {name} came as {tensor.nbytes} bytes of {codec.name}: {spec.type} takes at most {most}"
        )
    return codec, spec


def _decoded(data: Array, codec: Codec, spec: TensorSpec) -> Array:
    array = codec.decode(data, spec)
    # The engine must never see anything but what the segment takes, whatever a codec made of a stranger's bytes.
    if array.dtype.name != spec.dtype or array.shape != spec.shape:
        raise EngineError(f"codec {codec.name} decoded tensor {spec.name} to something else than {spec.type}")
    return array


def _check_vector(spec: TensorSpec, vector: Sequence[int], limits: Limits) -> None:
    length = spec.shape[0] if spec.shape else 1
    if len(vector) > 32 or (isinstance(length, int) and len(vector) != length):
        raise InputError(f"shape vector {spec.name} must have {length} numbers, but {len(vector)} came")
    # A shape sizes what the tail allocates, of elements of up to 8 bytes: one that no frame could carry is refused.
    if prod(max(1, abs(n)) for n in vector) * 8 > limits.tensor_bytes:
        raise InputError(f"shape vector {spec.name} asks for a tensor over the limit of {size(limits.tensor_bytes)}")


class Request(NamedTuple):
    """An INFER that waits for its turn."""

    peer: Peer
    frame: Frame
    header: wire.Infer
    opened: _Opened
    session: Session | None = None
    """The tail's, if it was built anew for this request, which then runs by itself."""

    def feed(self, now_s: float) -> Mapping[str, Array] | None:
        """What its session is run with. None if its deadline has passed, its bytes are wrong, or answers wait to be
        read: run by itself it is told so."""
        deadline_s = self.header.deadline_s
        if (deadline_s and now_s - self.frame.received > deadline_s) or self.peer.connection.behind:
            return None
        try:
            return self.opened.feed(self.header, self.opened.decode(self.header, self.frame.tensors))
        except Exception:  # codecs meet foreign bytes
            return None


class Peer:
    """One connected client and the thread that receives from it."""

    def __init__(self, server: Server, connection: TcpConnection, origin: Origin) -> None:
        self.server = server
        self.connection = connection
        self.name = connection.peer
        #: Where its connection is counted, and its account, which it shares with the others of its address.
        self.home = origin
        self.account(origin)
        self.in_flight: set[int] = set()
        self._waits, self._own = Waits(), Budget(OWN_TALK_S, OWN_TALK_SHARE)
        self.unanswered = 0  # these two are kept by the server, under its lock
        self.held_nbytes = 0
        self.answers = 0
        self.bytes_in = 0
        self._opened: dict[int, _Opened] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._opening = 0
        self._receiving: Frame | None = None
        self._ended = False
        self._handlers: Mapping[int, Callable[[Frame], None]] = {
            Kind.PING: self._ping,
            Kind.PROBE: self._probe,
            Kind.OPEN: self._open,
            Kind.CLOSE: self._close_segment,
            Kind.GRAPH: self._graph,
            Kind.BLOB: self._blob,
            Kind.PROFILE: self._profile,
        }
        self.thread = threading.current_thread()  # the one that greeted it

    def account(self, origin: Origin) -> None:
        """What it takes of the server is counted to `origin` from now on."""
        self.origin, self.client = origin, origin.requests
        self.connection.backlog = origin.backlog

    # --- the conversation ---------------------------------------------------------------------------------------

    def serve(self, hello: Frame) -> None:
        """Answers HELLO and whatever comes then, until the connection ends."""
        why = ""
        began = perf_counter()
        try:
            self._welcome(hello)
            self._converse()
        except Exception as exc:
            packet, why = last_word(exc)
            if packet is not None:
                self._send(packet)
        finally:
            self._leave(why, perf_counter() - began)

    def _welcome(self, hello: Frame) -> None:
        header, limits = hello.header, self.server.limits
        assert isinstance(header, wire.Hello)
        names = {f.name for f in dataclasses.fields(limits) if f.type == "int"}
        told = {name: getattr(limits, name) for name in sorted(names)}
        asked = set(header.features)
        if wire.CRC32 in asked:
            self.connection.checks = self.connection.seals = True
        welcome = wire.Welcome(
            software=software(),
            features=tuple(f for f in (*wire.features(), wire.CRC32) if f in asked),
            models=self.server.infos(),
            share=self.server.sharing.kind,
            limits=told,
            heads=self.server.sharing.heads,
        )
        if identity := self.connection.identity:
            self.server.identify(self, identity)
        self._send(wire.encode(Kind.WELCOME, hello.id, welcome))
        who = header.software or "a client"
        if identity:
            who = f"{who}, with the certificate of {wire.plain(identity, 80)}"
        self.server.tell(Event("connected", f"{self.name} connected ({who})"))

    def _converse(self) -> None:
        limits = self.server.limits
        receive, admit = self.connection.receive, self._admit
        idle = limits.idle_s or None
        while True:
            try:
                frame = receive(timeout_s=idle, admit=admit)
            except TimeoutError:
                if self.unanswered:
                    continue
                self.say_bye(f"nothing was asked for {limits.idle_s:g} s")
                return
            self._receiving = None
            self.bytes_in += frame.nbytes
            if frame.refused is None and frame.kind == _INFER:
                self._infer(frame)
                if frame.header_nbytes > _PLAIN_HEADER:
                    self._pay(frame.header_nbytes * _BYTE_S)
            elif frame.kind == Kind.BYE:
                return
            else:
                began_s = thread_time()
                self._answer(frame)
                self._pay(_FRAME_S + frame.header_nbytes * _BYTE_S + thread_time() - began_s)
            # Before the next one's memory is allocated: so that it is the same, and still in the processor's cache.
            del frame

    def _answer(self, frame: Frame) -> None:
        """Does what a frame asks for that is no request, or is refused."""
        if frame.refused is not None:
            self._refuse(frame)
        elif (handler := self._handlers.get(frame.kind)) is not None:
            try:
                handler(frame)
            except ProtocolError:
                raise
            except SplitpointError as exc:
                self._send_error(frame.id, exc)
        elif frame.header is not None:
            raise ProtocolError(f"a client does not send {wire.describe(frame.kind)}")
        else:
            self._send_error(frame.id, ServerError(f"{wire.describe(frame.kind)} is not known here"))

    def _pay(self, seconds: float) -> None:
        """Counts `seconds` of the processor to the account. Who has overdrawn it is not read from for a while, unless
        it was the others of the address."""
        pause_s = self.server.charge(self.origin, seconds)
        self._own.spend(seconds)
        if pause_s and self._own.take(0.0, monotonic()):
            self.server.pause(min(pause_s, _PAUSE_S))

    def _admit(self, frame: Frame) -> SplitpointError | None:
        """`_judge`, one of an address at a time: the others sleep meanwhile, and do not ask for the interpreter.

        Else a hundred connections that all have something to say are a hundred threads before everybody else's.
        """
        with self.origin.turn:
            return self._judge(frame)

    def _judge(self, frame: Frame) -> SplitpointError | None:
        """Whether a request's body is worth receiving; a peer that has lost track of its ids is hung up on."""
        header = frame.header
        if type(header) is not wire.Infer:
            return self._admit_probe(frame) if type(header) is wire.Probe else None
        if not frame.id:
            raise ProtocolError("a request cannot have the id 0, which stands for the connection")
        if frame.id in self.in_flight:
            raise ProtocolError(f"request {frame.id} is in flight already: ids must differ")
        server = self.server
        opened = self._opened.get(header.segment)
        try:
            if opened is None:
                raise InputError(f"segment {header.segment} is not open on this connection")
            held = frame.nbytes + opened.check(header)
        except InputError as exc:
            # Without its traceback: that knows this frame, which will know the exception, and since the garbage
            # collector does not see frames (`gc=False`), neither would ever leave memory.
            return exc.with_traceback(None)
        if server.draining:
            # BUSY, not an error of the request: whoever waits for the server waits for the one that comes after it.
            return BusyError("the server is ending: it takes no more requests", _ENDING_S)
        if len(self.in_flight) >= server.limits.in_flight:
            text = f"{server.limits.in_flight} requests of this connection are in flight already"
            return BusyError(text, server.compute.retry_after_s(self.client))
        if not server.compute.room(self.client, self) or not server.reserve(self, held):
            return BusyError(self._no_room(), server.compute.retry_after_s(self.client))
        frame.held = held
        self.in_flight.add(frame.id)
        self._receiving = frame
        return None

    def _no_room(self) -> str:
        own = self.client.waiting[self]
        return f"the server has no room for more requests{f', {own} of yours wait' if own else ''}"

    def _admit_probe(self, frame: Frame) -> SplitpointError | None:
        most = min(self.server.limits.blob_chunk, MOST_NBYTES)
        if frame.nbytes > most:
            return InputError(f"a PROBE of {frame.nbytes} bytes is over the limit, {most}")
        return None

    def _refuse(self, frame: Frame) -> None:
        if isinstance(frame.refused, BusyError):
            retry_s = frame.refused.retry_after_s
            self._send_busy(frame.id, retry_s, str(frame.refused))
            # It will not ask again before that. Whoever does waits for it here: refusing must cost less than asking.
            sleep(min(retry_s, _REFUSED_S))
        elif frame.refused is not None:
            self._send_error(frame.id, frame.refused)

    # --- requests -----------------------------------------------------------------------------------------------

    def _infer(self, frame: Frame) -> None:
        header: wire.Infer = frame.header  # type: ignore[assignment]  # the kind says so, and each check costs
        opened = self._opened[header.segment]
        compute, gain = self.server.compute, opened.checked.gain
        # One that others may join is not run at once where a wait for them is allowed.
        at_once = not frame.flags & wire.PIPELINED and (gain is None or not compute.max_wait_s)
        if at_once and opened.tail.session is not None and compute.begin(self.client):
            started = perf_counter()
            try:
                self._run(frame, header, opened, None, 0.0)
            finally:
                compute.end(self.client, perf_counter() - started)
            return
        if opened.tail.session is None:  # it has left memory: nobody who waits for a worker waits for it to be built
            self._rebuild_later(frame, header, opened)
            return
        request = Request(self, frame, header, opened)
        run = partial(self._run, frame, header, opened, gain)
        if not compute.submit(Job(self.client, run, gain, request, self)):
            self._too_many(frame)
        elif crowded_s := compute.crowded_s(self.client):
            # Read no faster than it is computed: else its threads would be before everybody else's all the time.
            sleep(min(crowded_s, _REFUSED_S))

    def _too_many(self, frame: Frame) -> None:
        """A request that was received, and for which there is no place after all."""
        self._done(frame)
        self._send_busy(frame.id, self.server.compute.retry_after_s(self.client), self._no_room())

    def _rebuild_later(self, frame: Frame, header: wire.Infer, opened: _Opened) -> None:
        """Has the tail compiled for this request, in turns with all others that are."""
        builders, builds = self.server.builders, self.origin.builds
        request = Request(self, frame, header, opened)
        if not builders.submit(Job(builds, partial(self._rebuild, request), None, request, self)):
            self._done(frame)
            self._send_busy(frame.id, builders.retry_after_s(builds), "the tail left memory, and many wait for theirs")

    def _rebuild(self, request: Request, waited: float) -> None:
        """Compiles the tail of `request`, which then waits for a worker, and keeps it in memory until it has run."""
        _, frame, header, opened, _ = request
        tails, tail, began_s = self.server.tails, opened.tail, thread_time()
        try:
            self._may_plan()
            self._may_compile(tail)
            session = tails.build(tail, self.origin)
        except SplitpointError as exc:
            self._done(frame)
            if isinstance(exc, BusyError):
                self._send_busy(frame.id, exc.retry_after_s, str(exc))
            else:
                self._send_error(frame.id, exc)
            return
        except Exception as exc:  # engines are foreign code
            self._done(frame)
            self.server.tell(Event("failed", f"a tail for {self.name} cannot be built: {wire.plain(repr(exc), _WHY)}"))
            self._send_error(frame.id, EngineError("the tail cannot be built; the server's log says more"))
            return
        finally:
            self.server.charge_build(self.origin, thread_time() - began_s)
        run = partial(self._run, frame, header, opened, None, session=session)
        if not self.server.compute.submit(Job(self.client, run, None, request._replace(session=session), self)):
            tails.release(tail)
            self._too_many(frame)
        elif self._ended:  # it left meanwhile
            self._drop_requests()

    def _may_plan(self) -> None:
        """BusyError if the time for making tails of this address is used up."""
        if wait_s := self.server.may_build(self.origin):
            raise BusyError("too much time went into tails for this address: wait, or keep them open", wait_s)

    def _may_compile(self, tail: Tail) -> None:
        """Counts `tail`, if it has to be compiled. BusyError if that is one too many for this address."""
        if not self.server.tails.ready(tail) and (wait_s := self.server.may_compile(self.origin)):
            most = self.server.limits.client_compiles
            raise BusyError(f"{most} tails a minute are compiled for one address: wait, or keep them open", wait_s)

    def _run(
        self,
        frame: Frame,
        header: wire.Infer,
        opened: _Opened,
        gain: Gain | None,
        waited: float,
        session: Session | None = None,
    ) -> None:
        """Computes and answers; whatever goes wrong becomes an ERROR of this request alone.

        `gain` is told how long it took: only of those that waited, as a batch does, and not of a thread just awake.
        `session` is that of the tail, if it is in use already for this request.
        """
        tails, tail = self.server.tails, opened.tail
        again = False
        try:
            try:
                started = perf_counter()
                late_s = started - frame.received - header.deadline_s
                if header.deadline_s and late_s > 0:
                    raise ServerError(f"the deadline passed {late_s:.3f} s before its turn")
                if session is not None:  # all until now was a wait for it
                    waited = started - frame.received
                if self.connection.behind:
                    raise BusyError("answers are not read: read them first", _UNREAD_S)
                session = session or tails.acquire(tail)
                if session is None:
                    again = True
                    self._rebuild_later(frame, header, opened)
                    return
                packet = self._compute(session, frame, header, opened, gain, started, waited)
            except BusyError as exc:
                packet = wire.encode(Kind.BUSY, frame.id, wire.Busy(exc.retry_after_s, str(exc)))
            except SplitpointError as exc:
                packet = wire.encode(Kind.ERROR, frame.id, wire.error_of(exc))
            except Exception as exc:  # engines are foreign code
                self.server.tell(
                    Event("failed", f"request {frame.id} of {self.name} failed: {wire.plain(repr(exc), _WHY)}")
                )
                hidden = EngineError("the engine failed; the server's log says more")
                packet = wire.encode(Kind.ERROR, frame.id, wire.error_of(hidden))
            # The peer may use the id again as soon as it has the answer; all else can wait until that is on its way.
            self.in_flight.discard(frame.id)
            self._send(packet)
        except Exception as exc:
            self._give_up(frame.id, exc)
        finally:
            if session is not None:
                tails.release(tail)
            if not again:
                self.server.free(self, frame.held)

    def _give_up(self, id: int, exc: Exception) -> None:
        """Not even an ERROR could be made (no memory, a bug): the connection ends, so that nobody waits for ever."""
        self.connection.abort()
        self.server.tell(Event("failed", f"request {id} of {self.name} has no answer: {wire.plain(repr(exc), _WHY)}"))

    def _compute(
        self,
        session: Session,
        frame: Frame,
        header: wire.Infer,
        opened: _Opened,
        gain: Gain | None,
        started: float,
        waited: float,
    ) -> wire.Packet:
        ready = decoded = perf_counter()
        tensors = opened.decode(header, frame.tensors)
        if tensors is not frame.tensors:
            decoded = perf_counter()
        made = self._made(session, opened, header, tensors)
        computed = perf_counter()
        if gain is not None:
            gain.add(1, computed - decoded)
        return self._result(frame, opened, made, waited, (started, ready, decoded, computed))

    def _made(
        self, session: Session, opened: _Opened, header: wire.Infer, tensors: Sequence[Array]
    ) -> Mapping[str, Array]:
        server, feed, like = self.server, opened.feed(header, tensors), opened.like(header)
        if not opened.tail.apart:
            return server.watch.run(session, feed, like, self.name)
        address = self.origin.name
        with server.turns.turn(address, opened.tail.segment.key):
            try:
                return server.watch.run(session, feed, like, self.name, apart=True)
            except DiedError:
                server.turns.ban(address)
                raise

    def answer(
        self, request: Request, made: Mapping[str, Array], waited: float, clock: tuple[float, float, float, float]
    ) -> None:
        """Sends what was computed for `request`, together with others."""
        frame = request.frame
        try:
            packet = self._result(frame, request.opened, made, waited, clock)
            self.in_flight.discard(frame.id)
            self._send(packet)
        except Exception as exc:
            self._give_up(frame.id, exc)
        finally:
            self.server.free(self, frame.held)

    def _result(
        self,
        frame: Frame,
        opened: _Opened,
        made: Mapping[str, Array],
        waited: float,
        clock: tuple[float, float, float, float],
    ) -> wire.Packet:
        """The RESULT; `clock` is when its turn came, when its session was there, it was decoded, and computed."""
        started, ready, decoded, computed = clock
        outputs = [made[name] for name in opened.outputs]
        received = frame.received
        before_s = started - received - waited
        if waited or self._waits.queue_s:
            self._waits.add(started, waited)
        times = (
            received,
            received - frame.started,
            (before_s if before_s > 0 else 0.0) + decoded - ready,
            ready - started + waited,
            computed - decoded,
            perf_counter() - computed,
            self._waits.queue_s,
            self.server.compute.utilisation,
        )
        return opened.packer.pack(frame.id, outputs, (), times)

    def _done(self, frame: Frame) -> None:
        """A request that is not run after all: its id and its room are free again."""
        self.in_flight.discard(frame.id)
        self.server.free(self, frame.held)

    def _ping(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Ping)
        pong = wire.Pong(frame.header.clock_s, frame.started, perf_counter())
        self._send(wire.encode(Kind.PONG, frame.id, pong))

    def _probe(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Probe)
        nbytes, most = frame.header.reply_nbytes, min(self.server.limits.blob_chunk, MOST_NBYTES)
        if nbytes > most:
            raise InputError(f"a PROBE that asks for {nbytes} bytes is over the limit, {most}")
        if nbytes and (wait_s := self.server.may_probe(self.origin, nbytes)):
            raise BusyError("links of this address are measured too often", wait_s)
        probed = wire.Probed(frame.started, frame.received, perf_counter())
        body = (noise(nbytes),) if nbytes else ()
        # Waits, like a blob: who asks for more than it reads is not read from.
        self._send(wire.encode(Kind.PROBED, frame.id, probed, body, nbytes), wait=True)

    def _open(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.OpenRequest)
        server, builds = self.server, self.origin.builds
        model = server.model(request.fingerprint)
        named = (*request.inputs, *request.vectors, *request.outputs)
        if len(named) > 2 * len(model.specs):
            raise ModelError(f"{model.name} has {len(model.specs)} tensors: a segment between {len(named)} is none")
        model.check_names(named)
        if len(self._opened) + self._opening >= server.limits.segments or self._opening >= _MOST_OPENING:
            raise BusyError("too many segments are open on this connection: close some", 0.1)
        if server.draining:
            raise ServerError("the server is ending")
        job = Job(builds, partial(self._open_slowly, frame.id, model, request), line=self)
        with self._lock:
            self._opening += 1
        if not server.builders.submit(job):
            self._opened_one()
            retry_s = server.builders.retry_after_s(builds)
            raise BusyError("the server has no room for more tails to compile: try again later", retry_s)

    def _opened_one(self) -> None:
        """An OPEN has been done, or will not be."""
        with self._lock:
            self._opening -= 1

    def _open_slowly(self, id: int, model: Model, request: wire.OpenRequest, waited: float) -> None:
        began_s = thread_time()
        try:
            self._open_or_say_why(id, model, request)
        except Exception as exc:
            self._give_up(id, exc)
        finally:
            self.server.charge_build(self.origin, thread_time() - began_s)
            self._opened_one()
            if self._ended:  # it left meanwhile
                self._leave_tails()

    def _open_or_say_why(self, id: int, model: Model, request: wire.OpenRequest) -> None:
        try:
            opened = self._build(model, request)
            number = next(self._numbers)
            self._opened[number] = opened
            tail = opened.tail
            reply = wire.Opened(
                number,
                tuple(map(wire.TensorInfo.of, (*opened.specs, *opened.vectors))),
                tuple(map(wire.TensorInfo.of, tail.segment.outputs)),
                tail.nbytes,
                tail.compile_s,
            )
            self._send(wire.encode(Kind.OPENED, id, reply))
        except SplitpointError as exc:
            self._send_error(id, exc)
        except Exception as exc:  # the knife and the engine meet whatever a client names
            self.server.tell(Event("failed", f"a tail for {self.name} cannot be built: {wire.plain(repr(exc), _WHY)}"))
            self._send_error(id, EngineError("the tail cannot be built; the server's log says more"))

    def _build(self, model: Model, request: wire.OpenRequest) -> _Opened:
        boundary = (*request.inputs, *request.vectors)
        self._may_plan()
        self.server.sharing.check_tail(model, request)
        segment = model.segment(boundary, request.outputs)
        if not segment.outputs:
            raise ModelError("a segment without outputs has nothing to compute")
        tails = self.server.tails
        tail = tails.tail(segment)
        if not self.server.may_open(self.origin, tail):
            tails.leave(tail)
            raise BusyError("too many segments are open for this address: close some", 0.1)
        try:
            self._may_compile(tail)
            tails.build(tail, self.origin)
            tails.release(tail)
        except BaseException:
            self._close_tail(tail)
            raise
        text = f"{self.name} opened {model.name} from {wire.plain(', '.join(boundary), 80)}"
        self.server.tell(Event("opened", f"{text} ({size(tail.nbytes)}, {tail.compile_s * 1e3:.0f} ms)"))
        return _Opened(tail, request.vectors, self.server.limits, self.origin.name)

    def _close_segment(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Close)
        opened = self._opened.pop(frame.header.segment, None)
        if opened is not None:
            self._close_tail(opened.tail, drop=True)

    def _close_tail(self, tail: Tail, *, drop: bool = False) -> None:
        self.server.tails.leave(tail, drop=drop)
        self.server.has_closed(self.origin, tail)

    def _profile(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.ProfileRequest)
        model = self.server.model(request.fingerprint)
        if self.server.sharing.kind == "none":
            raise RefusedError(
                "the server hands out no models, and a profile has the model's graph in it: make it on the server "
                "itself (splitpoint profile MODEL -o cloud.profile.json)"
            )

        def answer(made: bytes | SplitpointError) -> None:
            self._forget_profile()
            if isinstance(made, SplitpointError):
                self._send_error(frame.id, made)
            else:
                self._send(wire.encode(Kind.PROFILED, frame.id, wire.Profiled(model.fingerprint), (made,), len(made)))

        try:
            self._remember_profile()
            try:
                self.server.profiling.ask(model, request.budget_s, answer, self, self.origin, fresh=request.fresh)
            except SplitpointError:
                self._forget_profile()
                raise
        except BusyError as exc:
            self._send_busy(frame.id, exc.retry_after_s, str(exc))

    def _remember_profile(self) -> None:
        """One more is asked for. BusyError if there is no room: a stranger must not pile them up."""
        if not self.server.reserve(self, 0):
            raise BusyError(self._no_room(), self.server.compute.retry_after_s(self.client))
        with self.server.accounts:
            many = self.origin.profiles >= _MOST_PROFILES
            self.origin.profiles += not many
        if many:
            self.server.free(self, 0)
            raise BusyError(f"{_MOST_PROFILES} profiles are asked for by this address already", 1.0)

    def _forget_profile(self) -> None:
        with self.server.accounts:
            self.origin.profiles -= 1
        self.server.free(self, 0)

    # --- graphs and weights -------------------------------------------------------------------------------------

    def _graph(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.GraphRequest)
        model = self.server.model(frame.header.fingerprint)
        data, blobs = self.server.sharing.graph(model)
        reply = wire.GraphData(model.fingerprint, model.name, tuple(blobs.items()))
        self._send(wire.encode(Kind.GRAPH_DATA, frame.id, reply, (data,), len(data)))

    def _blob(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.BlobRequest)
        model = self.server.model(request.fingerprint)
        nbytes = self.server.sharing.nbytes_of(model, request.hash)
        if request.offset > nbytes:
            raise InputError(f"weight {request.hash[:12]}… has {nbytes} bytes: {request.offset} is past its end")
        length = min(request.length or nbytes, self.server.limits.blob_chunk)
        part = self._piece(model, request.hash, request.offset, length)
        reply = wire.BlobData(request.hash, request.offset, nbytes)
        self._send(
            wire.encode(Kind.BLOB_DATA, frame.id, reply, (part,) if part.nbytes else (), part.nbytes),
            wait=True,
        )

    def _piece(self, model: Model, hash: str, offset: int, length: int) -> memoryview:
        """That much of a weight. It is asked for piece by piece, and must not be read and hashed anew for each."""
        giving = self.origin.giving
        with self.origin.reading:
            blob = giving.pop(hash, None)
            if blob is None:
                blob = self.server.sharing.open(model, hash).cast("B")
            if offset + length < blob.nbytes:
                giving[hash] = blob
                if len(giving) > _GIVING:
                    del giving[next(iter(giving))]
        return blob[offset : offset + length]

    # --- sending ------------------------------------------------------------------------------------------------

    def _send(self, packet: wire.Packet, *, wait: bool = False) -> None:
        """Sends if the peer is still there; if not, its reader thread finds out."""
        try:  # noqa: SIM105 - on the way of every answer: `suppress` costs more than sending
            self.connection.send(packet, wait=wait)
        except (ServerError, RuntimeError, MemoryError):  # the last two: no thread for a slow reader; it has ended
            pass

    def _send_busy(self, id: int, retry_after_s: float, why: str) -> None:
        self._send(wire.encode(Kind.BUSY, id, wire.Busy(retry_after_s, why)))

    def _send_error(self, id: int, exc: SplitpointError) -> None:
        self._send(wire.encode(Kind.ERROR, id, wire.error_of(exc)))

    def say_bye(self, reason: str = "the server is ending") -> None:
        """Tells the client that no new requests are taken, and why."""
        self._send(wire.encode(Kind.BYE, 0, wire.Bye(reason)))

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self, linger_s: float) -> None:
        """Ends the connection, after at most `linger_s` to deliver what is queued."""
        self.connection.close(linger_s)

    def _leave(self, why: str, seconds: float) -> None:
        self.connection.close(1.0 if why else 0.2)
        self._ended = True
        if self._receiving is not None:
            self._done(self._receiving)  # its body never came
        self._drop_requests()
        for _ in range(self.server.profiling.forget(self)):
            self._forget_profile()
        self._leave_tails()
        self.server.left(self)
        if why:
            self.server.tell(Event("refused", f"{self.name} disconnected: {wire.plain(why, _WHY)}"))
        else:
            text = (
                f"{counted(self.answers, 'request')}, {size(self.bytes_in)} in, "
                f"{size(self.connection.sent_nbytes)} out, {seconds:.1f} s"
            )
            self.server.tell(Event("left", f"{self.name} left: {text}"))

    def _drop_requests(self) -> None:
        """Nobody reads the answers to those that have not begun, or opens what is still to be made."""
        compute, builders = self.server.compute, self.server.builders
        for job in (*compute.drop(self.client, self), *builders.drop(self.origin.builds, self)):
            if job.what is None:
                self._opened_one()
                continue
            request = cast(Request, job.what)
            if request.session is not None:
                self.server.tails.release(request.opened.tail)
            self._done(request.frame)

    def _leave_tails(self) -> None:
        while self._opened:
            try:
                _, opened = self._opened.popitem()
            except KeyError:  # another thread was faster
                return
            self._close_tail(opened.tail)
