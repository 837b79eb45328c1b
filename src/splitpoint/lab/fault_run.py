"""Requests through faults: a server process, a link and a device, and whatever a `schedule` lets go wrong between them.

Every request must be answered once, with what the whole model answers, and in order where a stream promises it
(`Report.complaints`). A third of them goes through `Edge.stream`, a third one by one, a third from several threads.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import msgspec
import numpy as np

from splitpoint.callbacks import call
from splitpoint.engines import ENGINES, open_engine
from splitpoint.errors import ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.lab.faults import KINDS, Fault
from splitpoint.lab.process import Process, run_splitpoint
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import PATIENCE, Patience
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.result import Request, Result
from splitpoint.segments import compare, samples_for
from splitpoint.tensors import Array
from splitpoint.transports.addresses import format_address
from splitpoint.units import counted

#: As quick as a network in the same room, so that what takes long is the faults' doing.
LINK = Link(200.0, 200.0, 2.0)
#: Inputs that differ: an answer to another request is a wrong one.
_INPUTS = 8
#: Requests of one kind of asking, before it is the next one's turn.
_BATCH = 50
_DEADLINE_S = 0.25
_THREADS = 3
#: What the server lets wait: little, so that it can be kept busy.
_QUEUE = 4
#: How long the server may take to answer again once nothing goes wrong any more.
_RECOVERY_S = 60.0


class Answer(msgspec.Struct, frozen=True):
    """One answer: to which request, when, why it was not the server's (if it was not), by how much it missed its
    deadline, and by how much it differs from the whole model's (as `segments.verify` counts)."""

    request: int
    at_s: float
    fallback: str
    missed_ms: float
    error: float
    equal: bool


class Toll(msgspec.Struct, frozen=True):
    """What a kind of fault did to the requests from its beginnings to the next fault's."""

    kind: str
    times: int
    by_server: int
    here: int
    longest_gap_ms: float


class Report(msgspec.Struct, frozen=True):
    """What came of it. `recovered_s`: until the server answered again after all of it; `changed_nbytes`: what the link
    really changed; `failures`: requests that raised, which none should."""

    count: int
    faults: tuple[Fault, ...]
    answers: tuple[Answer, ...]
    out_of_order: int
    failures: tuple[str, ...]
    recovered_s: float
    changed_nbytes: int
    seconds: float

    @property
    def lost(self) -> int:
        return self.count - len({a.request for a in self.answers})

    @property
    def doubled(self) -> int:
        """Answers to requests that had one."""
        return len(self.answers) - len({a.request for a in self.answers})

    @property
    def wrong(self) -> int:
        """Answers that are not the whole model's."""
        return sum(not a.equal for a in self.answers)

    @property
    def complaints(self) -> list[str]:
        """What should not be, one phrase each; empty if every request has one right answer, in order where promised."""
        counts = {
            "were not answered": self.lost,
            "were answered twice": self.doubled,
            "were answered wrong": self.wrong,
            "came out of order": self.out_of_order,
        }
        said = [f"{number} of {self.count} requests {what}" for what, number in counts.items() if number]
        return [*said, *self.failures[:3]]

    @property
    def summary(self) -> str:
        here = sum(bool(a.fallback) for a in self.answers)
        return (
            f"{counted(len(self.answers), 'answer')} to {counted(self.count, 'request')} through "
            f"{counted(len(self.faults), 'fault')} in {self.seconds:.0f} s: "
            f"{len(self.answers) - here} from the server, {here} finished here; "
            f"{self.lost} lost, {self.doubled} doubled, {self.wrong} wrong, {self.out_of_order} out of order; "
            f"{self.changed_nbytes} bytes were changed on the way; "
            f"the server answered again {self.recovered_s:.1f} s after the last of it"
        )

    def tolls(self) -> list[Toll]:
        """One line a kind of fault, in the order of `KINDS`; first what came before the first fault."""
        begins = [f.request for f in self.faults]
        kinds = ["", *(f.do for f in self.faults)]
        rows: dict[str, list[tuple[Answer, float]]] = {}
        last_s = 0.0
        for answer in sorted(self.answers, key=lambda a: a.at_s):
            kind = kinds[int(np.searchsorted(begins, answer.request, side="right"))]
            rows.setdefault(kind, []).append((answer, (answer.at_s - last_s) * 1e3))
            last_s = answer.at_s
        return [
            Toll(
                kind,
                kinds.count(kind) if kind else 0,
                sum(not a.fallback for a, _ in rows[kind]),
                sum(bool(a.fallback) for a, _ in rows[kind]),
                max(gap for _, gap in rows[kind]),
            )
            for kind in ("", *KINDS)
            if kind in rows
        ]


