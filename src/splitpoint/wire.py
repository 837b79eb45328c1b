"""Frames ↔ bytes. No I/O here: transports move the bytes, docs/wire-format.md is the specification.

    prefix (24 bytes, fixed) │ header (MessagePack) │ body (tensor bytes, or one blob)

Sending: `encode` gives the buffers to write, tensor bytes uncopied. Receiving: `parse_prefix`, `parse_header`,
`check_tensors`, then `allocate` makes the arrays that the body is received into. Every length is checked
against `Limits` before anything of that length is allocated.

>>> data = encode(Kind.PING, 7, Ping(clock_s=1.5)).buffers[0]
>>> prefix = parse_prefix(data, Limits())
>>> prefix.kind, prefix.id, parse_header(prefix, data[PREFIX_BYTES:])
(5, 7, Ping(clock_s=1.5))
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from math import inf, prod
from typing import Annotated, Any, Final, NamedTuple, TypeAlias
from zlib import crc32

import msgspec
import numpy as np

from splitpoint.codecs import CODECS, Codec
from splitpoint.errors import (
    AccessError,
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
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec
from splitpoint.text import plain as plain  # whatever a peer wrote goes through it before it is shown

#: The first byte is not ASCII and begins no UTF-8 text, so no text protocol is ever mistaken for ours.
MAGIC: Final = b"\xf5SPT"
#: Frames of another major version are not understood. A higher minor version only adds: kinds, flags, fields.
MAJOR: Final = 1
MINOR: Final = 4
DEFAULT_PORT: Final = 3277

_PREFIX = struct.Struct("<4sBBBBIIQ")
PREFIX_BYTES: Final = _PREFIX.size
_ID = struct.Struct("<I")
#: Where flags and id are in the prefix, and where the body's size is.
_FLAGS_AT, _FLAGS_AND_ID = 7, struct.Struct("<BI")
_BODY_AT, _BODY = 16, struct.Struct("<Q")
_TIMES = struct.Struct("<8d")
#: `Times` and `BatchRun`.
_TIMES_AND_RUN = struct.Struct("<8dII")
#: Where the request id is in the prefix: all else repeats from one request to the next.
ID_START, ID_END = 8, 12
_MAX_RANK: Final = 32

Raw: TypeAlias = bytes | bytearray | memoryview
Buffer: TypeAlias = Raw | Array


class Kind(IntEnum):
    """What a frame is. Odd or even, requests and replies are told apart by name, not by number."""

    ERROR = 1
    HELLO = 2
    WELCOME = 3
    BYE = 4
    PING = 5
    PONG = 6
    PROBE = 7
    PROBED = 8
    GRAPH = 16
    GRAPH_DATA = 17
    BLOB = 18
    BLOB_DATA = 19
    OPEN = 20
    OPENED = 21
    CLOSE = 22
    PROFILE = 24
    PROFILED = 25
    INFER = 32
    RESULT = 33
    BUSY = 34


#: INFER: the sender may send more requests before it has this one's answer.
PIPELINED: Final = 0x01
#: Where `CRC32` was agreed on: the last four bytes of the body are the CRC-32 of all before them, little-endian.
CHECKED: Final = 0x02
#: The feature of HELLO and WELCOME that stands for this.
CRC32: Final = "crc32"
#: The feature for `BatchRun` behind a RESULT's `Times`.
BATCH: Final = "batch"
CHECKSUM_BYTES: Final = 4
#: The CRC-32 of anything with its own CRC-32 behind it.
RESIDUE: Final = 0x2144DF1C


@dataclass(frozen=True)
class Limits:
    """What one side accepts. A peer that goes beyond is refused before memory is spent on it.

    `handshake_s` is what TLS and HELLO may take altogether. The other times are seconds without progress: `stall_s` in
    the middle of a frame or while the peer does not read, `idle_s` between frames (0: for ever; TCP keep-alive notices
    a dead peer). `arrivals` is how many may be on their way in, beside the `connections` that are.
    `slowest` is the least average rate, in bytes per second, of a frame that arrives in drips, and `frame_s` the
    longest that one may take however fast it is. `profile_s` is how long a server measures itself when it is asked to
    (0: it refuses). `client_connections` and `client_compiles` (tails compiled in a minute) are one address's share of
    a server. A request may take about `work_bytes` of memory while it is computed (or what one row takes, if that is
    more), and `run_s` seconds, or less where others like it took much less. UsageError for numbers that make no sense.
    """

    header_bytes: int = 4 << 20
    tensor_bytes: int = 1 << 30
    tensors: int = 256
    frame_bytes: int = 2 << 30
    blob_chunk: int = 1 << 20
    in_flight: int = 64
    arrivals: int = 64
    connections: int = 256
    client_connections: int = 128
    client_compiles: int = 600
    queue: int = 256
    memory_bytes: int = 4 << 30
    work_bytes: int = 1 << 30
    backlog_bytes: int = 64 << 20
    segments: int = 4096
    handshake_s: float = 5.0
    stall_s: float = 30.0
    idle_s: float = 0.0
    slowest: float = 2048.0
    frame_s: float = 900.0
    profile_s: float = 60.0
    run_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in _MAY_BE_NONE else 1 if isinstance(value, int) else 1e-3
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < inf:
                raise UsageError(f"the limit {name} must be {least:g} or more, not {value}")
            if isinstance(getattr(type(self), name), int) and not isinstance(value, int):
                raise UsageError(f"the limit {name} must be a whole number, not {value}")


#: Limits for which 0 means something: never, for ever, or nothing yet.
_MAY_BE_NONE: Final = frozenset({"frame_bytes", "idle_s", "profile_s", "slowest"})

# --- messages: the header of each kind ----------------------------------------------------------------------
# Maps where a reader should see names; arrays (array_like) on the path of every request.
# Unknown keys, and elements beyond the known ones, are ignored, so that a minor version can add some.

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: A header of 4 MiB could have a million entries of 4 bytes, which take 100 bytes each once they are decoded. These are
#: counted before they are: far more than any model needs, and few enough that memory stays in proportion.
Few = msgspec.Meta(max_length=64)
Some = msgspec.Meta(max_length=4096)
Many = msgspec.Meta(max_length=65536)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A header."""


