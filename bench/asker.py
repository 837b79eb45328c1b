"""A client process of `bench.soak`: asks in every way there is, counts what comes, and judges the answers.

    python -m bench.asker ADDRESS SEED VISITS        # 0: until standard input ends

Every half second it prints its counts as JSON; the last one has ``over`` in it.
"""

from __future__ import annotations

import heapq
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as numbers
from random import Random

import numpy as np

from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError
from splitpoint.graph import Cut
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.request import Fallback
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.transports.addresses import dial
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import Kind

MODELS = ("zoo:lenet5", "zoo:efficientnet_lite0")
CODECS = ("raw", "raw", "raw+zstd", "fp16", "int8", "int8+zstd", "int4")
_EXACT = frozenset({"raw", "raw+zstd"})
_THREADS = 2
_INPUTS = 3
_WINDOW = 16
#: What one pushes at once; more than the server of the soak lets wait.
PUSHED = 48


@dataclass
class Known:
    """A model, some inputs, and what it answers to them."""

    model: Model
    inputs: Sequence[Mapping[str, Array]]
    answers: Sequence[Mapping[str, Array]]
    cuts: Sequence[Cut]

    @classmethod
    def of(cls, name: str) -> Known:
        model = load(name)
        inputs = samples_for(model, _INPUTS)
        session = open_engine(threads=1).compile(model.whole())
        answers = [session.run(i) for i in inputs]
        inner = [c for c in model.graph.chain() if c.name not in ("input", "output")]
        return cls(model, inputs, answers, [model.graph.cut("input"), *inner[:: max(1, len(inner) // 4)]])

    def judge(self, k: int, codec: str, outputs: Mapping[str, Array]) -> bool:
        """Whether `outputs` are the answer to input `k`; of lossy codecs only that they are numbers."""
        for name, want in self.answers[k].items():
            got = outputs[name]
            if got.shape != want.shape or not np.isfinite(got).all():
                return False
            if codec in _EXACT and not np.allclose(got, want, rtol=1e-3, atol=1e-4):
                return False
        return True


class Asker:
    """One thread of a client process; `counts` is what it has asked for and got."""

    def __init__(self, address: str, known: Sequence[Known], random: Random) -> None:
        self._address, self._known, self._random = address, known, random
        self.counts: Counter[str] = Counter()

    def once(self) -> None:
        """A device's visit: some requests, and it leaves."""
        known, random = self._random.choice(self._known), self._random
        cut, codec = random.choice(known.cuts), random.choice(CODECS)
        visit: Callable[[Known, Cut, str, int], None] = random.choice(
            (self._ask, self._ask, self._stream, self._pipeline, self._push, self._insist)
        )
        visit(known, cut, codec, random.choice((1, 3, 20)))
        self.counts["visits"] += 1

    def warm(self) -> None:
        """Asks at every cut for so much at once that the engine has run its largest batch: it keeps that memory."""
        for known in self._known:
            for cut in known.cuts:
                self._insist(known, cut, "raw", 0)

    def _edge(self, known: Known, cut: Cut, codec: str, fallback: Fallback = "error") -> Edge:
        engine = open_engine(threads=1)
        return Edge(self._address, known.model, at=cut, codec=codec, engine=engine, fallback=fallback)

    def _ask(self, known: Known, cut: Cut, codec: str, count: int) -> None:
        with self._edge(known, cut, codec) as edge:
            for k in range(count):
                self.counts["asked"] += 1
                try:
                    outputs = edge.infer(known.inputs[k % _INPUTS]).outputs
                except BusyError:
                    self.counts["busy"] += 1
                else:
                    self._answered(known, k, codec, outputs)

    def _answered(self, known: Known, k: int, codec: str, outputs: Mapping[str, Array]) -> None:
        self.counts["answered"] += 1
        self.counts["wrong"] += not known.judge(k % _INPUTS, codec, outputs)

    def _stream(self, known: Known, cut: Cut, codec: str, count: int) -> None:
        with self._edge(known, cut, codec) as edge:
            done = 0
            try:
                for k, result in enumerate(edge.stream([known.inputs[k % _INPUTS] for k in range(count)])):
                    done += 1
                    self.counts["asked"] += 1
                    self._answered(known, k, codec, result.outputs)
            except BusyError:  # it ends the stream, with what was still under way
                self.counts["asked"] += 1
                self.counts["busy"] += 1
                return
            self.counts["lost"] += count - done

    def _pipeline(self, known: Known, cut: Cut, codec: str, count: int) -> None:
        """By hand, to count every answer: a second one to the same request would go unnoticed by `Edge`."""
        del cut, codec
        with _by_hand(self._address, known) as hand:
            for k in range(count):
                if len(hand.under_way) >= _WINDOW:
                    self._heard(hand, hand.hear())
                self._sent(hand, k)
            while hand.under_way:
                self._heard(hand, hand.hear())
            self.counts["twice"] += hand.unasked()

    def _push(self, known: Known, cut: Cut, codec: str, count: int) -> None:
        """Far more at once than may wait. Who is told BUSY is asked for again when the server said, until all came."""
        del cut, codec, count
        with _by_hand(self._address, known) as hand:
            due = [(0.0, k) for k in range(PUSHED)]
            while due or hand.under_way:
                while due and due[0][0] <= time.monotonic():
                    when, k = heapq.heappop(due)
                    self.counts["again"] += when > 0
                    self._sent(hand, k)
                if not hand.under_way:
                    time.sleep(max(0.0, due[0][0] - time.monotonic()))
                elif (again := self._heard(hand, hand.hear())) is not None:
                    heapq.heappush(due, again)
            self.counts["twice"] += hand.unasked()

    def _sent(self, hand: _Hand, k: int) -> None:
        hand.ask(k)
        self.counts["asked"] += 1

    def _heard(self, hand: _Hand, frame: wire.Frame) -> tuple[float, int] | None:
        """Counts an answer; of BUSY, when to ask for which input again."""
        if frame.id not in hand.under_way:
            self.counts["twice"] += 1
            return None
        k = hand.under_way.pop(frame.id)
        if isinstance(frame.header, wire.Busy):
            self.counts["busy"] += 1
            return time.monotonic() + frame.header.retry_after_s, k
        if frame.kind == Kind.RESULT:
            names = [t.name for t in hand.opened.outputs]
            self._answered(hand.known, k, "raw", dict(zip(names, frame.tensors, strict=True)))
        else:
            self.counts["refused"] += 1
        return None

    def _insist(self, known: Known, cut: Cut, codec: str, count: int) -> None:
        """As many at once, by an edge that asks again by itself."""
        del count
        heard = _Heard()
        with self._edge(known, cut, codec, fallback="wait") as edge:
            edge.watchers.append(heard)
            items = [known.inputs[k % _INPUTS] for k in range(PUSHED)]
            for k, result in enumerate(edge.stream(items, window=PUSHED)):
                self._answered(known, k, codec, result.outputs)
        self.counts["asked"] += PUSHED + heard.busy
        self.counts["busy"] += heard.busy
        self.counts["again"] += heard.busy


class _Heard:
    """A watcher that counts how often the server was busy."""

    def __init__(self) -> None:
        self.busy = 0

    def failed(self, why: str) -> None:
        self.busy += why == "the server was busy"

    def _nothing(self, *_: object) -> None: ...

    answered = delivered = computed = overdue = state = _nothing


class _Hand:
    """A connection with a whole model open, and what was asked for on it: id → which input."""

    def __init__(self, connection: TcpConnection, known: Known, opened: wire.Opened) -> None:
        self._connection, self.known, self.opened = connection, known, opened
        self._packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        self._ids = numbers(2)
        self.under_way: dict[int, int] = {}

    def ask(self, k: int) -> None:
        inputs, id = self.known.inputs[k % _INPUTS], next(self._ids)
        self.under_way[id] = k
        self._connection.send(self._packer.pack(id, [inputs[t.name] for t in self.opened.inputs], flags=wire.PIPELINED))

    def hear(self) -> wire.Frame:
        return self._connection.receive(timeout_s=60)

    def unasked(self) -> int:
        """How many more answers come, when there should be none."""
        self._connection.send(wire.encode(Kind.PING, 1, wire.Ping(0.0)))
        more = 0
        while self.hear().kind != Kind.PONG:
            more += 1
        return more


@contextmanager
def _by_hand(address: str, known: Known) -> Iterator[_Hand]:
    sock, where = dial(address, 10.0)
    connection = TcpConnection(sock, where, wire.Limits())
    try:
        connection.send(wire.encode(Kind.HELLO, 0, wire.Hello()))
        assert connection.receive(timeout_s=30).kind == Kind.WELCOME
        model = known.model
        names = tuple(t.name for t in model.inputs), tuple(t.name for t in model.outputs)
        connection.send(wire.encode(Kind.OPEN, 1, wire.OpenRequest(model.fingerprint, *names)))
        opened = connection.receive(timeout_s=60).header
        assert isinstance(opened, wire.Opened), opened
        yield _Hand(connection, known, opened)
    finally:
        connection.close()


def client(address: str, seed: str, visits: int) -> None:
    """Asks until standard input ends (or for `visits`); says its counts every half second, and `over` with the last."""
    known = [Known.of(name) for name in MODELS]
    askers = [Asker(address, known, Random(f"{seed}/{k}")) for k in range(_THREADS)]
    stop = threading.Event()
    threads = [threading.Thread(target=_ask_on, args=(asker, stop, visits), daemon=True) for asker in askers]
    for thread in threads:
        thread.start()
    if not visits:
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(0.5)
        print(json.dumps(sum((a.counts for a in askers), Counter())), flush=True)
        if not threads[0].is_alive():
            threads[1].join(0.5)
    print(json.dumps({**sum((a.counts for a in askers), Counter()), "over": 1}), flush=True)


def _ask_on(asker: Asker, stop: threading.Event, visits: int) -> None:
    if visits:
        asker.warm()
    while not stop.is_set() and (not visits or asker.counts["visits"] < visits):
        try:
            asker.once()
        except Exception as exc:  # whatever it is, a request was not answered
            asker.counts["lost"] += 1
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
            stop.wait(0.2)


if __name__ == "__main__":
    client(sys.argv[1], sys.argv[2], int(sys.argv[3]))
