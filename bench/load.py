"""One server, 32 edges: how much of its time computes, how fairly it is shared, and what becomes of it under load.

    python -m bench.load                    # one tail for all, a mix of tails, and edges that adapt (bench.overload)
    python -m bench.load one mixed --seconds 20 --edges 32
    python -m bench.load overload --steps 1 8 24 48 --per-edge 4 --slower 30
    python -m bench.load attacked             # an honest device while its server is attacked (bench.attacked)

Read this first. The edges are one process that replays recorded tensors over raw sockets on one core; the server has
another, one engine thread. What is measured is the server, not the devices. Loopback has no bandwidth to wait for.

* *answers per CPU second*: what the answers given cost in CPU time when the same tails run back to back in one process,
  over the CPU time the server took for them (receiving, decoding, scheduling and sending included).
* *Jain*: of the answers each edge got, among edges with the same tail. Each keeps two requests under way.
* *70 %*: Poisson arrivals at 70 % of the peak, for four phases' time, from when a request was due until its answer was
  here, against a queue in virtual time, first come first served, with the same arrivals and the service times the
  server reported, plus the median of what is neither waiting nor service.
* *150 %*: Poisson arrivals at half as much again as the peak; who is told BUSY does not ask again. Work is counted in
  seconds of the tails run alone, since fairness changes which answers are given.

Targets: ≥ 0.9, ≥ 0.95, ≤ 1.2 and ≥ 0.9.
"""

from __future__ import annotations

import argparse
import heapq
import os
import select
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from statistics import median
from subprocess import Popen
from time import perf_counter
from typing import NamedTuple

import numpy as np

import splitpoint as sp
from bench.common import EDGE_CORE, SERVE, header, helper, pin
from splitpoint import wire
from splitpoint.segments import Halves, samples_for
from splitpoint.tensors import Array
from splitpoint.transports.addresses import parse_address
from splitpoint.wire import PIPELINED, PREFIX_BYTES, Kind, Limits, Message, Packet, Times

EFFICIENCY, FAIR, SLOWER, KEPT = 0.9, 0.95, 1.2, 0.9
#: Model, and the place of the cut among its single-tensor cuts, from 0 (all on the server) to 1.
ONE = (("zoo:efficientnet_lite0", 0.5),)
MIX = (("zoo:efficientnet_lite0", 0.15), ("zoo:efficientnet_lite0", 0.5), ("zoo:efficientnet_lite0", 0.8),
       ("zoo:lenet5", 0.3))  # fmt: skip
WINDOW = 2
#: The 99th percentile needs thousands of answers: the steady phase takes so many times as long as the others.
_STEADY = 4

#: Runs tails in turn, `N` times each, when asked with a line, and answers with each one's CPU milliseconds.
ALONE = """
import sys
from time import process_time
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import splitpoint as sp
from bench.load import tails_of
kinds = [(name, float(share)) for name, share in zip(sys.argv[1::2], sys.argv[2::2])]
tails = [(sp.open_engine(threads=1).compile(t.segment), t.feed) for t in tails_of(kinds)]
print("ready", flush=True)
for line in sys.stdin:
    runs, spent = int(line), [0.0] * len(tails)
    for k in range(runs + 2):
        for i, (session, feed) in enumerate(tails):
            start = process_time()
            session.run(feed)
            if k >= 2:
                spent[i] += process_time() - start
    print(*(s * 1e3 / runs for s in spent), flush=True)
"""


class Recorded(NamedTuple):
    """A tail, what it is fed with, and what is sent for it."""

    model: sp.Model
    segment: sp.models.model.Segment
    feed: dict[str, Array]
    name: str


def tails_of(kinds: Sequence[tuple[str, float]]) -> list[Recorded]:
    """The tails of `kinds` with recorded inputs: what their heads make of a made-up picture."""
    recorded = []
    for name, share in kinds:
        model = sp.load(name)
        cuts = model.graph.chain()
        recorded.append(tail_of(model, cuts[round(share * (len(cuts) - 1))].name))
    return recorded


def tail_of(model: sp.Model, at: str) -> Recorded:
    """The tail after the cut `at`, with a recorded input."""
    cut = model.graph.cut(at)
    both = Halves(model, cut, sp.open_engine(threads=1))
    known = samples_for(model, 1)[0]
    made = known | (both.head.run(known) if both.head else {})
    both.close()
    segment = model.tail(cut)
    return Recorded(model, segment, {t.name: made[t.name] for t in segment.inputs}, f"{model.name}@{cut.name}")