class Hello(Message, frozen=True):
    """First frame of a client. `token` is never sent without TLS. `features` are names it can use.

    `eol` is line ends: a server of a text protocol takes them for the end of a request and answers at once,
    instead of waiting for more, so that a wrong port is known for what it is.
    """

    version: tuple[int, int] = (MAJOR, MINOR)
    software: str = ""
    features: Annotated[tuple[str, ...], Some] = ()
    token: str = ""
    eol: str = ""


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """A `TensorSpec` on the wire: a free dimension is a string."""

    name: str
    dtype: str
    shape: Annotated[tuple[Natural | str, ...], Few]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorInfo:
        return cls(spec.name, spec.dtype, spec.shape)

    def spec(self) -> TensorSpec:
        """What it describes. ProtocolError for a dtype that never travels."""
        if self.dtype not in ITEM_SIZES:
            name, dtype = plain(self.name, _NAME), plain(self.dtype, 40)
            raise ProtocolError(f"tensor {name} has the dtype {dtype}, which never travels")
        return TensorSpec(self.name, self.dtype, self.shape)


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that a server holds. `input_spec`: JSON, where it is not the one in the graph. `tables`: those of codecs,
    each the tensor that it is for (empty: not told), its SHA-256 and its bytes."""

    name: str
    fingerprint: str
    nbytes: Natural = 0
    inputs: Annotated[tuple[TensorInfo, ...], Some] = ()
    outputs: Annotated[tuple[TensorInfo, ...], Some] = ()
    input_spec: str = ""
    tables: Annotated[tuple[tuple[str, str, Natural], ...], Some] = ()


class Welcome(Message, frozen=True):
    """The answer to HELLO. `features`: those of HELLO's that this connection uses; `limits`: what the server
    accepts, by the names of `Limits`; `heads`: by fingerprint, the deepest cut it shares, where `share` is ``head``."""

    version: tuple[int, int] = (MAJOR, MINOR)
    software: str = ""
    features: Annotated[tuple[str, ...], Some] = ()
    models: Annotated[tuple[ModelInfo, ...], Some] = ()
    share: str = "model"
    limits: Annotated[dict[str, int], Some] = msgspec.field(default_factory=dict)
    heads: Annotated[dict[str, str], Some] = msgspec.field(default_factory=dict)


class Error(Message, frozen=True):
    """A refusal of the request with the frame's id; of the connection, which then ends, if the id is 0."""

    code: str = "internal"
    message: str = ""
    retry_after_s: float = 0.0


class Bye(Message, frozen=True):
    """The sender is done. From a server: what is in flight is still answered, then the connection ends. From a client:
    what has no answer yet is dropped."""

    reason: str = ""


