"""An honest device while its server is attacked, by one kind of attacker after the other: what becomes of its times?

    python -m bench.load attacked                     # part of bench.load: every kind
    python -m bench.load attacked --attacks opens tiny --rounds 5 --seconds 8

Read this first. The server has one core; the honest device (this process, one real `Edge` that asks again as soon as it
is answered) and the attacker share the other, the attacker with the lowest priority (nice 19). It still takes some of
that core and of the caches. So there is a control: a process of the same priority that computes and never connects.
Quiet, control and attack take turns in every round, on the same server; each kind of attack has a server of its own.
The attacker comes from another address (127.0.0.2). A request that is told BUSY, or loses its connection, is asked
again, and its time goes on.

* *control*, *attacked*: the honest device's 99th percentile over its quiet one, with the interval in which 95 % of a
  bootstrap's ratios lie (percentiles of few hundred requests are uncertain).
* *lost*: requests without an answer when the phase had been over for ten seconds; their time counts until then.
* *did*: what the attacker has got done, in frames or connections.

The target: attacked ≤ 3 for every kind of attack.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

import splitpoint as sp
from bench.common import EDGE_CORE, pin
from bench.vitals import vitals
from splitpoint import wire
from splitpoint.codecs import open_codec
from splitpoint.errors import BusyError, SplitpointError
from splitpoint.lab.process import PIPES, Process
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.security import Security
from splitpoint.segments import samples_for
from splitpoint.transports.addresses import parse_address
from splitpoint.units import size
from splitpoint.wire import PIPELINED, PREFIX_BYTES, Kind, Limits

HONEST, TINY = "zoo:efficientnet_lite0", "zoo:lenet5"
SLOWER = 3.0
TOKEN = "a-token-for-a-benchmark"
_SOURCE = ("127.0.0.2", 0)
#: An answer that is this late will not come.
_LOST_S = 10.0
#: A connection to a server that says nothing is tried for so long.
_CONNECT_S = 2.0
#: Rows of the batch that `rows` sends as three kilobytes: as many as take a server without limits a gigabyte.
_ROWS = 20_000
_DRAWS = 1000

SERVE = """
import sys
from pathlib import Path
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import splitpoint as sp
from splitpoint.security import ServerSecurity
certificate, key, token, *models = sys.argv[1:]
security = ServerSecurity(Path(certificate), Path(key), token=token) if certificate else None
with sp.Server([sp.load(m) for m in models], engine=sp.open_engine(threads=1), port=0, security=security) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""

# --- attackers ------------------------------------------------------------------------------------------------------


class Foe:
    """A connection of an attacker. Never blocks once it has been greeted, and throws away what it hears."""

    def __init__(self, address: str, *, reads: bool = True, hello: bool = True) -> None:
        self.sock = socket.create_connection(parse_address(address), _CONNECT_S, _SOURCE)
        self.reads = reads
        self._out = bytearray()
        self.answers = 0
        self._in = bytearray()
        self.models: dict[str, str] = {}
        if hello:
            welcome = self.ask(Kind.HELLO, wire.Hello())
            assert isinstance(welcome, wire.Welcome), welcome
            self.models = {m.name: m.fingerprint for m in welcome.models}

    def ask(self, kind: int, header: wire.Message) -> wire.Message | None:
        """The header of the answer, waited for."""
        self.sock.settimeout(_LOST_S)
        self.sock.sendall(frame(kind, 1, header))
        prefix = wire.parse_prefix(self._exactly(PREFIX_BYTES), Limits())
        said = wire.parse_header(prefix, self._exactly(prefix.header_bytes))
        self._exactly(prefix.body_bytes)
        return said

    def _exactly(self, nbytes: int) -> bytes:
        data = self.sock.recv(nbytes, socket.MSG_WAITALL) if nbytes else b""
        if len(data) < nbytes:
            raise ConnectionError("hung up on")
        return data

    def open(self, model: Model, cut: str = "input") -> int:
        """The number of a tail."""
        said = self.ask(Kind.OPEN, opening(model, cut))
        assert isinstance(said, wire.Opened), said
        return said.segment

    def push(self, data: bytes) -> bool:
        """Sends as much as goes of `data` and what was left before; whether all is sent. OSError when it is over."""
        self.sock.setblocking(False)
        self._out += data
        with suppress(BlockingIOError):
            while self._out:
                del self._out[: self.sock.send(self._out[: 1 << 16])]
        if self.reads:
            with suppress(BlockingIOError):
                while part := self.sock.recv(1 << 18):
                    self._in += part
            self._count()
        return not self._out

    def _count(self) -> None:
        while len(self._in) >= PREFIX_BYTES:
            prefix = wire.parse_prefix(bytes(self._in[:PREFIX_BYTES]), Limits())
            end = PREFIX_BYTES + prefix.header_bytes + prefix.body_bytes
            if len(self._in) < end:
                return
            del self._in[:end]
            self.answers += 1