# --- one edge of the generator --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """One answered request: who asked, when it was due and answered (s), and the server's account of it."""

    edge: int
    due_s: float
    answered_s: float
    times: Times

    @property
    def service_s(self) -> float:
        return self.times.decode_s + self.times.compute_s + self.times.encode_s


class Replayed:
    """A connection with a recorded request, sent again and again; never blocks once it is open."""

    def __init__(self, address: str, tail: Recorded) -> None:
        self.sock = socket.create_connection(parse_address(address))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(self.sock, wire.encode(Kind.HELLO, 1, wire.Hello()))
        names = [tuple(t.name for t in side) for side in (tail.segment.inputs, tail.segment.outputs)]
        opened = _ask(self.sock, wire.encode(Kind.OPEN, 2, wire.OpenRequest(tail.model.fingerprint, *names)))
        assert isinstance(opened, wire.Opened), opened
        self._packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        self._arrays = [tail.feed[t.name] for t in tail.segment.inputs]
        self.sock.setblocking(False)
        self.due: dict[int, float] = {}
        self._ids = count(100)
        self._out: deque[memoryview] = deque()
        self._in = bytearray()

    def ask(self, due_s: float) -> None:
        """Sends the request, due at `due_s`, as far as the socket takes it."""
        flags = PIPELINED if self.due else 0
        id = next(self._ids)
        self.due[id] = due_s
        self._out.extend(map(wire.flat, self._packer.pack(id, self._arrays, flags=flags).buffers))
        self.write()

    def write(self) -> bool:
        """Whether all has been sent."""
        while self._out:
            try:
                sent = self.sock.send(self._out[0])
            except BlockingIOError:
                return False
            self._out[0] = self._out[0][sent:]
            if not self._out[0].nbytes:
                self._out.popleft()
        return True

    def read(self) -> Iterator[tuple[float, Times | None, float]]:
        """Of each answer that is here: when it was due, the server's times, 0; or when, None, retry after, for BUSY."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise SystemExit("the server closed a connection")
        self._in += data
        while len(self._in) >= PREFIX_BYTES:
            prefix = wire.parse_prefix(bytes(self._in[:PREFIX_BYTES]), Limits())
            head = PREFIX_BYTES + prefix.header_bytes
            if len(self._in) < head + prefix.body_bytes:
                return
            due_s = self.due.pop(prefix.id)
            if prefix.kind == Kind.RESULT:
                yield due_s, Times(*np.frombuffer(bytes(self._in[head : head + 64]), "<f8").tolist()), 0.0
            else:
                said = wire.parse_header(prefix, bytes(self._in[PREFIX_BYTES:head]))
                assert isinstance(said, wire.Busy), said
                yield due_s, None, said.retry_after_s
            del self._in[: head + prefix.body_bytes]


def _ask(sock: socket.socket, packet: Packet) -> Message | None:
    """The header of the answer, while the socket still blocks."""
    sock.sendall(b"".join(bytes(wire.flat(b)) for b in packet.buffers))
    prefix = wire.parse_prefix(_exactly(sock, PREFIX_BYTES), Limits())
    said = wire.parse_header(prefix, _exactly(sock, prefix.header_bytes))
    _exactly(sock, prefix.body_bytes)
    return said


def _exactly(sock: socket.socket, nbytes: int) -> bytes:
    return sock.recv(nbytes, socket.MSG_WAITALL) if nbytes else b""


# --- the generator --------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """What came of some seconds of asking. `cpu_s` is the server's."""

    seconds: float
    answers: list[Answer]
    busy: int
    cpu_s: float


