"""A client that hypothesis leads through the states of a conversation, and what must hold after every step.

    run_state_machine_as_test(partial(Attack, target), settings=…)

Up to eight connections say what a device could say, in any order and with anything wrong about it; beside them an
honest device asks after every step, and must be answered with what the whole model gives. `Talk` is the protocol's own
bookkeeping, from docs/wire-format.md: what was asked is answered exactly once, or the connection ends with a reason.

As a program this is a server to be attacked, which tells its books when it is asked (`make fuzz`).
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

if __name__ == "__main__":  # a program has no conftest
    sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import certificates
import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis.stateful import initialize, invariant
from steps import Stepping, kept, step

import nets
from splitpoint.codecs import open_codec
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, SplitpointError
from splitpoint.graph import Cut
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.security import Security, ServerSecurity
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.transports.addresses import parse_address
from splitpoint.wire import CHECKED, PIPELINED, PREFIX_BYTES, Kind, Limits

LIMITS = Limits(
    header_bytes=1 << 18,
    tensor_bytes=4 << 20,
    frame_bytes=8 << 20,
    memory_bytes=32 << 20,
    backlog_bytes=1 << 20,
    blob_chunk=1 << 16,
    in_flight=8,
    connections=32,
    client_connections=8,
    queue=32,
    segments=12,
    handshake_s=1.0,
    stall_s=1.0,
    profile_s=0.05,
)
#: A server that has not answered, ended or become quiet for so long is stuck.
STUCK_S = 20.0
_MOST_TALKS = 8
_ABRUPT = struct.pack("ii", 1, 0)
_PREFIX = struct.Struct("<4sBBBBIIQ")
_ANSWERS = {
    Kind.HELLO: Kind.WELCOME,
    Kind.PING: Kind.PONG,
    Kind.PROBE: Kind.PROBED,
    Kind.GRAPH: Kind.GRAPH_DATA,
    Kind.BLOB: Kind.BLOB_DATA,
    Kind.OPEN: Kind.OPENED,
    Kind.PROFILE: Kind.PROFILED,
    Kind.INFER: Kind.RESULT,
}

# --- the server -----------------------------------------------------------------------------------------------------


class Books(NamedTuple):
    """What a server holds for others, as it says itself. `bad`: events that must never be."""

    connections: int
    reserved_nbytes: int
    in_flight: int
    waiting: int
    running: int
    open_tails: int
    queued_nbytes: int
    threads: Sequence[str]
    fds: int
    bad: Sequence[str]

    @classmethod
    def parse(cls, line: str) -> Books:
        """Those that another process has told."""
        return cls(*json.loads(line))


def books(server: Server, told: Sequence[Event]) -> Books:
    """Those of `server`, all of whose events are in `told`."""
    peers, tails = list(server._peers), list(server.services.runner.tails._known.values())
    # A compiled tail that runs apart has a process, and two pipes to it, for as long as it is in the cache.
    pipes = 2 * sum(t.apart and t.session is not None for t in tails)
    return Books(
        len(peers),
        server.ledger.held_nbytes,
        sum(len(p.requests.in_flight) for p in peers),
        server.services.runner.compute.waiting,
        sum(t.users for t in tails),
        sum(t.open for t in tails),
        sum(p.connection._queued for p in peers),
        sorted(t.name.split()[0] for t in threading.enumerate() if t.name.startswith(("peer ", "write ", "profile"))),
        len(os.listdir("/proc/self/fd")) - pipes,
        [e.sentence for e in told if e.kind == "failed" or "internal" in e.sentence],
    )


@dataclass
class Target:
    """A server under attack, from the outside, and the honest device that it must go on serving."""

    address: str
    models: Sequence[Model]
    look: Callable[[], Books]
    guarded: bool
    honest: Edge
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    cache: Path
    rest: Books | None = None
    answers: Counter[str] = field(default_factory=Counter)

    def serves(self) -> None:
        """The honest device is answered, with what the whole model gives: at once, or when it asks again."""
        _same(_patiently(lambda: self.honest.infer(self.inputs).outputs), self.expected)

    def greets(self) -> None:
        """So is one that comes now."""

        def ask() -> Mapping[str, Array]:
            with Edge(self.address, self.models[0], at="conv2", cache=self.cache, security=security(self.guarded)) as e:
                return e.infer(self.inputs).outputs

        _same(_patiently(ask), self.expected)

    def rests(self) -> None:
        """Nothing is held for those who have left."""
        if self.rest is None:
            self.rest = self.look()
        end = time.monotonic() + STUCK_S
        while (left := self._left(self.look())) and time.monotonic() < end:
            time.sleep(0.005)
        assert not left, left

    def _left(self, now: Books) -> str:
        rest = self.rest
        assert rest is not None
        assert not now.bad, now.bad
        # What is there at first may be more than at rest: a thread of somebody turned away that is not over yet.
        no_more = all(a <= b for a, b in zip(now[:7], rest[:7], strict=True))
        no_more = no_more and len(now.threads) <= len(rest.threads) and now.fds <= rest.fds
        return "" if no_more else f"left behind: {now}, which was {rest}"


def security(guarded: bool) -> Security:
    """How a device speaks with the server that is guarded, or with the other one."""
    return certificates.client(token=certificates.TOKEN) if guarded else Security()


def _patiently(ask: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
    end = time.monotonic() + STUCK_S
    while True:
        try:
            return ask()
        except BusyError as exc:
            if time.monotonic() > end:
                raise
            time.sleep(min(exc.retry_after_s, 0.05))


def _same(got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


def models() -> list[Model]:
    """What is served: a network with a free batch, and one with shape vectors."""
    return [load("zoo:lenet5"), nets.load(nets.wide_shapes())]


@contextmanager
def serving(who: ServerSecurity | None) -> Iterator[tuple[Server, list[Event]]]:
    """A server with `models`, and its events."""
    told: list[Event] = []
    served, engine = models(), open_engine(threads=1)
    with Server(served, engine=engine, port=0, limits=LIMITS, security=who, on_event=told.append) as made:
        yield made, told


@contextmanager
def attacked(address: str, look: Callable[[], Books], cache: Path, *, guarded: bool) -> Iterator[Target]:
    """The target at `address`, with its honest device."""
    known = models()
    inputs = samples_for(known[0], 1)[0]
    with Edge(address, known[0], at="pool1", cache=cache, security=security(guarded)) as honest:
        expected = honest.infer(inputs, at="output").outputs
        honest.infer(inputs)
        target = Target(address, known, look, guarded, honest, inputs, expected, cache)
        target.greets()
        yield target


# --- one conversation -----------------------------------------------------------------------------------------------


class Talk:
    """A connection and its books: what was asked and not answered yet, by id, and why it ended."""

    def __init__(self, address: str, source: str, context: ssl.SSLContext | None, tally: Counter[str]) -> None:
        self.tally = tally
        self.sock = socket.create_connection(parse_address(address), STUCK_S, (source, 0))
        self.alive = True
        self.reason = ""
        self.abrupt = False  # it may end without a word: so did we, or we do not listen
        self.listens = True
        self.seals = False  # its frames end with a checksum
        self.half = b""  # the rest of a frame that was begun
        self.asked: dict[int, Counter[int]] = {}
        self.segments: list[tuple[int, list[tuple[str, list[int]]], int]] = []
        self.opening: dict[int, int] = {}
        self.fresh = 10
        self.log: deque[str] = deque(maxlen=30)
        self._out, self._in = bytearray(), bytearray()
        if context is not None:
            try:
                self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
            except OSError as exc:  # no room
                self._over(str(exc))
        if self.alive:
            self.sock.setblocking(False)

    # --- saying -----------------------------------------------------------------------------------------------------

    def say(self, kind: int, id: int, header: Any, body: bytes = b"", flags: int = 0, *, part: float = 1.0) -> None:
        """A frame, or the first `part` of it: the rest may follow."""
        encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
        nbytes, flags = len(body) + 4 * self.seals, flags | CHECKED * self.seals
        whole = _PREFIX.pack(b"\xf5SPT", 1, 2, kind, flags, id, len(encoded), nbytes) + encoded + body
        if self.seals:
            whole += crc32(whole).to_bytes(4, "little")
        self.abrupt = self.abrupt or kind == Kind.BYE
        if kind not in (Kind.CLOSE, Kind.BYE):
            self.asked.setdefault(id, Counter())[kind] += 1
        end = max(1, int(len(whole) * part))
        self.log.append(f"said {kind} {id}, {end} of {len(whole)} bytes")
        self.half = whole[end:]
        self.raw(whole[:end])

    def raw(self, data: bytes) -> None:
        self._out += data
        self.pump(lambda: not self._out, 0.05 if not self.listens else STUCK_S)

    def finish(self) -> None:
        """The rest of what was begun."""
        rest, self.half = self.half, b""
        self.raw(rest)

    # --- hearing ----------------------------------------------------------------------------------------------------

    def pump(self, done: Callable[[], bool], seconds: float) -> bool:
        """Sends, and receives if it listens, until `done`; whether that came before `seconds` had passed."""
        poll, end = select.poll(), time.monotonic() + seconds
        while self.alive and not done():
            if time.monotonic() >= end:
                return False
            pending = getattr(self.sock, "pending", int)()
            poll.register(self.sock, (select.POLLIN if self.listens else 0) | (select.POLLOUT if self._out else 0))
            came = sum(event for _, event in poll.poll(0 if pending else 20))
            try:
                if self._out and came & select.POLLOUT:
                    del self._out[: self.sock.send(self._out[:65536])]
                if pending or came & ~select.POLLOUT:
                    self._hear()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                continue
            except OSError as exc:  # what was said before is still there to be read
                with suppress(OSError):
                    while self.alive:
                        self._hear()
                self._over(f"{exc}")
        return True

    def _hear(self) -> None:
        if not self.listens:
            return self._over("hung up on while it did not listen")
        data = self.sock.recv(1 << 18)
        if not data:
            return self._over("")
        self._in += data
        while len(self._in) >= PREFIX_BYTES:
            magic, _, _, kind, _, id, header_bytes, body_bytes = _PREFIX.unpack_from(self._in)
            assert magic == b"\xf5SPT", "the server says something that is no frame"
            end = PREFIX_BYTES + header_bytes + body_bytes
            if len(self._in) < end:
                break
            header = msgspec.msgpack.decode(bytes(self._in[PREFIX_BYTES : PREFIX_BYTES + header_bytes]))
            del self._in[:end]
            self._heard(kind, id, header)

    def _heard(self, kind: int, id: int, header: Any) -> None:
        self.log.append(f"heard {Kind(kind).name} {id}")
        self.tally[Kind(kind).name if id or kind != Kind.ERROR else "END"] += 1
        if kind == Kind.BYE:
            self.reason = header.get("reason") or "bye"
            return
        if kind == Kind.ERROR and not id:
            self.reason = header["message"]
            if not self.asked.get(0):
                return
        asked = self.asked.get(id, Counter())
        assert asked, f"{Kind(kind).name} {id} answers nothing that was asked: {self.log}"
        wanted = [k for k in asked if _ANSWERS.get(Kind(k) if k in list(Kind) else Kind.ERROR) == kind]
        assert wanted or kind in (Kind.ERROR, Kind.BUSY), f"{Kind(kind).name} {id} answers {asked}: {self.log}"
        one = wanted[0] if wanted else next(iter(asked))
        asked[one] -= 1
        if not asked[one]:
            del asked[one]
        if not asked:
            del self.asked[id]
        if kind == Kind.OPENED:
            specs = [(dtype, [n if isinstance(n, int) else 0 for n in shape]) for _, dtype, shape in header["inputs"]]
            vectors = self.opening.pop(id, 0)
            self.segments.append((header["segment"], specs[: len(specs) - vectors], vectors))

    def _over(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.reason = self.reason or why if self.abrupt or not self.listens else self.reason
        self.sock.close()
        assert self.reason or self.abrupt or self.half or not self.listens, (
            f"it ended without a reason: {why} {self.log}"
        )

    def settle(self) -> None:
        """All that was asked is answered, or the connection has ended."""
        self.listens = True
        if not self.half:
            done = self.pump(lambda: not self.asked and not self._out, STUCK_S)
            assert done, f"no answer to {self.asked}, {len(self._out)} bytes not taken: {self.log}"

    def close(self, *, reset: bool = False) -> None:
        self.abrupt = True
        if self.alive and reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
        self.alive = False
        self.sock.close()


# --- what may be said -----------------------------------------------------------------------------------------------

which = st.integers(0, _MOST_TALKS - 1)
numbers = st.sampled_from([0, 1, 2, 7, 63, 64, 65, 4096, 65536, 2**31 - 1, 2**32, 2**62, 2**63 - 1])
ids = st.sampled_from([*[-1] * 12, 0, 5, 5, 2**32 - 1])  # -1: one of its own
parts = st.sampled_from([*[1.0] * 27, 0.999, 0.5, 0.1])
texts = st.sampled_from(["", "x", "\x1b]0;t\x07", "\u202e", "../../etc/passwd", "n" * 3000, "=cmd|' /C calc'!A0"])
odd = st.sampled_from([b"", b"\xc0", b"\xdd\xff\xff\xff\xff", b"\x91" * 2000 + b"\xc0", b"\x80", b"\x90", bytes(40)])
seconds = st.sampled_from([0.0, 0.0, 0.0, 1e-9, 0.05, 1e9, -1.0, float("nan"), float("inf")])
damage = st.sampled_from(
    [*[""] * 20, "rows", "dtype", "rank", "size", "wide", "fewer", "more", "segment", "vector", "vectors"]
)
codecs = st.sampled_from(["", "", "", "", "fp16", "int8", "int4", "int8+zstd", "raw+zstd", "jpeg:90", "nonsense"])
boundaries = st.sampled_from(["cut", "cut", "cut", "cut", "inner", "names", "many", "twice", "empty", "other model"])


class Attack(Stepping):
    """Whatever a client can do, on several connections at once."""

    def __init__(self, target: Target, wrong: list[str]) -> None:
        super().__init__(wrong)
        self.target = target
        self.talks: list[Talk] = []
        self.made = 0
        target.rests()

    @kept
    def teardown(self) -> None:
        try:
            for talk in self.talks:
                if talk.alive:
                    talk.settle()
        finally:
            for talk in self.talks:
                talk.close()
            gc.collect()
        self.target.rests()

    @invariant()
    @kept
    def an_honest_device_is_served(self) -> None:
        self.target.serves()
        now = self.target.look()
        assert not now.bad, now.bad
        assert now.reserved_nbytes <= LIMITS.memory_bytes
        # Each is read from no further once so much waits for it: beyond that there is what was being answered.
        assert now.queued_nbytes <= _MOST_TALKS * (LIMITS.backlog_bytes + LIMITS.tensor_bytes)

    def talk(self, k: int) -> Talk:
        """One that is not in the middle of a frame; one that has a tail of each model open, if there is none."""
        alive = [t for t in self.talks if t.alive and not t.half]
        return alive[k % len(alive)] if alive else self.ready()

    @initialize()
    @kept
    def begins(self) -> None:
        """As a device does: what comes of it does not hang on the draw."""
        talk = self.ready()
        for number, specs, vectors in talk.segments:
            self.infer(talk, number, specs, [[16, 8], [8 * 16]][:vectors])
        talk.settle()

    def ready(self) -> Talk:
        """One that a device could be."""
        token = {"token": certificates.TOKEN} if self.target.guarded else {}
        talk = self.connect()
        talk.say(Kind.HELLO, 0, {"version": [1, 2], **token})
        talk.settle()
        for model, cut in zip(self.target.models, ("pool1", "mean"), strict=True):
            self.open(talk, model, model.graph.cut(cut))
        talk.settle()
        return talk

    def connect(self, *, encrypted: bool = True) -> Talk:
        self.talks = [t for t in self.talks if t.alive]
        if len(self.talks) >= _MOST_TALKS:
            self.talks.pop(0).close()
        context = ssl.create_default_context(cafile=str(certificates.keys().ca)) if self.target.guarded else None
        self.made += 1
        source = f"127.0.0.{2 + self.made % 7}"
        talk = Talk(self.target.address, source, context if encrypted else None, self.target.answers)
        self.talks.append(talk)
        return talk

    def id_of(self, talk: Talk, id: int) -> int:
        talk.fresh += 1
        return talk.fresh if id < 0 else id

    # --- coming -----------------------------------------------------------------------------------------------------

    @step(
        encrypted=st.sampled_from([True, True, True, False]),
        token=st.sampled_from(["right", "right", "right", "wrong", "none", "odd"]),
        part=parts,
        features=st.sampled_from([[], [], [], ["codec:int8"], ["crc32"], ["crc32"], ["x"] * 5000]),
    )
    def comes(self, encrypted: bool, token: str, part: float, features: list[str]) -> None:
        talk = self.connect(encrypted=encrypted)
        hello: dict[str, Any] = {"version": [1, 2], "features": features}
        if self.target.guarded or token in ("wrong", "odd"):
            secret = {"right": certificates.TOKEN, "wrong": "x" * 40, "odd": "\u202e" * 2000}.get(token)
            hello |= {"token": secret} if secret else {}
        if talk.alive:
            talk.say(Kind.HELLO, 0, hello, part=part)
            talk.seals = "crc32" in features
            if part == 1.0:
                talk.settle()

    @step(k=which, header=odd, kind=st.sampled_from([*map(int, Kind), 0, 9, 200]), id=ids, body=st.booleans())
    def says_something_odd(self, k: int, header: bytes, kind: int, id: int, body: bool) -> None:
        if (talk := self.talk(k)).alive:
            talk.say(kind, self.id_of(talk, id), header, bytes(300) if body else b"")

    @step(k=which)
    def says_hello_again(self, k: int) -> None:
        if (talk := self.talk(k)).alive:
            talk.say(Kind.HELLO, self.id_of(talk, -1), {"version": [1, 2]})
            talk.settle()

    # --- tails ------------------------------------------------------------------------------------------------------

    @step(
        k=which,
        model=st.integers(0, 1),
        cut=st.integers(0, 20),
        how=boundaries,
        id=ids,
        part=parts,
        waits=st.booleans(),
    )
    def opens(self, k: int, model: int, cut: int, how: str, id: int, part: float, waits: bool) -> None:
        talk = self.talk(k)
        named = self.target.models[model]
        chain = [c for c in named.graph.chain() if c.name != "output"]
        at = chain[cut % len(chain)]
        inputs, outputs, vectors = boundary(named, at)
        if how == "inner":
            outputs = [t.name for t in chain[-1].crossing]
        elif how == "names":
            inputs = [f"made up {n}" for n in range(300)]
        elif how == "many":
            inputs, vectors = ["x" * 40 + str(n) for n in range(4096)], [str(n) for n in range(4096)]
        elif how == "twice":
            inputs, outputs = inputs * 3, outputs * 3
        elif how == "empty":
            inputs, outputs = [], []
        elif how == "other model":
            named = self.target.models[1 - model]
        self.open(talk, named, at, id, part, inputs=inputs, outputs=outputs, vectors=vectors)
        if waits:
            talk.settle()

    def open(
        self, talk: Talk, model: Model, cut: Cut, id: int = -1, part: float = 1.0, **wanted: Sequence[str]
    ) -> None:
        wanted = wanted or dict(zip(("inputs", "outputs", "vectors"), boundary(model, cut), strict=True))
        id = self.id_of(talk, id)
        talk.opening[id] = len(wanted["vectors"])
        talk.say(Kind.OPEN, id, {"fingerprint": model.fingerprint, **wanted}, part=part)

    @step(k=which, number=numbers, times=st.sampled_from([1, 1, 2, 30]), known=st.booleans())
    def closes(self, k: int, number: int, times: int, known: bool) -> None:
        if (talk := self.talk(k)).alive:
            if known and talk.segments:
                number = talk.segments.pop(number % len(talk.segments))[0]
            for _ in range(times):
                talk.say(Kind.CLOSE, 0, {"segment": number})

    @step(
        k=which,
        segment=which,
        rows=st.sampled_from([1, 1, 1, 2, 16, 200, 0]),
        wrong=damage,
        codec=codecs,
        id=ids,
        flags=st.sampled_from([0, 1, 1, 2, 255]),
        deadline_s=seconds,
        times=st.sampled_from([1, 1, 1, 3, 20]),
        part=parts,
        waits=st.booleans(),
    )
    def infers(
        self, k: int, segment: int, rows: int, wrong: str, codec: str, id: int, flags: int, deadline_s: float,
        times: int, part: float, waits: bool,
    ) -> None:  # fmt: skip
        talk = self.talk(k)
        number, specs, vectors = talk.segments[segment % len(talk.segments)] if talk.segments else (1, [], 0)
        number = 4711 if wrong == "segment" else number
        tensors, bodies = [], []
        for dtype, shape in specs:
            sizes = [n or rows for n in shape]
            sizes = {"rows": [3, *sizes[1:]], "rank": [*sizes, 1], "wide": [2**31, 2**31, 0]}.get(wrong, sizes)
            kind = "float64" if wrong == "dtype" else dtype
            body, name = encoded(kind, sizes if wrong != "wide" else [0], codec)
            tensors.append([kind, sizes, len(body) + (wrong == "size"), name])
            bodies.append(body)
        if wrong == "fewer":
            tensors, bodies = tensors[1:], bodies[1:]
        elif wrong == "more":
            tensors, bodies = tensors * 2, bodies * 2
        numbers = [[rows, 8], [8 * rows]][:vectors]
        numbers = {"vector": [[2**31, -(2**40)]] * vectors, "vectors": [[1] * 64] * 9}.get(wrong, numbers)
        for _ in range(times):
            if talk.alive and not talk.half:
                header = [number, tensors, numbers, deadline_s]
                talk.say(Kind.INFER, self.id_of(talk, id), header, b"".join(bodies), flags & ~2, part=part)
        if waits:
            talk.settle()

    def infer(
        self, talk: Talk, number: int, specs: Sequence[tuple[str, Sequence[int]]], vectors: Sequence[Sequence[int]]
    ) -> None:
        """What an honest device asks with sixteen rows, and others to follow."""
        shapes = [(dtype, [n or 16 for n in shape]) for dtype, shape in specs]
        bodies = [encoded(dtype, shape, "")[0] for dtype, shape in shapes]
        tensors = [[dtype, shape, len(body), ""] for (dtype, shape), body in zip(shapes, bodies, strict=True)]
        if talk.alive and not talk.half:
            talk.say(Kind.INFER, self.id_of(talk, -1), [number, tensors, vectors], b"".join(bodies), PIPELINED)

    # --- all else ---------------------------------------------------------------------------------------------------

    @step(k=which, id=ids, times=st.sampled_from([1, 1, 200]), clock=seconds, part=parts)
    def pings(self, k: int, id: int, times: int, clock: float, part: float) -> None:
        if (talk := self.talk(k)).alive:
            for _ in range(times if part == 1.0 else 1):
                talk.say(Kind.PING, self.id_of(talk, id), [clock], part=part)

    @step(k=which, id=ids, times=st.sampled_from([1, 20]), reply=numbers, body=st.sampled_from([0, 1, 4096, 70000]))
    def probes(self, k: int, id: int, times: int, reply: int, body: int) -> None:
        if (talk := self.talk(k)).alive:
            for _ in range(times):
                talk.say(Kind.PROBE, self.id_of(talk, id), [reply], bytes(body))

    @step(k=which, id=ids, model=st.integers(0, 2), times=st.sampled_from([1, 50]))
    def asks_for_the_graph(self, k: int, id: int, model: int, times: int) -> None:
        if (talk := self.talk(k)).alive:
            for _ in range(times):
                talk.say(Kind.GRAPH, self.id_of(talk, id), {"fingerprint": self.fingerprint(model)})

    @step(k=which, id=ids, blob=numbers, offset=numbers, length=numbers, times=st.sampled_from([1, 10]))
    def asks_for_weights(self, k: int, id: int, blob: int, offset: int, length: int, times: int) -> None:
        if (talk := self.talk(k)).alive:
            hashes = [*self.target.models[0].blobs, "0" * 64, "\u202e"]
            header = {"fingerprint": self.fingerprint(0), "hash": hashes[blob % len(hashes)], "offset": offset}
            for _ in range(times):
                talk.say(Kind.BLOB, self.id_of(talk, id), header | {"length": length})

    @step(
        k=which, id=ids, budget_s=seconds, fresh=st.booleans(), model=st.integers(0, 2), times=st.sampled_from([1, 12])
    )
    def asks_for_a_profile(self, k: int, id: int, budget_s: float, fresh: bool, model: int, times: int) -> None:
        if (talk := self.talk(k)).alive:
            header = {"fingerprint": self.fingerprint(model), "budget_s": budget_s, "fresh": fresh}
            for _ in range(times):
                talk.say(Kind.PROFILE, self.id_of(talk, id), header)

    @step(k=which)
    def reads_no_more(self, k: int) -> None:
        if (talk := self.talk(k)).alive:
            talk.listens = False

    @step(k=which)
    def waits_for_its_answers(self, k: int) -> None:
        if (talk := self.talk(k)).alive:
            talk.settle()

    @step()
    def says_the_rest(self) -> None:
        for talk in [t for t in self.talks if t.alive and t.half][:1]:
            talk.finish()

    @step(k=which, how=st.sampled_from(["BYE", "end", "half", "reset"]), asks=st.booleans())
    def leaves(self, k: int, how: str, asks: bool) -> None:
        talk = self.talk(k)
        if asks and talk.segments:  # what it has asked for is still to be computed
            number, specs, vectors = talk.segments[0]
            for _ in range(LIMITS.in_flight):
                self.infer(talk, number, specs, [[16, 8], [128]][:vectors])
        talk.abrupt = True
        if how == "BYE":
            talk.say(Kind.BYE, 0, {"reason": "\x1b[2J"})
        elif how == "half":
            with suppress(OSError):
                socket.socket.shutdown(talk.sock, socket.SHUT_WR)  # an SSLSocket's own would forget the encryption
        else:
            talk.close(reset=how == "reset")

    @step()
    def another_device_comes(self) -> None:
        self.target.greets()

    def fingerprint(self, model: int) -> str:
        """Of a model that is served, or of none."""
        return self.target.models[model].fingerprint if model < len(self.target.models) else "\x1b" * 200


def boundary(model: Model, cut: Cut) -> tuple[list[str], list[str], list[str]]:
    """What OPEN names of the tail behind `cut`: inputs, outputs, shape vectors."""
    outputs = [t.name for t in model.outputs if t.name not in cut.results]
    return [t.name for t in cut.crossing], outputs, list(cut.shapes)


def encoded(dtype: str, shape: Sequence[int], codec: str) -> tuple[bytes, str]:
    """A tensor's bytes, and what they travel with: noise where the codec does not take it."""
    array = np.zeros([min(n, 300) for n in shape], np.dtype(dtype))
    if not codec:
        return array.tobytes(), ""
    with suppress(SplitpointError):
        return bytes(open_codec(codec).encode(array)), codec
    return bytes(range(64)), codec


# --- a process to be attacked ---------------------------------------------------------------------------------------


def main(certificate: Sequence[str]) -> None:
    """Serves until standard input ends: an address, and then its books for every line."""
    who = ServerSecurity(Path(certificate[0]), Path(certificate[1]), token=certificates.TOKEN) if certificate else None
    with serving(who) as (server, told):
        print(server.address, flush=True)
        for _ in sys.stdin:
            gc.collect()
            print(json.dumps(books(server, told)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