def frame(kind: int, id: int, header: wire.Message, body: bytes = b"", flags: int = 0) -> bytes:
    return bytes(wire.encode(kind, id, header, (), len(body), flags).buffers[0]) + body


def opening(model: Model, cut: str) -> wire.OpenRequest:
    place = model.graph.cut(cut)
    outputs = tuple(t.name for t in model.outputs)
    return wire.OpenRequest(model.fingerprint, tuple(t.name for t in place.crossing), outputs)


def crowd(address: str, many: int, begin: Callable[[Foe], None], **how: bool) -> Iterator[Foe | None]:
    """`many` connections, one after the other, over and over; None for one that is not let in, and comes again."""
    foes: list[Foe | None] = [None] * many
    for k in cycle(range(many)):
        foe = foes[k]
        try:
            if foe is None:
                foe = Foe(address, **how)
                begin(foe)
                foes[k] = foe
            yield foe
            foe.push(b"")
        except (OSError, AssertionError, SplitpointError):  # refused, or ended: it comes again
            if foe is not None:
                foe.sock.close()
            foes[k] = None
            sleep(0.002)
            yield None


def opens(address: str, folder: Path) -> Iterator[int]:
    """OPEN with 8,192 made-up names, on eight connections."""
    names = tuple(f"a made-up tensor, number {k}" for k in range(4096))
    for foe in crowd(address, 8, lambda _: None):
        if foe is not None:
            request = wire.OpenRequest(next(iter(foe.models.values())), names, ("x",), names)
            yield _said(foe, frame(Kind.OPEN, 7, request))
        else:
            yield 0