def play(
    edges: Sequence[Replayed],
    pid: int,
    seconds: float,
    arrivals: Sequence[tuple[float, int]] | None = None,
    window: int = WINDOW,
) -> Phase:
    """Asks for `seconds`: at `arrivals` (s from the start, edge), or each edge again whenever it is answered, with
    `window` requests under way.

    An edge of the second kind that is told BUSY asks again when it was told to.
    """
    poll, by_fd = select.epoll(), {e.sock.fileno(): k for k, e in enumerate(edges)}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    answers: list[Answer] = []
    busy = 0
    closed = arrivals is None
    timetable = [(0.0, k) for k in range(len(edges)) for _ in range(window)] if arrivals is None else list(arrivals)
    heapq.heapify(timetable)
    cpu_s, start = cpu_of(pid), perf_counter()
    while (now := perf_counter() - start) < seconds or (not closed and any(e.due for e in edges)):
        while timetable and timetable[0][0] <= now < seconds:
            due_s, k = heapq.heappop(timetable)
            edges[k].ask(due_s if not closed else now)
        wait_s = min(0.05, max(0.0, timetable[0][0] - now)) if timetable and now < seconds else 0.05
        for fd, event in poll.poll(wait_s):
            edge = edges[by_fd[fd]]
            if event & select.EPOLLOUT:
                edge.write()
            if event & select.EPOLLIN:
                for due_s, times, retry_s in _all(edge):
                    now = perf_counter() - start
                    if times is None:
                        busy += 1
                    else:
                        answers.append(Answer(by_fd[fd], due_s, now, times))
                    if closed and now < seconds:
                        heapq.heappush(timetable, (now + retry_s, by_fd[fd]))
    spent = Phase(perf_counter() - start, answers, busy, cpu_of(pid) - cpu_s)
    while any(e.due for e in edges):  # the rest of a closed loop counts for nothing
        for fd, event in poll.poll(0.05):
            edge = edges[by_fd[fd]]
            edge.write()
            if event & select.EPOLLIN:
                deque(_all(edge), 0)
    poll.close()
    return spent


def _all(edge: Replayed) -> Iterator[tuple[float, Times | None, float]]:
    """What `Replayed.read` gives until the socket is empty, as an edge-triggered poll wants it."""
    while True:
        try:
            yield from edge.read()
        except BlockingIOError:
            return


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, in user and system mode."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def poisson(edges: int, per_second: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    """Arrivals of equal edges, `per_second` of all together."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / per_second, int(per_second * seconds * 1.3) + 50))
    return [(float(t), int(k)) for t, k in zip(times, rng.integers(0, edges, len(times)), strict=True) if t < seconds]


def first_come(answers: Sequence[Answer], beside_s: float) -> list[float]:
    """Seconds each would have taken, first come first served by one worker, `beside_s` beside waiting and service.

    What a request of a batch waited for the others' parts is said to be its wait.
    """
    free_s, taken = 0.0, []
    for a in sorted(answers, key=lambda a: a.due_s):
        free_s = max(free_s, a.due_s) + a.service_s
        taken.append(free_s - a.due_s + beside_s)
    return taken


