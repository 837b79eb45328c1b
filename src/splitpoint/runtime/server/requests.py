"""OPEN, INFER and CLOSE on one connection: its tails by number, planned and compiled by the server's builders; requests
for them, looked at before their body is received, decoded, given to their tail, and answered."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from math import inf, prod
from time import perf_counter, sleep
from typing import NamedTuple

import msgspec
import numpy as np

from splitpoint import wire
from splitpoint.codecs import Codec, dims, needs_tables, open_codec
from splitpoint.codecs.klt import Klt
from splitpoint.codecs.klt_tables import KltTables, sent_with
from splitpoint.errors import (
    BusyError,
    EngineError,
    InputError,
    ModelError,
    ProtocolError,
    ServerError,
    SplitpointError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import OpenTail, RunMarks, TailRequest
from splitpoint.runtime.server.accounts import DROPPED, Account
from splitpoint.runtime.server.fair_queue import RecentWait, WaitingJob
from splitpoint.runtime.server.services import Replies, Services
from splitpoint.tensors import Array, TensorSpec
from splitpoint.units import size
from splitpoint.wire import Frame, Kind, Limits

_NONE: Mapping[int, Array] = {}
NO_TABLES: Mapping[str, KltTables] = {}
#: Tails that one connection may wait for.
_MOST_WAITING = 16
#: The longest that a connection is not read from because it was told BUSY; pings wait as long.
REFUSED_S = 0.25
#: When to ask again while answers to earlier requests wait to be read.
_UNREAD_S = 0.1
#: When to ask again a server that is ending: its BYE is on the way, and the next one comes after it.
_ENDING_S = 0.1


class _LateError(ServerError):
    """The deadline passed before its turn."""


class CheckedInfer(NamedTuple):
    """A header that fits its segment: how each tensor is decoded (empty: all are raw), the memory that takes, and what
    its runner says of such inputs."""

    header: wire.Infer
    decoders: Sequence[tuple[Codec, TensorSpec] | None] = ()
    decoded_nbytes: int = 0
    kind: object = None


class OpenedTail:
    """A segment that a connection has opened, and what INFER for it needs, looked up once.

    `batch`: whether its RESULTs say which requests ran as one. `tables`: of the model's tensors, for codecs.
    """

    def __init__(
        self, tail: OpenTail, vectors: Sequence[str], limits: Limits, tables: Mapping[str, KltTables] = NO_TABLES, *,
        batch: bool,
    ) -> None:  # fmt: skip
        segment = tail.segment
        wanted = set(vectors)
        self.tail = tail
        self.specs = [t for t in segment.inputs if t.name not in wanted]
        self.vectors = [t for t in segment.inputs if t.name in wanted]
        self.inputs = [t.name for t in self.specs]
        self.outputs = [t.name for t in segment.outputs]
        self.packer = wire.Packer(Kind.RESULT, wire.ResultData, batch=batch)
        self.checked = CheckedInfer(wire.Infer(0, ()))
        """The last header that fitted."""
        self._limits, self._tables = limits, tables

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
                raise InputError(f"tensor {spec.name} must be {spec.type}, but {got.type} came")
        for spec, vector in zip(self.vectors, header.vectors, strict=True):
            _check_vector(spec, vector, self._limits)
        kind = self._kind(header)
        decoders = [
            _decoder(name, tensor, self._tables.get(name)) if tensor.codec else None
            for name, tensor in zip(self.inputs, header.tensors, strict=True)
        ]
        nbytes = sum(d[1].nbytes for d in decoders if d is not None)
        self.checked = CheckedInfer(header, decoders if any(decoders) else (), nbytes, kind)
        return nbytes

    def _kind(self, header: wire.Infer) -> object:
        shapes = {t.name: got.shape for t, got in zip(self.specs, header.tensors, strict=True)}
        shapes |= {t.name: (len(v),)[: len(t.shape)] for t, v in zip(self.vectors, header.vectors, strict=True)}
        inputs = self.tail.segment.inputs
        in_order = [shapes[t.name] for t in inputs]
        return self.tail.kind_of([t.dtype for t in inputs], in_order, vectors=bool(self.vectors))

    def feed(
        self, checked: CheckedInfer, tensors: Sequence[Array], decoded: Mapping[int, Array] = _NONE
    ) -> dict[str, Array]:  # fmt: skip
        """What the session is run with: the tensors, decoded (some are by now, by place), and the shape vectors, by
        name. InputError for bytes that are not what they should be."""
        if checked.decoders:
            tensors = [
                array if decoder is None else decoded[k] if k in decoded else _decoded(array, *decoder)
                for k, (array, decoder) in enumerate(zip(tensors, checked.decoders, strict=True))
            ]
        known = dict(zip(self.inputs, tensors, strict=True))
        if self.vectors:
            for spec, vector in zip(self.vectors, checked.header.vectors, strict=True):
                known[spec.name] = np.array(vector, np.int64).reshape(-1 if spec.shape else ())
        return known


def _decoder(name: str, tensor: wire.Tensor, tables: KltTables | None) -> tuple[Codec, TensorSpec]:
    """The codec that `tensor` came with, with its `tables` if it needs them, and what it decodes to. InputError if it
    cannot: nothing is allocated yet."""
    # Only names that we told the peer, with their parameters: no stranger chooses what is looked up here.
    known = len(tensor.codec) <= 40 and wire.codec_feature(tensor.codec) in wire.features()
    tabled = known and needs_tables(tensor.codec)
    try:
        codec = _with_tables(name, tensor, tables) if tabled else open_codec(tensor.codec) if known else None
    except UsageError:
        codec = None
    if codec is None:
        raise InputError(f"tensor {name} came with the codec {wire.plain(tensor.codec, 40)}, which is not known here")
    spec = TensorSpec(name, tensor.dtype, tensor.shape)
    if not codec.accepts(spec):
        raise InputError(f"tensor {name} came with the codec {codec.name}, which does not take {spec.type}")
    most = codec.most(spec)
    if tensor.nbytes > most:
        came = f"{tensor.nbytes} bytes of {codec.name}"
        raise InputError(f"tensor {name} came as {came}: {spec.type} takes at most {most}")
    return codec, spec


def _with_tables(name: str, tensor: wire.Tensor, tables: KltTables | None) -> Codec:
    """What decodes `tensor`, if it was encoded with these `tables`."""
    if tables is None or sent_with(tables) != tensor.codec:
        came, here = wire.plain(tensor.codec, 40), "no tables" if tables is None else f"those of {sent_with(tables)}"
        raise InputError(f"tensor {name} came as {came}, and this server has {here} for it: use another codec")
    return decoder_of(tables)


@lru_cache(maxsize=64)
def decoder_of(tables: KltTables) -> Codec:
    """The bytes say themselves how fine they are: one for every level, made when it is needed."""
    return Klt("klt:50", tables)


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


class Requests:
    """Those of one connection, and its tails by number. `batch`: whether answers say which ran as one."""

    def __init__(self, services: Services, account: Account, replies: Replies, *, batch: bool) -> None:
        self.services, self.account, self.replies, self.batch = services, account, replies, batch
        self.connection = replies.connection
        self.in_flight: set[int] = set()
        #: How long its requests wait lately.
        self.waits = RecentWait()
        self._receiving: Frame | None = None
        self.tails: dict[int, OpenedTail] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        #: How many tails it waits for.
        self.waiting = 0

    # --- its tails ------------------------------------------------------------------------------------------------

    def open(self, frame: Frame) -> None:
        """Has a tail made, which is then said by OPENED or ERROR. SplitpointError if that is not even tried."""
        request = frame.header
        assert isinstance(request, wire.OpenRequest)
        services, builds = self.services, self.account.builds
        model = services.catalogue[request.fingerprint]
        named = (*request.inputs, *request.vectors, *request.outputs)
        if len(named) > 2 * len(model.specs):
            raise ModelError(f"{model.name} has {len(model.specs)} tensors: a segment between {len(named)} is none")
        model.check_names(named)
        if len(self.tails) + self.waiting >= services.limits.segments or self.waiting >= _MOST_WAITING:
            raise BusyError("too many segments are open on this connection: close some", 0.1)
        if services.ledger.draining:
            raise ServerError("the server is ending")
        make = partial(self._make, frame.id, model, request)
        self._wait(1)
        if not services.builders.submit(WaitingJob(builds, make, line=self.account, dropped=partial(self._wait, -1))):
            self._wait(-1)
            retry_s = services.builders.retry_after_s(builds)
            raise BusyError("the server has no room for more tails to compile: try again later", retry_s)

    def _wait(self, by: int) -> None:
        """It waits for so many more tails; fewer, if it is negative."""
        with self._lock:
            self.waiting += by

    def _make(self, id: int, model: Model, request: wire.OpenRequest, waited: float) -> None:
        try:
            self._answer(id, model, request)
        except Exception as exc:
            self.replies.give_up(id, exc)
        finally:
            self._wait(-1)
            if self.account.gone:  # it left meanwhile
                self._close_all()

    def _answer(self, id: int, model: Model, request: wire.OpenRequest) -> None:
        try:
            with self.account.building():
                opened = self._build(model, request)
            number = next(self._numbers)
            self.tails[number] = opened
            tail = opened.tail
            inputs = tuple(map(wire.TensorInfo.of, (*opened.specs, *opened.vectors)))
            outputs = tuple(map(wire.TensorInfo.of, tail.segment.outputs))
            reply = wire.Opened(number, inputs, outputs, tail.nbytes, tail.compile_s)
            self.replies.send(wire.encode(Kind.OPENED, id, reply))
        except SplitpointError as exc:
            self.replies.refuse(id, exc)
        except Exception as exc:  # the knife and the engine meet whatever a client names
            what = f"a tail for {self.account.name} cannot be built"
            self.replies.refuse(id, self.replies.hide(what, exc, "the tail cannot be built"))

    def _build(self, model: Model, request: wire.OpenRequest) -> OpenedTail:
        account = self.account
        boundary = (*request.inputs, *request.vectors)
        self.services.sharing.check_tail(model, request)
        segment = model.segment(boundary, request.outputs)
        if not segment.outputs:
            raise ModelError("a segment without outputs has nothing to compute")
        tail = self.services.runner.open(segment, account)
        text = f"{account.name} opened {model.name} from {wire.plain(', '.join(boundary), 80)}"
        fields = {"peer": account.name, "model": model.name, "nbytes": tail.nbytes, "compile_s": tail.compile_s}
        self.services.tell(Event("opened", f"{text} ({size(tail.nbytes)}, {tail.compile_s * 1e3:.0f} ms)", fields))
        tables = self.services.catalogue.tables.get(model.fingerprint, NO_TABLES)
        return OpenedTail(tail, request.vectors, self.services.limits, tables, batch=self.batch)

    def close(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Close)
        opened = self.tails.pop(frame.header.segment, None)
        if opened is not None:
            opened.tail.close(drop=True)

    def _close_all(self) -> None:
        """The connection has ended: nobody waits for what is to be made, or needs what is open."""
        self.services.builders.drop(self.account.builds, self.account)
        while self.tails:
            with suppress(KeyError):
                self.tails.popitem()[1].tail.close()

    # --- requests for them ----------------------------------------------------------------------------------------

    def admit(self, frame: Frame, header: wire.Infer) -> SplitpointError | None:
        """Why a request's body is not worth receiving. ProtocolError if the peer has lost track of its ids."""
        if not frame.id:
            raise ProtocolError("a request cannot have the id 0, which stands for the connection")
        if frame.id in self.in_flight:
            raise ProtocolError(f"request {frame.id} is in flight already: ids must differ")
        services, account = self.services, self.account
        opened = self.tails.get(header.segment)
        try:
            if opened is None:
                raise InputError(f"segment {header.segment} is not open on this connection")
            held = frame.nbytes + opened.check(header)
        except InputError as exc:
            # Without its traceback: that knows this frame, which will know the exception, and since the garbage
            # collector does not see frames (`gc=False`), neither would ever leave memory.
            return exc.with_traceback(None)
        if services.ledger.draining:
            # BUSY, not an error of the request: whoever waits for the server waits for the one that comes after it.
            return BusyError("the server is ending: it takes no more requests", _ENDING_S)
        if len(self.in_flight) >= services.limits.in_flight:
            text = f"{services.limits.in_flight} requests of this connection are in flight already"
            return BusyError(text, services.runner.retry_after_s(account))
        if not services.runner.room(account) or not account.reserve(held):
            return account.no_room(services.runner.retry_after_s(account))
        frame.held = held
        self.in_flight.add(frame.id)
        self._receiving = frame
        return None

    def infer(self, frame: Frame) -> None:
        """Has a request that was admitted computed. It may be answered when this returns, or later."""
        self._receiving = None
        opened = self.tails[frame.header.segment]  # type: ignore[union-attr]  # its kind says what it is
        checked, alone = opened.checked, not frame.flags & wire.PIPELINED
        request = InferRequest(self.account, checked.kind, frame.received, alone, self, frame, opened, checked)
        pause_s = opened.tail.run(request)
        if pause_s:  # read no faster than it is computed: else its threads are before everybody else's all the time
            sleep(min(pause_s, REFUSED_S))

    def leave(self) -> None:
        """The connection has ended: what waits is dropped, what was being received too, and its tails are closed."""
        if self._receiving is not None:
            self.in_flight.discard(self._receiving.id)
            self.account.over(self._receiving.held, DROPPED)
        self.services.runner.drop(self.account)
        self._close_all()