class Ping(Message, frozen=True, array_like=True):
    """Asks for the answerer's clock. `clock_s` is the sender's own, of any origin."""

    clock_s: float = 0.0


class Pong(Message, frozen=True, array_like=True):
    """`ping_s` is the ping's own clock; the others are the answerer's, on receipt and just before sending."""

    ping_s: float = 0.0
    received_s: float = 0.0
    sent_s: float = 0.0


class Probe(Message, frozen=True, array_like=True):
    """Bytes to measure the link with: the body is thrown away, the answer has a body of `reply_nbytes`."""

    reply_nbytes: Natural = 0


class Probed(Message, frozen=True, array_like=True):
    """The answerer's clock at the PROBE's first and last byte, and just before this is sent."""

    started_s: float = 0.0
    received_s: float = 0.0
    sent_s: float = 0.0


class ProfileRequest(Message, frozen=True):
    """Asks the server to measure a model on itself, for at most `budget_s` (and the server's own limit); `fresh`: not
    to answer with what it measured before."""

    fingerprint: str
    budget_s: float = 0.0
    fresh: bool = False


class Profiled(Message, frozen=True):
    """Body: the profile as JSON."""

    fingerprint: str


class GraphRequest(Message, frozen=True):
    """Asks for a model's graph, without weights, by fingerprint."""

    fingerprint: str


class GraphData(Message, frozen=True):
    """Body: the graph. `blobs`: sha256 and size of every weight it refers to."""

    fingerprint: str
    name: str = ""
    blobs: Annotated[tuple[tuple[str, Natural], ...], Many] = ()


class BlobRequest(Message, frozen=True):
    """Asks for `length` bytes of a weight from `offset` (0: to its end). The reply may be shorter."""

    fingerprint: str
    hash: str
    offset: Natural = 0
    length: Natural = 0


class BlobData(Message, frozen=True):
    """Body: bytes of the blob from `offset`. `nbytes` is the whole blob's size."""

    hash: str
    offset: Natural = 0
    nbytes: Natural = 0


class OpenRequest(Message, frozen=True):
    """Asks for a segment by its boundary. `vectors` are inputs that travel in INFER's header (int64)."""

    fingerprint: str
    inputs: Annotated[tuple[str, ...], Some]
    outputs: Annotated[tuple[str, ...], Some]
    vectors: Annotated[tuple[str, ...], Some] = ()


class Opened(Message, frozen=True):
    """`segment` is its number on this connection. Specs are in the order of the request (vectors last)."""

    segment: Natural
    inputs: Annotated[tuple[TensorInfo, ...], Some] = ()
    outputs: Annotated[tuple[TensorInfo, ...], Some] = ()
    nbytes: Natural = 0
    compile_s: float = 0.0


class Close(Message, frozen=True):
    """The client is done with a segment. No answer."""

    segment: Natural


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in the body: its own dtype and shape, and the `nbytes` that it takes there, encoded by `codec` (``""``:
    the raw little-endian elements)."""

    dtype: str
    shape: Annotated[tuple[Natural, ...], Few]
    nbytes: Natural
    codec: str = ""

    @property
    def type(self) -> str:
        """Such as ``float32[1,3,4]``."""
        return TensorSpec("", self.dtype, self.shape).type


class Infer(Message, frozen=True, array_like=True):
    """Runs an opened segment. `deadline_s` counts from receipt; 0 is none. `vectors`: int64 shape vectors."""

    segment: Natural
    tensors: Annotated[tuple[Tensor, ...], Some]
    vectors: Annotated[tuple[Annotated[tuple[int, ...], Few], ...], Some] = ()
    deadline_s: float = 0.0


class ResultData(Message, frozen=True, array_like=True):
    """The answer to INFER: the segment's outputs in order. The body begins with `Times`."""

    tensors: Annotated[tuple[Tensor, ...], Some]


class Times(NamedTuple):
    """The server's own account of a request, in seconds: eight float64, before the tensors of a RESULT. (Not in its
    header, so that this repeats from one answer to the next and is decoded once.)

    `received_s` is the server's clock when the request's last byte was read. `decode_s` to `encode_s` follow
    each other from there, so that `received_s` plus those four is when the answer was sent; `receive_s`, from
    the first byte to the last, came before. `load_queue_s` is the recent wait of this connection's requests for a
    free worker, `utilisation` the recent busy share of the workers (0…1).
    """

    received_s: float = 0.0
    receive_s: float = 0.0
    decode_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    load_queue_s: float = 0.0
    utilisation: float = 0.0