def run(
    model_name: str,
    faults: Sequence[Fault],
    *,
    count: int,
    at: str | int = "middle",
    rate: float = 40.0,
    seed: int = 0,
    engine_name: str = next(iter(ENGINES)),
    patience: Patience = PATIENCE,
    on_answer: Callable[[], None] = lambda: None,
) -> Report:
    """Asks `count` requests, `rate` a second, while `faults` happen; every second batch has a deadline.

    ServerError if the server cannot be started or does not answer again at the end; errors of single requests are in
    the report.
    """
    if not 0 < rate < float("inf"):
        raise UsageError(f"a rate is a number of requests a second above 0, not {rate}")
    model, engine = load(model_name), open_engine(engine_name, threads=1)
    cut = model.graph.cut(at)
    samples = samples_for(model, _INPUTS, seed)
    whole = engine.compile(model.whole())
    expected = [{**sample, **whole.run(sample)} for sample in samples]
    whole.close()
    with (
        _serving(model_name, engine_name) as target,
        Relay(target.address, LINK, seed=seed) as relay,
        _Player(faults, target, relay, model) as player,
        Edge(
            relay.address,
            model,
            at=cut,
            engine=engine,
            fallback="local",
            wire=WireSettings(checksum=True),
            patience=msgspec.structs.replace(patience, seed=seed),
        ) as edge,
    ):
        asker = _FaultAsker(edge, samples, player.before, 1 / rate, on_answer)
        began = time.monotonic()
        asker.all(count)
        seconds = time.monotonic() - began
        player.finish()
        recovered_s = _recovery(edge, samples[0])
        changed = relay.status().changed_nbytes
    answers = tuple(_judged(model, cut, expected, k, at_s - began, result) for k, at_s, result in asker.results)
    return Report(
        count, tuple(faults), answers, asker.out_of_order, tuple(asker.failures), recovered_s, changed, seconds
    )


def _recovery(edge: Edge, inputs: dict[str, Array]) -> float:
    began = time.monotonic()
    while edge.infer(inputs).fallback:
        spent = time.monotonic() - began
        if spent > _RECOVERY_S:
            raise ServerError(f"nothing is wrong any more, and in {spent:.0f} s no answer was the server's")
        time.sleep(0.02)
    return time.monotonic() - began


def _judged(
    model: Model, cut: Cut, expected: Sequence[dict[str, Array]], request: int, at_s: float, result: Result
) -> Answer:
    """The answer to a request, compared with the whole model's to its input (inputs and outputs of all: `expected`)."""
    k = request % len(expected)
    check = compare(model, cut, expected, [*expected[:k], result.outputs, *expected[k + 1 :]])
    return Answer(request, at_s, result.fallback, result.missed_ms, check.error, check.ok)


class _FaultAsker:
    """Asks in three ways in turns, at a steady pace, and keeps what comes back. `before` hears of each first."""

    def __init__(
        self,
        edge: Edge,
        samples: Sequence[dict[str, Array]],
        before: Callable[[int], None],
        period_s: float,
        on_answer: Callable[[], None],
    ) -> None:
        self._edge, self._samples, self._before, self._period_s = edge, samples, before, period_s
        self._tell = on_answer
        self._lock = threading.Lock()
        self._due_s = time.monotonic()
        self.results: list[tuple[int, float, Result]] = []
        self.failures: list[str] = []
        self.out_of_order = 0

    def all(self, count: int) -> None:
        ways = (self._stream, self._one_by_one, self._at_once)
        for k, first in enumerate(range(0, count, _BATCH)):
            ways[k % len(ways)](range(first, min(first + _BATCH, count)), _DEADLINE_S if k % 2 else None)

    def _next(self, request: int) -> Request:
        """The request when it is its turn; what is to go wrong before it has begun to."""
        with self._lock:  # several threads take turns
            self._due_s = max(self._due_s + self._period_s, time.monotonic() - self._period_s)
            due_s = self._due_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        self._before(request)
        return Request(self._samples[request % len(self._samples)], tag=request)

    def _keep(self, result: Result) -> None:
        with self._lock:
            self.results.append((result.tag, time.monotonic(), result))
        call(self._tell)

    def _stream(self, requests: range, deadline_s: float | None) -> None:
        awaited = iter(requests)
        try:
            for result in self._edge.stream(map(self._next, requests), window=4, deadline_s=deadline_s):
                self.out_of_order += result.tag != next(awaited, None)
                self._keep(result)
        except SplitpointError as exc:
            self.failures.append(f"the stream of {requests.start} to {requests.stop - 1}: {exc}")

    def _one_by_one(self, requests: range, deadline_s: float | None) -> None:
        for request in requests:
            try:
                self._keep(self._edge.infer(self._next(request), deadline_s=deadline_s))
            except SplitpointError as exc:
                self.failures.append(f"{request}: {exc}")

    def _at_once(self, requests: range, deadline_s: float | None) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            shares = [requests[k::_THREADS] for k in range(_THREADS)]
            list(pool.map(self._one_by_one, shares, [deadline_s] * _THREADS))