class InferRequest(msgspec.Struct):
    """An INFER whose body is here, until it is answered: what a runner computes (`server.TailRequest`)."""

    account: Account
    kind: object
    received_s: float
    alone: bool
    _requests: Requests
    _frame: Frame
    _opened: OpenedTail
    _checked: CheckedInfer
    _decoded: Mapping[int, Array] = _NONE
    """What was decoded together with others, by place."""

    @property
    def latest_s(self) -> float:
        deadline_s = self._checked.header.deadline_s
        return self.received_s + deadline_s if deadline_s else inf

    def refusal(self, now_s: float) -> SplitpointError | None:
        if (late_s := now_s - self.latest_s) > 0:
            return _LateError(f"the deadline passed {late_s:.3f} s before its turn")
        if self._requests.connection.behind:
            return BusyError("answers are not read: read them first", _UNREAD_S)
        return None

    def decode_with(self, others: Iterable[TailRequest]) -> None:
        known = [r for r in others if isinstance(r, InferRequest)] if self._checked.decoders else []
        for k, decoder in enumerate(self._checked.decoders):
            alike = [] if decoder is None else [self, *(r for r in known if r._comes_as(k, decoder))]
            if decoder is None or len(alike) < 2 or not isinstance(codec := decoder[0], Klt):
                continue
            spec = decoder[1]
            try:
                together = codec.decode_many([r._frame.tensors[k] for r in alike], spec)
            except Exception:  # whose bytes they are shows when each is decoded by itself
                continue
            for one, part in zip(alike, together.reshape(len(alike), *dims(spec)), strict=True):
                one._decoded = {**one._decoded, k: part}

    def _comes_as(self, k: int, decoder: tuple[Codec, TensorSpec]) -> bool:
        """Whether its tensor `k` came with the same codec and tables, and is as large."""
        own = self._checked.decoders[k] if self._checked.decoders else None
        return own is not None and own[0] is decoder[0] and own[1].type == decoder[1].type

    def feed(self) -> Mapping[str, Array]:
        return self._opened.feed(self._checked, self._frame.tensors, self._decoded)

    def answer(self, outputs: Mapping[str, Array], marks: RunMarks) -> None:
        requests, frame = self._requests, self._frame
        received, started, waited_s, ready = self.received_s, marks.started, marks.waited_s, marks.ready
        decoded, computed, run = marks.decoded, marks.computed, marks.batch
        before_s = started - received - waited_s
        decode_s = (before_s if before_s > 0 else 0.0) + decoded - ready
        queue_s, compute_s = ready - started + waited_s, computed - decoded
        waits = requests.waits
        if waited_s or waits.queue_s:
            waits.add(started, waited_s)
        try:
            arrays = [outputs[name] for name in self._opened.outputs]
            encode_s, busy = perf_counter() - computed, requests.services.runner.utilisation
            times = (
                received, received - frame.started, decode_s, queue_s, compute_s, encode_s, waits.queue_s, busy,
                *(run if requests.batch else ()),
            )  # fmt: skip
            packet = self._opened.packer.pack(frame.id, arrays, (), times)
            # The peer may use the id again as soon as it has the answer; all else can wait until that is on its way.
            requests.in_flight.discard(frame.id)
            requests.replies.send(packet)
        except Exception as exc:
            self.refuse(exc)
        else:
            self.account.answered(frame.held, run.size, (decode_s, queue_s, compute_s, encode_s))

    def refuse(self, exc: Exception) -> None:
        requests, frame = self._requests, self._frame
        outcome = "internal"
        try:
            if not isinstance(exc, SplitpointError):  # engines are foreign code
                what = f"request {frame.id} of {self.account.name} failed"
                exc = requests.replies.hide(what, exc, "the engine failed")
            outcome = outcome_of(exc)
            requests.in_flight.discard(frame.id)
            requests.replies.refuse_request(frame.id, exc)
        except Exception as worse:
            requests.replies.give_up(frame.id, worse)
        finally:
            self.account.over(frame.held, outcome)

    def drop(self) -> None:
        self._requests.in_flight.discard(self._frame.id)
        self.account.over(self._frame.held, DROPPED)


def outcome_of(exc: SplitpointError) -> str:
    """What a request that got `exc` is counted as."""
    return "late" if isinstance(exc, _LateError) else wire.error_of(exc).code