class BatchRun(NamedTuple):
    """Which run of the server's computed a request: two uint32 behind `Times`, where `BATCH` was agreed on. Requests
    with the same `run` were computed as one batch of `size`; one that was computed by itself has run 0."""

    run: int = 0
    size: int = 1


class Busy(Message, frozen=True):
    """No room for the request: it was not run. Trying again makes sense after `retry_after_s`."""

    retry_after_s: float = 0.1
    message: str = ""


HEADERS: Final[dict[int, type[Message]]] = {
    Kind.ERROR: Error,
    Kind.HELLO: Hello,
    Kind.WELCOME: Welcome,
    Kind.BYE: Bye,
    Kind.PING: Ping,
    Kind.PONG: Pong,
    Kind.PROBE: Probe,
    Kind.PROBED: Probed,
    Kind.PROFILE: ProfileRequest,
    Kind.PROFILED: Profiled,
    Kind.GRAPH: GraphRequest,
    Kind.GRAPH_DATA: GraphData,
    Kind.BLOB: BlobRequest,
    Kind.BLOB_DATA: BlobData,
    Kind.OPEN: OpenRequest,
    Kind.OPENED: Opened,
    Kind.CLOSE: Close,
    Kind.INFER: Infer,
    Kind.RESULT: ResultData,
    Kind.BUSY: Busy,
}
#: The most characters of a peer's sentence, and of a name it gives, that are kept.
_TEXT, _NAME = 2000, 100


def _clean_model(info: ModelInfo) -> ModelInfo:
    name, fingerprint = plain(info.name, _NAME), plain(info.fingerprint, _NAME)
    inputs, outputs = (tuple(map(_clean_spec, specs)) for specs in (info.inputs, info.outputs))
    return msgspec.structs.replace(info, name=name, fingerprint=fingerprint, inputs=inputs, outputs=outputs)


def _clean_spec(spec: TensorInfo) -> TensorInfo:
    shape = tuple(plain(n, _NAME) if isinstance(n, str) else n for n in spec.shape)
    return TensorInfo(plain(spec.name, _NAME), plain(spec.dtype, _NAME), shape)


#: No clock reads more, no server's account of one request has a longer stage, and nobody waits longer before asking
#: again because a peer says so, in seconds.
_MOST_CLOCK_S, _MOST_STAGE_S, _MOST_RETRY_S = 1e12, 1e6, 60.0
_ROUNDING: Final = 1e-3
#: The least that a server's limits can be and still be of use: smaller pieces of a weight are nothing but round trips.
_LEAST_LIMITS: Final = {"in_flight": 1, "blob_chunk": 256}
#: The largest body of frames that a device asks for by the piece, whatever `Limits` allow a frame of tensors.
MOST_BODY: Final = {
    int(Kind.GRAPH_DATA): 256 << 20, int(Kind.BLOB_DATA): 64 << 20, int(Kind.PROBED): 64 << 20,
    int(Kind.PROFILED): 64 << 20,
}  # fmt: skip


def _sane_clock(message: Pong | Probed) -> Pong | Probed:
    """`message`, which is nothing but readings of clocks; ProtocolError if one cannot be."""
    if not all(abs(reading) <= _MOST_CLOCK_S for reading in msgspec.structs.astuple(message)):  # no NaN is
        raise ProtocolError("the server's clock says no time: its answer has numbers that cannot be")
    return message


def _sane_limits(limits: dict[str, int]) -> dict[str, int]:
    for name, least in _LEAST_LIMITS.items():
        if limits.get(name, least) < least:
            raise ProtocolError(f"the server's limit {name} is {limits[name]}: {least} is the least that makes sense")
    return limits


def _raw_answer(result: ResultData) -> ResultData:
    """`result`; ProtocolError if a tensor of it is encoded: a device never asks for that."""
    for tensor in result.tensors:
        if tensor.codec:
            raise ProtocolError(f"an answer came with the codec {plain(tensor.codec, 40)}: answers travel raw")
    return result