@dataclass
class _Target:
    """A server process at `address`, begun by ``splitpoint`` with these words, that can be killed and begun again."""

    address: str
    words: tuple[str, ...]
    server: Process

    def kill(self) -> None:
        """Ends it at once, with no time for a word."""
        self.server.process.kill()
        self.server.close()

    def start(self) -> None:
        """Starts it, at the port it had."""
        self.server = run_splitpoint("server", *self.words)
        self.server.expect("serving on ")


@contextmanager
def _serving(model_name: str, engine_name: str) -> Iterator[_Target]:
    with socket.socket() as holder:  # never listens: it keeps the port for the server while that is away
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        options = ("--engine", engine_name, "--threads", "1", "--queue", str(_QUEUE), "--until-stdin-ends")
        words = ("serve", model_name, "--port", str(holder.getsockname()[1]), *options)
        target = _Target(format_address(holder.getsockname()), words, run_splitpoint("server", *words))
        try:
            target.server.expect("serving on ")
            yield target
        finally:
            target.server.close()


class _Player(AbstractContextManager["_Player"]):
    """Makes faults happen before their requests. What happens to the server takes time, and goes on in a thread."""

    def __init__(self, faults: Sequence[Fault], target: _Target, relay: Relay, model: Model) -> None:
        self._faults = sorted(faults, key=lambda f: f.request)
        self._target, self._relay, self._model = target, relay, model
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="faults")
        self._jobs: list[Future[None]] = []
        self._over = threading.Event()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown(cancel_futures=True)

    def before(self, request: int) -> None:
        """Lets happen what is due before this request."""
        while True:
            with self._lock:
                if not self._faults or self._faults[0].request > request:
                    return
                fault = self._faults.pop(0)
            self._begin(fault)

    def finish(self) -> None:
        """Returns when the server is as it was. Raises what went wrong with the faults themselves."""
        for job in self._jobs:
            job.result()

    def _begin(self, fault: Fault) -> None:
        on_server = {"kill": self._kill, "pause": self._pause, "busy": self._busy}
        if fault.do in on_server:
            self._jobs.append(self._pool.submit(on_server[fault.do], fault))
        elif fault.do in ("cut", "mid-frame"):
            self._relay.cut(fault.seconds, fault.after_nbytes)
        elif fault.do == "stall":
            self._relay.stall(fault.seconds)
        elif fault.do == "blackhole":
            self._relay.blackhole(fault.seconds)
        else:
            self._relay.corrupt(fault.direction, fault.after_nbytes, fault.count)

    def _kill(self, fault: Fault) -> None:
        self._target.kill()
        self._over.wait(fault.seconds)
        self._target.start()

    def _pause(self, fault: Fault) -> None:
        self._target.server.process.send_signal(signal.SIGSTOP)
        self._over.wait(fault.seconds)
        self._target.server.process.send_signal(signal.SIGCONT)

    def _busy(self, fault: Fault) -> None:
        """Other devices ask for more than the server can do."""
        end = time.monotonic() + fault.seconds
        inputs = samples_for(self._model, 1)[0]

        def while_busy() -> Iterator[dict[str, Array]]:
            while time.monotonic() < end and not self._over.is_set():
                yield inputs

        with Edge(self._target.address, self._model, at="cut:input") as hog:
            while time.monotonic() < end and not self._over.is_set():
                with suppress(ServerError):  # its own requests are refused as well
                    for _ in hog.stream(while_busy(), window=4 * _QUEUE):
                        pass
                self._over.wait(2e-3)
