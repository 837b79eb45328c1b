"""Recorded conversations, damaged: what a server makes of frames that are nearly right.

    said = [record(address, at="pool1", codec=codec) for codec in ("raw", "int8+zstd")]
    tally = attack(address, said, frames=10_000, seed=1)

Conversations are what a device really said. They are damaged by a seeded random generator: bits, lengths, the values in
headers, bodies, the order of frames. The server may refuse whatever it likes, but must go on.

As a program it is such a server, with small limits: it prints its address and then whatever must never happen.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import numpy as np

from splitpoint.errors import ServerError
from splitpoint.files import temporary_folder
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.events import Event
from splitpoint.segments import samples_for
from splitpoint.transports.addresses import dial, parse_address
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import MAGIC, PREFIX_BYTES, Kind, Limits, Packet, checked, flat

#: Those of the server under attack: small, so that what is let through beyond them is seen.
LIMITS = Limits(
    header_bytes=1 << 20,
    tensor_bytes=4 << 20,
    frame_bytes=8 << 20,
    memory_bytes=32 << 20,
    backlog_bytes=1 << 20,
    handshake_s=2.0,
    stall_s=2.0,
    profile_s=0.0,
)
#: How much more memory than after the first frames the server may ever take: what its limits add up to, and the
#: allocator's own.
SLACK_NBYTES = LIMITS.memory_bytes + (64 << 20)
#: A server that neither answers nor ends a conversation for so long is stuck.
STUCK_S = 10.0
_PREFIX = struct.Struct("<4sBBBBIIQ")
_FRAMES = 8
_KIND_AT = 6
_MOST_READ = 64 << 20
_ABRUPT = struct.pack("ii", 1, 0)
_BIND_LATER = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_KINDS = {int(kind): kind.name for kind in Kind}

# --- what a device says ---------------------------------------------------------------------------------------------


class _Recording(TcpConnection):
    """A connection that remembers what was sent over it."""

    def __init__(self, sock: socket.socket, peer: str, limits: Limits) -> None:
        super().__init__(sock, peer, limits)
        self.said = bytearray()

    def send(self, packet: Packet, *, wait: bool = True) -> None:
        sent = checked(packet) if self.seals else packet
        self.said += b"".join(bytes(flat(part)) for part in sent.buffers)
        super().send(packet, wait=wait)


def record(
    address: str, *, model: str | None = None, at: str, codec: str = "raw", checksum: bool = False
) -> list[bytes]:
    """The frames of a device that fetches a head, opens a tail, asks for three answers and more, and leaves."""
    sock, where = dial(address, 5.0)
    with temporary_folder() as cache:
        connection = _Recording(sock, where, Limits())
        with Edge(connection, model, at=at, codec=codec, wire=WireSettings(checksum=checksum), cache=cache) as edge:
            for inputs in samples_for(edge.model, 3):
                edge.infer(inputs)
            edge.glimpse(2000, 1.0)
            edge.warm("cut:input" if at != "input" else edge.model.graph.middle())
            edge.forget()
            with suppress(ServerError):  # it may not measure itself
                edge.profile_server(0.1)
        frames = split(bytes(connection.said))
    pings = [k for k, frame in enumerate(frames) if frame[_KIND_AT] == Kind.PING]
    return [frame for k, frame in enumerate(frames) if k not in pings[2:]]  # they are half of all, and all the same


def split(data: bytes) -> list[bytes]:
    """The frames in `data`, one after the other."""
    frames, at = [], 0
    while at < len(data):
        *_, header_bytes, body_bytes = _PREFIX.unpack_from(data, at)
        end = at + PREFIX_BYTES + header_bytes + body_bytes
        frames.append(data[at:end])
        at = end
    return frames


# --- damage ---------------------------------------------------------------------------------------------------------

_SIZES = (0, 1, 4, 23, 24, 255, 65535, 1 << 20, 2**31 - 1, 2**31, 2**32 - 1)
_ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 255, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, float("nan"),
    float("inf"), -1e308, "", "x", "batch", "../../etc/passwd", "\x1b]0;title\x07", "x" * 3000, "\u202e", b"",
    b"\xff" * 9, [], [[]], {}, {"a": {}}, [None] * 300, [1] * 40, "int8", "raw+zstd", "fp16", "jpeg:90", "zip-bomb",
    "float64", "int64", "object", [0, 2**62], [2**31, 2**31],
)  # fmt: skip


def _bits(random: Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _noise(random: Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    at = random.randrange(len(changed))
    run = random.randbytes(random.choice((1, 4, 8, 64)))
    changed[at : at + len(run)] = run
    return bytes(changed)


def _prefix(random: Random, frame: bytes) -> bytes:
    fields = list(_PREFIX.unpack_from(frame))
    which = random.randrange(1, len(fields))
    most = (2**8, 2**8, 2**8, 2**8, 2**32, 2**32, 2**64)[which - 1]
    near = fields[which] + random.choice((-1, 1, 4, -4, 64))
    fields[which] = random.choice((*_SIZES, near, 2**64 - 1, random.randrange(most))) % most
    return _PREFIX.pack(*fields) + frame[PREFIX_BYTES:]


def _shorter(random: Random, frame: bytes) -> bytes:
    return frame[: random.randrange(1, len(frame))]


def _longer(random: Random, frame: bytes) -> bytes:
    at = random.randrange(len(frame))
    return frame[:at] + random.randbytes(random.choice((1, 24, 500))) + frame[at:]


def _header(random: Random, frame: bytes) -> bytes:
    """Another value somewhere in the header, in a frame that is otherwise whole."""
    fields = list(_PREFIX.unpack_from(frame))
    end = PREFIX_BYTES + fields[-2]
    try:
        tree = msgspec.msgpack.decode(frame[PREFIX_BYTES:end])
        encoded = msgspec.msgpack.encode(_changed(random, tree))
    except (msgspec.MsgspecError, UnicodeError, OverflowError, TypeError):
        return _bits(random, frame)  # it was damaged before
    fields[-2] = len(encoded)
    return _PREFIX.pack(*fields) + encoded + frame[end:]


def _changed(random: Random, tree: Any) -> Any:
    deeper = random.random() < 0.8
    if isinstance(tree, dict) and tree and deeper:
        key = random.choice(list(tree))
        if random.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: _changed(random, tree[key])}
    if isinstance(tree, list) and tree and deeper:
        k = random.randrange(len(tree))
        if random.random() < 0.1:
            return tree[:k] + tree[k : k + 1] * random.choice((0, 2, 300, 5000)) + tree[k + 1 :]
        return [*tree[:k], _changed(random, tree[k]), *tree[k + 1 :]]
    if type(tree) is int and random.random() < 0.5:
        return tree + random.choice((-1, 1, 4))
    return random.choice(_ODD)


def _body(random: Random, frame: bytes) -> bytes:
    """Other bytes as the body, as many as it says or not."""
    fields = list(_PREFIX.unpack_from(frame))
    end = PREFIX_BYTES + fields[-2]
    here = min(max(0, len(frame) - end), 1 << 16)
    body = random.randbytes(here if random.random() < 0.5 else random.randrange(2000))
    fields[-1] = len(body)
    return _PREFIX.pack(*fields) + frame[PREFIX_BYTES:end] + body


#: Those that leave the rest of the conversation readable are more frequent: there is more to find behind them.
_DAMAGE: tuple[Callable[[Random, bytes], bytes], ...] = (
    _bits, _bits, _noise, _prefix, _prefix, _shorter, _longer, _body, _body, *(_header,) * 7,
)  # fmt: skip


class Conversation(NamedTuple):
    """`opening` is what is answered before the `rest` is said: otherwise no tail would be open yet."""

    opening: Sequence[bytes]
    rest: Sequence[bytes]


def damaged(random: Random, said: Sequence[Sequence[bytes]]) -> Conversation:
    """A conversation of about ten frames from those of `said`, with damage in some."""
    greeting, *frames = random.choice(said)
    opens = [frame for frame in frames if frame[_KIND_AT] == Kind.OPEN]
    others = [frame for frame in frames if frame[_KIND_AT] not in (Kind.OPEN, Kind.BYE)]
    rest = [others[k] for k in sorted(random.sample(range(len(others)), min(_FRAMES, len(others))))]
    if random.random() < 0.3:  # something of another conversation, or of another moment
        rest.insert(random.randrange(len(rest) + 1), random.choice(random.choice(said)))
    if random.random() < 0.2:
        random.shuffle(rest)
    share = random.choice((0.1, 0.3, 1.0))
    rest = [_hurt(random, frame) if random.random() < share else frame for frame in rest]
    opening = [frame if random.random() < 0.95 else _hurt(random, frame) for frame in (greeting, *opens)]
    return Conversation(opening, rest)


def _hurt(random: Random, frame: bytes) -> bytes:
    for _ in range(random.choice((1, 1, 1, 2))):
        if len(frame) > PREFIX_BYTES:
            frame = random.choice(_DAMAGE)(random, frame)
    return frame


# --- the attack -----------------------------------------------------------------------------------------------------


class Tally(msgspec.Struct):
    """What came of an attack: answers by kind (``END``: an ERROR that ends the conversation), and what got stuck."""

    frames: int = 0
    conversations: int = 0
    nbytes: int = 0
    answers: Counter[str] = msgspec.field(default_factory=Counter)
    stuck: list[str] = msgspec.field(default_factory=list)


def attack(address: str, said: Sequence[Sequence[bytes]], *, frames: int, seed: int, threads: int = 4) -> Tally:
    """Sends about `frames` frames of damaged conversations, the same for the same seed and number of threads."""
    tally, lock = Tally(), threading.Lock()

    def work(number: int) -> None:
        random = Random(f"{seed}/{number}")
        left = frames // threads
        while left > 0:
            conversation = damaged(random, said)
            count = len(conversation.opening) + len(conversation.rest)
            left -= count
            source = f"127.0.0.{random.randrange(2, 250)}"
            answer, why = _talk(address, source, conversation, abrupt=random.random() < 0.02)
            with lock:
                tally.conversations += 1
                tally.frames += count
                tally.nbytes += sum(map(len, (*conversation.opening, *conversation.rest)))
                tally.answers.update(_kinds(answer))
                if why:
                    tally.stuck.append(f"{why} (seed {seed}/{number}, conversation {tally.conversations})")

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as exc:  # an attack that is not made is no success
            tally.stuck.append(f"thread {number} failed: {exc!r}")

    workers = [threading.Thread(target=guarded, args=(k,), daemon=True) for k in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return tally


def _talk(address: str, source: str, conversation: Conversation, *, abrupt: bool) -> tuple[bytes, str]:
    """(what the server says, and how it got stuck, if it did)."""
    heard, left = bytearray(), memoryview(b"".join(conversation.opening))
    rest, replies = b"".join(conversation.rest), len(conversation.opening)
    with _dial(address, source) as sock:
        quiet_since = monotonic()
        poll = select.poll()
        while True:
            poll.register(sock, select.POLLIN | (select.POLLOUT if left else 0))
            came = sum(event for _, event in poll.poll(200 if rest else 1000))
            writes, reads = came & select.POLLOUT, came & ~select.POLLOUT
            try:
                if writes:
                    left = left[sock.send(left) :]
                if reads:
                    part = sock.recv(1 << 18)
                    if not part:
                        return bytes(heard), ""
                    heard += part
                if rest and not left and (not (reads or writes) or _replies(heard) >= replies):
                    left, rest = memoryview(rest), b""
                elif writes and not left and not rest:
                    if abrupt:  # a reset, with whatever the server still had to say
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
                        return bytes(heard), ""
                    sock.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                continue
            except OSError:  # a reset: it was not interested in the rest
                return bytes(heard), ""
            if reads or writes:
                quiet_since = monotonic()
            elif monotonic() - quiet_since > STUCK_S:
                return bytes(heard), "the server neither answers nor ends"
            if len(heard) > _MOST_READ:
                return bytes(heard), f"the server said {len(heard)} bytes"


def _replies(heard: bytearray) -> int:
    return sum(1 for _ in _kinds(heard))


def _kinds(heard: bytes | bytearray) -> Iterator[str]:
    """The kinds of the frames in what was heard, of which the last may be cut off; ``other`` for what is no frame."""
    at = 0
    while at + PREFIX_BYTES <= len(heard):
        magic, _, _, kind, _, id, header_bytes, body_bytes = _PREFIX.unpack_from(heard, at)
        if magic != MAGIC:
            yield "other"  # a word in HTTP
            return
        yield "END" if kind == Kind.ERROR and not id else _KINDS.get(kind, "unknown")
        at += PREFIX_BYTES + header_bytes + body_bytes


def _dial(address: str, source: str) -> socket.socket:
    """From another address each time: one client may not have that many connections, nor tails."""
    sock = socket.socket()
    try:
        sock.settimeout(STUCK_S)
        sock.setsockopt(socket.IPPROTO_IP, _BIND_LATER, 1)
        sock.bind((source, 0))
        sock.connect(parse_address(address))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def honest(address: str, *, at: str, cache: Path) -> None:
    """Asks as a device would. AssertionError if the answer is not the whole model's; SplitpointError if none comes."""
    with Edge(address, at=at, cache=cache) as edge:
        inputs = samples_for(edge.model, 1)[0]
        result = edge.infer(inputs)
        expected = edge.infer(inputs, at=edge.model.graph.cut("output"))
        for name, array in expected.outputs.items():
            np.testing.assert_allclose(result.outputs[name], array, rtol=1e-4, atol=1e-5)


def main(models: list[str]) -> None:
    """Serves `models` until standard input ends; prints the address, and then what must never happen."""
    from splitpoint.engines import open_engine
    from splitpoint.models import load
    from splitpoint.runtime.server.server import Server

    def tell(event: Event) -> None:
        if event.kind == "failed" or "internal" in event.sentence:
            print(event.sentence, flush=True)

    loaded = [load(model) for model in models]
    with Server(loaded, engine=open_engine(threads=1), port=0, limits=LIMITS, on_event=tell) as server:
        print(server.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