#: What is done to headers with words for people, as soon as they are decoded. (ERROR and BUSY: see `exception_of`.
#: Tensor names in OPEN and OPENED are compared with those of a model, and shown only when they are equal.)
_CLEAN: Final[dict[int, Callable[[Any], Message]]] = {
    Kind.RESULT: _raw_answer,
    Kind.PONG: _sane_clock,
    Kind.PROBED: _sane_clock,
    Kind.BYE: lambda m: msgspec.structs.replace(m, reason=plain(m.reason, _TEXT)),
    Kind.HELLO: lambda m: msgspec.structs.replace(m, software=plain(m.software, _NAME)),
    Kind.GRAPH_DATA: lambda m: msgspec.structs.replace(m, name=plain(m.name, _NAME)),
    Kind.WELCOME: lambda m: msgspec.structs.replace(
        m,
        software=plain(m.software, _NAME),
        share=plain(m.share, _NAME),
        heads={f: plain(cut, _TEXT) for f, cut in m.heads.items()},
        limits=_sane_limits(m.limits),
        models=tuple(map(_clean_model, m.models)),
    ),
}
_DECODE: Final = {int(kind): msgspec.msgpack.Decoder(cls).decode for kind, cls in HEADERS.items()}
_BODY_KINDS: Final = frozenset({int(Kind.INFER), int(Kind.RESULT), int(Kind.PROBE), *MOST_BODY})
_DTYPE_LIST: Final = ", ".join(ITEM_SIZES)
#: Little-endian whatever the machine is. Looked up by dtype, not by its `name`, which numpy takes 3 µs to make.
_DTYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in ITEM_SIZES}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


class FramePrefix(NamedTuple):
    """The first 24 bytes of a frame, checked."""

    kind: int
    flags: int
    id: int
    header_bytes: int
    body_bytes: int


class Frame(msgspec.Struct, gc=False):
    """One frame as received. `started` and `received` are the receiver's clock at its first and last byte.

    `tensors` is the body: those of INFER and RESULT, one array of bytes for a graph or blob. `refused` is why
    the body was skipped. `header` is None for a kind this version does not know. `nbytes` counts it all,
    `header_nbytes` what had to be decoded (0: the header was the last one again); `held` is for the receiver to note
    how much memory it has set aside for it.
    """

    kind: int
    flags: int
    id: int
    header: Message | None
    started: float = 0.0
    nbytes: int = 0
    received: float = 0.0
    tensors: list[Array] = []
    refused: SplitpointError | None = None
    times: bytes = b""
    held: int = 0
    header_nbytes: int = 0


class ForeignError(ProtocolError):
    """What came is not one of our frames at all; `data` is how it begins."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"this is not a splitpoint frame: it begins with {printable(data)}")
        self.data = data


#: Looks at a frame before its body is received: why the body is to be skipped, or None to receive it.
Admit = Callable[[Frame], SplitpointError | None]


# --- bytes out ----------------------------------------------------------------------------------------------


class Packet(msgspec.Struct, frozen=True):
    """One frame ready to be written: its buffers in order, and how many bytes they are together.

    `codecs` are what its tensors travel with, in order (``""``: raw); empty if all are raw.
    """

    buffers: Sequence[Buffer]
    nbytes: int
    codecs: tuple[str, ...] = ()


def encode(kind: int, id: int, header: Message, body: Sequence[Buffer] = (), nbytes: int = 0, flags: int = 0) -> Packet:
    """The frame with this header and a body of `nbytes`, whose contiguous buffers are passed on uncopied."""
    head = bytearray(PREFIX_BYTES)
    _ENCODER.encode_into(header, head, PREFIX_BYTES)
    size = len(head)
    _PREFIX.pack_into(head, 0, MAGIC, MAJOR, MINOR, kind, flags, id, size - PREFIX_BYTES, nbytes)
    return Packet((head, *body), size + nbytes)


def flat(buffer: Buffer) -> memoryview:
    """`buffer` as plain bytes."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view("u1").data
    return memoryview(buffer)


def checked(packet: Packet) -> Packet:
    """The frames of `packet`, one or several, each with the flag CHECKED and its checksum at the end.

    Prefix and header are copied, tensors are not. What is no frame of ours is left as it is.
    """
    buffers: list[Buffer] = []
    left = crc = added = 0
    for part in map(flat, packet.buffers):
        size = part.nbytes
        if not size:
            continue
        if not left:
            head = bytearray(part)
            if size < PREFIX_BYTES or not head.startswith(MAGIC):
                return packet
            part = memoryview(head)
            _, _, _, _, flags, _, header_bytes, body_bytes = _PREFIX.unpack_from(head)
            left, crc = PREFIX_BYTES + header_bytes + body_bytes, 0
            head[_FLAGS_AT] = flags | CHECKED
            _BODY.pack_into(head, _BODY_AT, body_bytes + CHECKSUM_BYTES)
        crc = crc32(part, crc)
        buffers.append(part)
        left -= size
        if not left:
            buffers.append(crc.to_bytes(CHECKSUM_BYTES, "little"))
            added += CHECKSUM_BYTES
    return Packet(buffers, packet.nbytes + added, packet.codecs)