def jain(values: Sequence[float]) -> float:
    """1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values))


# --- the measurement ------------------------------------------------------------------------------------------------


def measure(title: str, kinds: Sequence[tuple[str, float]], edges: int, seconds: float) -> None:
    tails = tails_of(kinds)
    flat = [str(part) for kind in kinds for part in kind]
    with helper(SERVE, *dict.fromkeys(name for name, _ in kinds)) as server, helper(ALONE, *flat) as alone:
        assert server.stdout
        assert alone.stdout
        address = server.stdout.readline().strip()
        alone.stdout.readline()
        clients = [Replayed(address, tails[k % len(tails)]) for k in range(edges)]
        play(clients, server.pid, 2.0)
        before = cost_ms(alone)
        peak = play(clients, server.pid, seconds)
        after = cost_ms(alone)
        cost_s = [(a + b) / 2e3 for a, b in zip(before, after, strict=True)]
        rate = len(peak.answers) / peak.seconds
        long_s = _STEADY * seconds
        steady = play(clients, server.pid, long_s, poisson(edges, 0.7 * equal_rate(peak, cost_s), long_s, 1))
        flood = play(clients, server.pid, seconds, poisson(edges, 1.5 * equal_rate(peak, cost_s), seconds, 2))
        print(f"{title}: {edges} edges, {seconds:g} s a phase; {', '.join(t.name for t in tails)}")
        print(f"  alone, before/after the peak: {_spread(before, after)} ms of CPU")
        work_s = work(peak, cost_s)
        runs = len({a.times.compute_s for a in peak.answers})
        print(
            f"  peak {rate:.1f}/s ({len(peak.answers) / runs:.2f} a run); "
            f"answers per CPU second {work_s / peak.cpu_s:.3f} of alone (target ≥ {EFFICIENCY})"
        )
        counts = [sum(a.edge == k for a in peak.answers) for k in range(edges)]
        least = min(jain(counts[k :: len(tails)]) for k in range(len(tails)))
        print(f"  Jain of the answers to edges of one tail, the least of all tails: {least:.4f} (target ≥ {FAIR})")
        report_steady(steady)
        ratio = work(flood, cost_s) / flood.seconds / (work_s / peak.seconds)
        print(
            f"  150 %: {len(flood.answers) / flood.seconds:.1f} answers/s, {flood.busy} BUSY; "
            f"work {ratio:.3f} of the peak's (target ≥ {KEPT}), "
            f"{work(flood, cost_s) / flood.cpu_s * peak.cpu_s / work_s:.3f} for each CPU second",
            flush=True,
        )
        for client in clients:
            client.sock.close()


def report_steady(phase: Phase) -> None:
    """The line about arrivals at 70 %."""
    beside_s = median(a.answered_s - a.due_s - a.times.queue_s - a.service_s for a in phase.answers)
    took = [a.answered_s - a.due_s for a in phase.answers]
    model = first_come(phase.answers, beside_s)
    runs = len({a.times.compute_s for a in phase.answers})
    rows = [(f"p{p}", np.percentile(took, p), np.percentile(model, p)) for p in (50, 99)]
    said = "; ".join(f"{name} {a * 1e3:.1f} ms, simulated {b * 1e3:.1f}: {a / b:.3f}" for name, a, b in rows)
    print(f"  70 %: {len(took)} answers of {runs} runs, {phase.busy} BUSY; {said} (target p99 ≤ {SLOWER})")


def equal_rate(peak: Phase, cost_s: Sequence[float]) -> float:
    """Requests a second, as many of each kind, that take what the server could do at its peak."""
    return work(peak, cost_s) / peak.seconds / (sum(cost_s) / len(cost_s))


def work(phase: Phase, cost_s: Sequence[float]) -> float:
    """CPU seconds that the answers take alone."""
    return sum(cost_s[a.edge % len(cost_s)] for a in phase.answers)


def cost_ms(alone: Popen[str], runs: int = 60) -> list[float]:
    """CPU milliseconds of each tail, run in turn."""
    assert alone.stdin
    assert alone.stdout
    alone.stdin.write(f"{runs}\n")
    alone.stdin.flush()
    return [float(ms) for ms in alone.stdout.readline().split()]


def _spread(before: Sequence[float], after: Sequence[float]) -> str:
    return ", ".join(f"{b:.2f}/{a:.2f}" for b, a in zip(before, after, strict=True))


PARTS: Mapping[str, Sequence[tuple[str, float]]] = {"one": ONE, "mixed": MIX}


def main(arguments: Sequence[str] | None = None) -> int:
    from bench import attacked, overload

    parser, known = argparse.ArgumentParser(description="One server, many edges."), [*PARTS, "overload", "attacked"]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(known)} (if none: all but the last)")
    parser.add_argument("--edges", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--steps", type=int, nargs="+", default=overload.STEPS, help="edges that adapt, step by step")
    parser.add_argument("--per-edge", type=float, default=4.0, help="what each of them wants, answers a second")
    parser.add_argument("--slower", type=float, default=30.0, help="how many times slower their devices are emulated")
    parser.add_argument("--fixed", action="store_true", help="they do not adapt: to see what that is worth")
    parser.add_argument("--attacks", nargs="+", choices=attacked.ATTACKS, default=list(attacked.ATTACKS))
    parser.add_argument("--rounds", type=int, default=3, help="of quiet, control and attack in turn")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(known):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: {', '.join(known)}")
    pin(EDGE_CORE)
    for part, kinds in PARTS.items():
        if part in asked.parts or not asked.parts:
            measure(f"{part} tail{'s' * (part != 'one')}", kinds, asked.edges, asked.seconds)
    met = True
    if "overload" in asked.parts or not asked.parts:
        kept = overload.measure(asked.steps, asked.per_edge, asked.slower, asked.seconds, adapts=not asked.fixed)
        met = kept or asked.fixed
    if "attacked" in asked.parts:
        met = attacked.measure(asked.attacks, asked.rounds, asked.seconds) and met
    return 0 if met else 1


if __name__ == "__main__":
    print(header())
    raise SystemExit(main())