def cuts(address: str, folder: Path) -> Iterator[int]:
    """OPEN and CLOSE of every cut there is, on four connections."""
    known = [sp.load(HONEST), sp.load(TINY)]
    wanted = cycle([(m, c.name) for m in known for c in m.graph.chain() if c.name != "output"])
    for number, foe in zip(count(1), crowd(address, 4, lambda _: None)):
        closing = frame(Kind.CLOSE, 0, wire.Close(number // 4))
        yield 0 if foe is None else _said(foe, closing + frame(Kind.OPEN, number, opening(*next(wanted))))


def tiny(address: str, folder: Path) -> Iterator[int]:
    """126 connections that each have eight small requests under way."""
    model = sp.load(TINY)
    segments: dict[Foe, int] = {}

    def begin(foe: Foe) -> None:
        segments[foe] = foe.open(model)

    asked: dict[Foe, int] = {}
    for foe in crowd(address, 126, begin):
        if foe is None:
            yield 0
            continue
        foe.push(b"")
        due = foe.answers + 8 - asked.get(foe, 0)
        tensors = (wire.Tensor("uint8", (1, 32, 32, 1), 1024),)
        asked.setdefault(foe, 0)
        data = b""
        for _ in range(due):
            asked[foe] += 1
            header = wire.Infer(segments[foe], tensors)
            data += frame(Kind.INFER, 1 + asked[foe], header, bytes(1024), PIPELINED)
        foe.push(data)
        yield due


def silent(address: str, folder: Path) -> Iterator[int]:
    """Connections that say nothing, or HELLO a byte at a time, as many as are taken."""
    hello, foes = frame(Kind.HELLO, 1, wire.Hello(software="x" * 200)), []
    for number in count():
        with suppress(OSError):
            foes.append((Foe(address, hello=False), number))
        if len(foes) > 400:
            foes.pop(0)[0].sock.close()
        for foe, born in foes[:: max(1, len(foes) // 20)]:
            with suppress(OSError, IndexError):
                if born % 2:
                    foe.push(hello[(number - born) % len(hello) :][:1])
        sleep(0.01)
        yield 1


def unread(address: str, folder: Path) -> Iterator[int]:
    """GRAPH and PING by the thousand on sixteen connections, and nothing is read."""
    for foe in crowd(address, 16, lambda _: None, reads=False):
        if foe is not None:
            one = frame(Kind.GRAPH, 3, wire.GraphRequest(next(iter(foe.models.values()))))
            yield 200 * foe.push(one * 100 + frame(Kind.PING, 4, wire.Ping()) * 100)
        else:
            yield 0


def rows(address: str, folder: Path) -> Iterator[int]:
    """A free batch of 20,000 rows in three kilobytes, on four connections."""
    model = sp.load(TINY)
    body = bytes(open_codec("raw+zstd").encode(np.zeros((_ROWS, 32, 32, 1), np.uint8)))
    segments: dict[Foe, int] = {}

    def begin(foe: Foe) -> None:
        segments[foe] = foe.open(model)

    tensors = (wire.Tensor("uint8", (_ROWS, 32, 32, 1), len(body), "raw+zstd"),)
    for number, foe in zip(count(1), crowd(address, 4, begin)):
        if foe is not None:
            yield _said(foe, frame(Kind.INFER, number, wire.Infer(segments[foe], tensors), body, PIPELINED))
        else:
            yield 0


def loops(address: str, folder: Path) -> Iterator[int]:
    """Requests that say how many turns a loop is to make: 10^9."""
    model = sp.load(looping(folder))
    segments: dict[Foe, int] = {}

    def begin(foe: Foe) -> None:
        said = foe.ask(Kind.OPEN, wire.OpenRequest(model.fingerprint, ("x", "n"), ("y",)))
        assert isinstance(said, wire.Opened), said
        segments[foe] = said.segment

    tensors = (wire.Tensor("float32", (1, 4), 16), wire.Tensor("int64", (), 8))
    for number, foe in zip(count(1), crowd(address, 4, begin)):
        if foe is not None:
            body = bytes(16) + (10**9).to_bytes(8, "little")
            yield _said(foe, frame(Kind.INFER, number, wire.Infer(segments[foe], tensors), body, PIPELINED))
        else:
            yield 0


def handshakes(address: str, folder: Path) -> Iterator[int]:
    """TLS handshakes to the end and nothing more, one after the other."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    while True:
        try:
            with socket.create_connection(parse_address(address), _CONNECT_S, _SOURCE) as sock:
                context.wrap_socket(sock, server_hostname="localhost").close()
        except OSError:
            sleep(0.002)
            yield 0
        yield 1


def _said(foe: Foe, data: bytes) -> int:
    """1, if `data` could be sent at once: what comes back is read, and no more than a frame waits here."""
    if not foe.push(b""):
        sleep(0.001)
        return 0
    foe.push(data)
    return 1


Attack = Callable[[str, Path], Iterator[int]]
ATTACKS: Mapping[str, Attack] = {
    "opens": opens, "cuts": cuts, "tiny": tiny, "silent": silent, "unread": unread, "rows": rows, "loops": loops,
    "handshakes": handshakes,
}  # fmt: skip


def looping(folder: Path) -> str:
    """A network with a loop of as many turns as its input `n` says."""
    path = folder / "loop.onnx"
    if not path.exists():
        value = helper.make_tensor_value_info
        state = partial(value, elem_type=TensorProto.FLOAT, shape=[1, 4])
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Mul", ["s", "s"], ["s2"])],
            "body",
            [
                value("i", TensorProto.INT64, []),
                value("c", TensorProto.BOOL, []),
                value("s", TensorProto.FLOAT, [1, 4]),
            ],
            [value("c2", TensorProto.BOOL, []), value("s2", TensorProto.FLOAT, [1, 4])],
        )
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Loop", ["n", "", "h"], ["y"], body=body)],
            "loop",
            [state("x"), value("n", TensorProto.INT64, [])],
            [state("y")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def attack(kind: str, address: str, folder: Path) -> None:
    """In a process of its own: attacks until it is killed, and says now and then what it has done."""
    pin(EDGE_CORE)
    os.nice(19)
    print("ready", flush=True)
    sys.stdin.readline()
    done, told = 0, perf_counter()
    if kind == "control":
        while True:
            done += 1
    for more in ATTACKS[kind](address, folder):
        done += more
        if perf_counter() > told + 0.25:
            told = perf_counter()
            print(done, flush=True)


# --- the honest device ----------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """Milliseconds of each request, and how many were told BUSY (once or more), and had no answer."""

    ms: Sequence[float]
    busy: int = 0
    lost: int = 0

    def and_(self, other: Phase) -> Phase:
        return Phase([*self.ms, *other.ms], self.busy + other.busy, self.lost + other.lost)


class Honest:
    """A device that asks for the second half of `model`, and asks again."""

    def __init__(self, connect: Callable[[], Edge], model: Model) -> None:
        self._connect, self._inputs = connect, samples_for(model, 1)[0]
        self._edge: Edge | None = None

    def play(self, seconds: float) -> Phase:
        """Asks for `seconds`."""
        ms: list[float] = []
        busy = lost = 0
        end = perf_counter() + seconds
        while (began := perf_counter()) < end:
            was_busy = answered = False
            while not answered and perf_counter() < end + _LOST_S:
                try:
                    self._edge = self._edge or self._connect()
                    self._edge.infer(self._inputs)
                    answered = True
                except BusyError as exc:
                    was_busy = True
                    sleep(min(exc.retry_after_s, 0.2))
                except SplitpointError:
                    self.close()
                    sleep(0.02)
            ms.append((perf_counter() - began) * 1e3)
            busy += was_busy
            lost += not answered
        return Phase(ms, busy, lost)

    def close(self) -> None:
        if self._edge is not None:
            self._edge.close()
        self._edge = None


def ratio(phase: Phase, quiet: Phase, rng: np.random.Generator) -> tuple[float, float, float]:
    """The 99th percentile over the quiet one, and where 95 % of a bootstrap's ratios lie."""
    draws = [
        np.percentile(rng.choice(phase.ms, len(phase.ms)), 99) / np.percentile(rng.choice(quiet.ms, len(quiet.ms)), 99)
        for _ in range(_DRAWS)
    ]
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(np.percentile(phase.ms, 99) / np.percentile(quiet.ms, 99)), float(low), float(high)


# --- the measurement ------------------------------------------------------------------------------------------------


@contextmanager
def process(*command: str) -> Iterator[Process]:
    """A process of ours, killed at the end: a server that is attacked may not end by itself."""
    made = Process(subprocess.Popen([sys.executable, *command], **PIPES), command[1])
    try:
        yield made
    finally:
        made.process.kill()
        made.close()


HEAD = "attack         quiet p50/p99   control           attacked          p50    busy lost of   server's peak   did"


def measure(kinds: Sequence[str], rounds: int, seconds: float) -> bool:
    """Whether the target was met for all of `kinds`. Prints a row each."""
    from splitpoint.certificates import make

    met = True
    model = sp.load(HONEST)
    print(HEAD)
    with TemporaryDirectory() as name:
        folder = Path(name)
        keys = make(folder, ("localhost", "127.0.0.1"), now=datetime.now(timezone.utc))
        for kind in kinds:
            tls = kind == "handshakes"
            security = Security(ca=keys.ca, token=TOKEN) if tls else Security()
            shown = (str(keys.server), str(keys.server_key), TOKEN) if tls else ("", "", "")
            with process("-c", SERVE, *shown, HONEST, TINY, looping(folder)) as server:
                address = server.line(120)
                honest = Honest(partial(_edge, address, model, security), model)
                row = _row(kind, server.process.pid, address, folder, honest, rounds, seconds)
                with suppress(SplitpointError):
                    honest.close()
            print(row.line(kind), flush=True)
            met = met and row.attacked[0] <= SLOWER and not row.phases["attacked"].lost
    print(f"  target: attacked ≤ {SLOWER:g}, none lost: {'met' if met else 'MISSED'}", flush=True)
    return met


def _edge(address: str, model: Model, security: Security) -> Edge:
    return Edge(address, model, security=security, patience=Patience(answer_s=_LOST_S, connect_s=_CONNECT_S))


class _Row(NamedTuple):
    phases: Mapping[str, Phase]
    control: tuple[float, float, float]
    attacked: tuple[float, float, float]
    peak_nbytes: int
    did: int

    def line(self, kind: str) -> str:
        quiet, attacked = self.phases["quiet"], self.phases["attacked"]
        usual = "/".join(f"{v:.1f}" for v in np.percentile(quiet.ms, (50, 99)))
        ratios = "  ".join(f"{r:5.2f} [{low:.2f}-{high:.2f}]" for r, low, high in (self.control, self.attacked))
        counts = f"{attacked.busy:>5} {attacked.lost:>4} {len(attacked.ms):>4}"
        middle = f"{np.percentile(attacked.ms, 50):6.1f} ms"
        return f"{kind:<12} {usual:>11} ms  {ratios}  {middle} {counts}  {size(self.peak_nbytes):>10}  {self.did}"


def _row(kind: str, pid: int, address: str, folder: Path, honest: Honest, rounds: int, seconds: float) -> _Row:
    phases = {name: Phase([]) for name in ("quiet", "control", "attacked")}
    did = 0
    honest.play(2.0)
    for _ in range(rounds):
        phases["quiet"] = phases["quiet"].and_(honest.play(seconds))
        for name, what in (("control", "control"), ("attacked", kind)):
            with process("-m", "bench.attacked", what, address, str(folder)) as foe:
                foe.line(60)
                foe.say()
                honest.play(1.0)  # until it is in full swing
                phases[name] = phases[name].and_(honest.play(seconds))
                said = foe.said()
                did += int(said[-1]) if said and name == "attacked" else 0
            honest.play(2.0)  # what was still to be done for the attacker does not count as quiet
    rng = np.random.default_rng(0)
    ratios = [ratio(phases[name], phases["quiet"], rng) for name in ("control", "attacked")]
    return _Row(phases, ratios[0], ratios[1], vitals(pid).peak_nbytes, did)


if __name__ == "__main__":
    attack(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