#: With which codecs tensors travel (None: raw).
Choose = Callable[[Sequence[Array]], Sequence[Codec | None]]
#: Arrays and their codecs → what travels.
Coder = Callable[[Sequence[Array], Sequence[Codec | None]], Sequence[Array]]


class _Memo(NamedTuple):
    """The frame before; one immutable value, so that threads that share a `Packer` need no lock. Without one `head` is
    empty. `names`: of the codecs, if there are any."""

    layout: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] = ()
    codecs: Sequence[Codec | None] = ()
    names: tuple[str, ...] = ()
    extra: tuple[object, ...] = ()
    sizes: Sequence[int] = ()
    head: bytearray = bytearray()
    nbytes: int = 0
    has_empty: bool = False


class Packer:
    """Makes the INFER or RESULT frames of one segment, whose headers hardly change from one to the next.

    `build(tensors, *extra)` makes the header. While dtypes, shapes, `extra` and the bytes that codecs need repeat, its
    own are reused. `choose` is asked anew when dtypes or shapes change; without it all tensors travel raw. With `batch`
    what a RESULT begins with is `Times` and `BatchRun`, all ten numbers in a row.
    """

    def __init__(
        self, kind: int, build: Callable[..., Message], choose: Choose | None = None, *, batch: bool = False
    ) -> None:
        self._kind, self._build, self._choose = kind, build, choose
        self._times = _TIMES_AND_RUN if batch else _TIMES
        self._fixed = self._times.size if kind == Kind.RESULT else 0
        self._memo = _Memo()

    def pack(
        self,
        id: int,
        arrays: Sequence[Array],
        extra: tuple[object, ...] = (),
        times: Sequence[float] = (),
        flags: int = 0,
        coder: Coder | None = None,
    ) -> Packet:
        """The frame with `arrays` as body: not copied if they are raw, contiguous and little-endian. `coder` encodes
        them with their codecs, if not as usual.

        InputError for what never travels or cannot be encoded so. `times` belongs to RESULT, and only there.
        """
        memo = self._memo
        if self._choose is not None or not memo.head or len(arrays) != len(memo.layout) or extra != memo.extra:
            arrays, memo = self._learn(arrays, extra, coder)
        else:
            for array, (dtype, shape) in zip(arrays, memo.layout, strict=True):
                if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                    arrays, memo = self._learn(arrays, extra, coder)
                    break
        head = memo.head[:]  # the frame's own: it may be written later
        _FLAGS_AND_ID.pack_into(head, _FLAGS_AT, flags, id)
        if times:
            self._times.pack_into(head, -self._fixed, *times)
        if memo.has_empty:
            arrays = [a for a in arrays if a.nbytes]
        return Packet((head, *arrays), memo.nbytes, memo.names)

    def _learn(
        self, arrays: Sequence[Array], extra: tuple[object, ...], coder: Coder | None
    ) -> tuple[Sequence[Array], _Memo]:  # fmt: skip
        """(`arrays` as they travel, the header for them)."""
        arrays = [_portable(a) for a in arrays]
        memo, layout = self._memo, [(a.dtype, a.shape) for a in arrays]
        if not memo.head or memo.layout != layout:
            codecs = self._choose(arrays) if self._choose is not None else [None] * len(arrays)
            names = tuple(c.name if c is not None else "" for c in codecs)
            memo = _Memo(layout, codecs, names if any(names) else ())
        encoded = None if coder is None else coder(arrays, memo.codecs)
        bodies = encoded or [a if c is None else c.encode(a) for a, c in zip(arrays, memo.codecs, strict=True)]
        sizes = [b.nbytes for b in bodies]
        if not memo.head or sizes != memo.sizes or extra != memo.extra:
            tensors = tuple(
                Tensor(_NAMES[dtype], shape, size, codec.sent_as if codec is not None else "")
                for (dtype, shape), size, codec in zip(layout, sizes, memo.codecs, strict=True)
            )
            packet = encode(self._kind, 0, self._build(tensors, *extra), (), self._fixed + sum(sizes))
            head = bytearray(packet.buffers[0]) + bytes(self._fixed)
            memo = memo._replace(extra=extra, sizes=sizes, head=head, nbytes=packet.nbytes, has_empty=0 in sizes)
            self._memo = memo
        return bodies, memo


def _portable(array: Array) -> Array:
    name = array.dtype.name
    if name not in ITEM_SIZES:
        raise InputError(f"a tensor of dtype {name} cannot travel: only {_DTYPE_LIST}")
    return np.ascontiguousarray(array, dtype=_DTYPES[name]).reshape(array.shape)


# --- bytes in -----------------------------------------------------------------------------------------------


def codec_feature(codec: str) -> str:
    """The feature of HELLO and WELCOME that stands for `codec`, whatever its parameters.

    >>> codec_feature("int8+zstd"), codec_feature("jpeg:90")
    ('codec:int8+zstd', 'codec:jpeg')
    """
    return f"codec:{codec.partition(':')[0]}"


@cache
def features() -> tuple[str, ...]:
    """The optional features of this side: the codecs that it encodes and decodes, and `BATCH`."""
    return (*sorted({codec_feature(name) for name in CODECS} - {codec_feature("raw")}), BATCH)


def times_bytes(features: Collection[str]) -> int:
    """How many bytes a RESULT's body begins with, where these features were agreed on."""
    return _TIMES_AND_RUN.size if BATCH in features else _TIMES.size


def parse_prefix(data: Raw, limits: Limits) -> FramePrefix:
    """The prefix in `data` (24 bytes). ProtocolError if it is not ours, of another major version, or over a
    limit. ERROR frames are read in every version: they are how a peer says that it cannot read ours."""
    magic, major, _, kind, flags, id, header_bytes, body_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ForeignError(bytes(data[:PREFIX_BYTES]))
    if major != MAJOR and kind != Kind.ERROR:
        raise ProtocolError(
            f"the peer speaks version {major} of the wire format and this side version {MAJOR}: "
            "install the same major version of splitpoint on both"
        )
    if header_bytes > limits.header_bytes:
        raise ProtocolError(f"a header of {header_bytes} bytes is over the limit, {limits.header_bytes}")
    if body_bytes > limits.frame_bytes:
        raise ProtocolError(f"a frame's body of {body_bytes} bytes is over the limit, {limits.frame_bytes}")
    return FramePrefix(kind, flags, id, header_bytes, body_bytes)


def parse_header(prefix: FramePrefix, data: Raw) -> Message | None:
    """The message in `data`, None for a kind of a later version. ProtocolError names what is wrong."""
    decode = _DECODE.get(prefix.kind)
    if decode is None:
        return None
    if prefix.body_bytes and prefix.kind not in _BODY_KINDS:
        raise ProtocolError(f"{Kind(prefix.kind).name} has no body, but {prefix.body_bytes} bytes came")
    if prefix.body_bytes > MOST_BODY.get(prefix.kind, prefix.body_bytes):
        raise ProtocolError(
            f"{prefix.body_bytes} bytes of {Kind(prefix.kind).name} are over the limit, {MOST_BODY[prefix.kind]}"
        )
    try:
        message: Message = decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        why = plain(str(exc), _TEXT)
        raise ProtocolError(f"the header of a {Kind(prefix.kind).name} frame cannot be read: {why}") from exc
    clean = _CLEAN.get(prefix.kind)
    return message if clean is None else clean(message)


def check_tensors(tensors: Sequence[Tensor], body_bytes: int, limits: Limits) -> None:
    """ProtocolError unless every entry's bytes match its dtype and shape and together make `body_bytes`.

    What a codec's bytes should be is not looked at here, but what they say they decode to is held to the limits.
    """
    if len(tensors) > limits.tensors:
        raise ProtocolError(f"a frame with {len(tensors)} tensors is over the limit of {limits.tensors}")
    total = decoded = 0
    for t in tensors:
        size = ITEM_SIZES.get(t.dtype)
        if size is None:
            raise ProtocolError(f"a tensor has the unknown dtype {t.dtype[:40]!r}: known are {_DTYPE_LIST}")
        if len(t.shape) > _MAX_RANK:
            raise ProtocolError(f"a tensor with {len(t.shape)} dimensions is over the limit of {_MAX_RANK}")
        wanted = size * prod(t.shape)
        if (larger := max(wanted, t.nbytes)) > limits.tensor_bytes:
            raise ProtocolError(f"a tensor of {larger} bytes is over the limit, {limits.tensor_bytes}")
        # One of 0 bytes too: numpy makes no array of [2^62, 2^62, 0], although it would have no elements.
        if not wanted and size * prod(n or 1 for n in t.shape) > limits.tensor_bytes:
            raise ProtocolError(f"a tensor of no elements, {t.type}, has dimensions over the limit")
        if t.codec == "" and wanted != t.nbytes:
            raise ProtocolError(f"a tensor said to be {t.type} has {wanted} bytes, not {t.nbytes}")
        total += t.nbytes
        decoded += wanted
    if total != body_bytes:
        raise ProtocolError(f"a frame's tensors have {total} bytes and its body {body_bytes}")
    if decoded > limits.frame_bytes:
        raise ProtocolError(f"a frame's tensors decode to {decoded} bytes, over the limit, {limits.frame_bytes}")


def parse_id(data: Raw) -> int:
    number: int = _ID.unpack_from(data, ID_START)[0]
    return number


def parse_times(data: Raw) -> Times | None:
    """What the first bytes of a RESULT's body say; None where a number cannot be (no NaN is in any range)."""
    received, receive, decode, queue, compute, encode, load_queue, utilisation = times = _TIMES.unpack_from(data)
    most = _MOST_STAGE_S
    if (
        -_MOST_CLOCK_S <= received <= _MOST_CLOCK_S
        and 0.0 <= receive <= most
        and 0.0 <= decode <= most
        and 0.0 <= queue <= most
        and 0.0 <= compute <= most
        and 0.0 <= encode <= most
        and 0.0 <= load_queue <= most
        and -_ROUNDING <= utilisation <= 1.0 + _ROUNDING
    ):
        return tuple.__new__(Times, times)  # `Times(*times)` takes three times as long, and somebody waits
    return None


def parse_run(data: Raw) -> BatchRun | None:
    """What follows `Times`; None where the server does not say it, or it cannot be."""
    if len(data) < _TIMES_AND_RUN.size:
        return None
    *_, run, size = _TIMES_AND_RUN.unpack_from(data)
    return BatchRun(run, size) if (size > 1 if run else size == 1) else None


def allocate(tensors: Sequence[Tensor]) -> list[Array]:
    """Arrays to receive checked tensors into, contiguous and not yet written; an encoded one stays bytes, uint8."""
    return [np.empty(t.nbytes, np.uint8) if t.codec else np.empty(t.shape, _DTYPES[t.dtype]) for t in tensors]


def printable(data: bytes) -> str:
    """The start of `data` as a reader can recognise it: text up to its line's end, or hex digits."""
    line, newline, _ = data.partition(b"\n")
    line = line.rstrip(b"\r\0")
    if line and all(32 <= b < 127 for b in line):
        cut_off = not newline and len(data) >= PREFIX_BYTES and not data.endswith(b"\0")
        return f"'{line.decode('ascii')}{'…' if cut_off else ''}'"
    return data[:16].hex(" ") or "nothing"


# --- errors that travel -------------------------------------------------------------------------------------

_CODES: Final[dict[str, type[SplitpointError]]] = {
    "input": InputError,
    "model": ModelError,
    "engine": EngineError,
    "protocol": ProtocolError,
    "refused": RefusedError,
    "unauthorized": AccessError,
    "server": ServerError,
}
#: What an ERROR of a peer's can become here. A UsageError is never among them: that is the user's own mistake.
SAID: Final[tuple[type[SplitpointError], ...]] = (ServerError, InputError, ModelError, EngineError)


def error_of(exc: SplitpointError) -> Error:
    """The ERROR header that tells a peer about `exc`."""
    if isinstance(exc, BusyError):
        return Error("busy", str(exc)[:_TEXT], exc.retry_after_s)
    code = next((code for code, cls in _CODES.items() if isinstance(exc, cls)), "internal")
    return Error(code, str(exc)[:_TEXT])


def exception_of(header: Error | Busy) -> SplitpointError:
    """The exception that an ERROR or BUSY header stands for; an unknown code is a ServerError."""
    message = plain(header.message, _TEXT)
    retry_s = min(header.retry_after_s, _MOST_RETRY_S) if header.retry_after_s > 0 else 0.0  # NaN is not above 0
    if isinstance(header, Busy):
        return BusyError(message or "the server is busy", retry_s)
    if retry_s:
        return BusyError(message, retry_s)
    return _CODES.get(header.code, ServerError)(message)


def describe(kind: int) -> str:
    """The kind's name, or its number if this version has none for it."""
    return Kind(kind).name if kind in HEADERS else f"kind {kind}"
