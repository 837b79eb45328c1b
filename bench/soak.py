"""Many kinds of clients for ten minutes: is the server the same afterwards, and was every request answered once?

    python -m bench.soak [--seconds 600] [--seed 1]        # make soak, SECONDS=60 make soak

A server process (`splitpoint serve`) with two networks. Three client processes ask for answers at random cuts, with
random codecs, one by one, as streams and pipelined by hand; they come and go all the time, and every few seconds one is
killed (SIGKILL). Meanwhile rude clients stall or leave in the middle of a frame, do not read, or send damaged frames.
Exits with 1 if a request of a client that lived was not answered exactly once (BUSY is an answer), if an answer was
wrong, or if the server's memory, file descriptors or threads are not what they were.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from statistics import median

import numpy as np

from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError
from splitpoint.graph import Cut
from splitpoint.lab import fuzz
from splitpoint.lab.process import PIPES, Process
from splitpoint.lab.vitals import Vitals, vitals
from splitpoint.machine import this_machine, versions
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.edge import Edge
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.transports.tcp import TcpConnection, dial
from splitpoint.units import counted, size
from splitpoint.wire import Kind

MODELS = ("zoo:lenet5", "zoo:efficientnet_lite0")
CODECS = ("raw", "raw", "raw+zstd", "fp16", "int8", "int8+zstd", "int4")
_EXACT = frozenset({"raw", "raw+zstd"})
_CLIENTS, _THREADS = 3, 2
_INPUTS = 3
_WINDOW = 16
#: Memory may grow by so much between the first and the last fifth of a run: the allocator is not flat to the byte.
_GROWTH_SHARE, _GROWTH_NBYTES = 0.03, 12 << 20


# --- a client process -----------------------------------------------------------------------------------------------


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
            (self._ask, self._ask, self._stream, self._pipeline)
        )
        visit(known, cut, codec, random.choice((1, 3, 20)))
        self.counts["visits"] += 1

    def warm(self) -> None:
        """Asks at every cut for so much at once that the engine has run its largest batch: it keeps that memory."""
        for known in self._known:
            for cut in known.cuts:
                with self._edge(known, cut, "raw") as edge:
                    items = [known.inputs[k % _INPUTS] for k in range(48)]
                    for k, result in enumerate(edge.stream(items, window=_WINDOW)):
                        self.counts["asked"] += 1
                        self._answered(known, k, "raw", result.outputs)

    def _edge(self, known: Known, cut: Cut, codec: str) -> Edge:
        return Edge(self._address, known.model, at=cut, codec=codec, engine=open_engine(threads=1))

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
        sock, where = dial(self._address, 10.0)
        connection = TcpConnection(sock, where, wire.Limits())
        try:
            connection.send(wire.encode(Kind.HELLO, 0, wire.Hello()))
            assert connection.receive(timeout_s=30).kind == Kind.WELCOME
            model = known.model
            names = tuple(t.name for t in model.inputs), tuple(t.name for t in model.outputs)
            connection.send(wire.encode(Kind.OPEN, 1, wire.OpenRequest(model.fingerprint, *names)))
            opened = connection.receive(timeout_s=60).header
            assert isinstance(opened, wire.Opened), opened
            self._send_and_count(connection, known, opened, count)
        finally:
            connection.close()

    def _send_and_count(self, connection: TcpConnection, known: Known, opened: wire.Opened, count: int) -> None:
        packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        came: Counter[int] = Counter()
        sent = 0
        while sum(came.values()) < count:
            while sent < count and sent - sum(came.values()) < _WINDOW:
                inputs = known.inputs[sent % _INPUTS]
                arrays = [inputs[t.name] for t in opened.inputs]
                connection.send(packer.pack(sent + 2, arrays, flags=wire.PIPELINED))
                self.counts["asked"] += 1
                sent += 1
            self._one(connection, known, opened, came)
        connection.send(wire.encode(Kind.PING, 1, wire.Ping(0.0)))
        while (frame := connection.receive(timeout_s=60)).kind != Kind.PONG:
            came[frame.id] += 1
        self.counts["twice"] += sum(n - 1 for n in came.values())

    def _one(self, connection: TcpConnection, known: Known, opened: wire.Opened, came: Counter[int]) -> None:
        frame = connection.receive(timeout_s=60)
        came[frame.id] += 1
        if frame.kind == Kind.BUSY:
            self.counts["busy"] += 1
        elif frame.kind == Kind.RESULT:
            names = [t.name for t in opened.outputs]
            self._answered(known, frame.id - 2, "raw", dict(zip(names, frame.tensors, strict=True)))
        else:
            self.counts["refused"] += 1


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


# --- rude clients ---------------------------------------------------------------------------------------------------


class Rude:
    """What nobody should do to a server, one thing after the other until `stop`."""

    def __init__(self, address: str, said: Sequence[Sequence[bytes]], random: Random) -> None:
        self._address, self._said, self._random = address, said, random
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        deeds = (self._stall, self._leave, self._reset, self._deaf, self._damage)
        while not self.stop.is_set():
            deed = self._random.choice(deeds)
            with suppress(OSError):
                deed()
            self.counts[deed.__name__.strip("_")] += 1
            self.stop.wait(self._random.uniform(0.0, 0.3))

    def _begin(self, frames: int, more: int) -> socket.socket:
        """Says the first `frames` of a conversation, and `more` bytes of the next one."""
        said = self._random.choice(self._said)
        host, _, port = self._address.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=5)
        sock.sendall(b"".join(said[:frames]) + said[frames % len(said)][:more])
        return sock

    def _stall(self) -> None:
        with self._begin(self._random.randrange(1, 8), self._random.choice((1, 10, 30, 200))):
            self.stop.wait(self._random.uniform(0.5, 4.0))

    def _leave(self) -> None:
        self._begin(self._random.randrange(8), self._random.choice((0, 5, 23, 24, 100))).close()

    def _reset(self) -> None:
        with self._begin(self._random.randrange(1, 8), 50) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def _deaf(self) -> None:
        """Asks and asks, and reads nothing."""
        said = self._random.choice(self._said)
        with self._begin(1, 0) as sock, suppress(TimeoutError):
            sock.settimeout(1.0)
            for _ in range(20):
                sock.sendall(b"".join(said[1:-1]))
            self.stop.wait(1.0)

    def _damage(self) -> None:
        tally = fuzz.attack(self._address, self._said, frames=200, seed=self._random.randrange(1 << 30), threads=1)
        self.counts["stuck"] += len(tally.stuck)
        self.counts["damaged frames"] += tally.frames


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """The client processes: those that are here, and what those that have gone had counted."""

    address: str
    seed: int
    here: list[Process] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    complaints: list[str] = field(default_factory=list)
    _made: int = 0

    def come(self, visits: int = 0) -> Process:
        self._made += 1
        command = [
            sys.executable,
            "-u",
            "-m",
            "bench.soak",
            "--client",
            self.address,
            f"{self.seed}/{self._made}",
            str(visits),
        ]
        process = Process(subprocess.Popen(command, **PIPES), "client")
        self.here.append(process)
        return process

    def kill(self, process: Process) -> None:
        """Ends it in the middle of whatever it does. What it had under way, one request a thread, is not counted."""
        self.here.remove(process)
        process.process.kill()
        process.close()
        lines = [json.loads(line) for line in process.said()]
        counts = Counter(lines[-1] if lines else {})
        counts["asked"] = counts["answered"] + counts["busy"] + counts["refused"]
        self.totals.update(counts)
        self.killed += 1

    def leave(self) -> None:
        """All end in their own time."""
        for process in self.here:
            assert process.process.stdin is not None
            process.process.stdin.close()
        for process in self.here:
            while "over" not in (counts := json.loads(process.line(120.0))):
                pass
            self.totals.update(counts)
            process.process.wait(30)
            self.complaints += process.complaints()
            process.close()
        self.here.clear()


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.client:
        client(options.client[0], options.client[1], int(options.client[2]))
        return 0
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", *MODELS, "--port", "0", "--threads", "1"]
    server = Process(subprocess.Popen([*command, "--until-stdin-ends"], **PIPES), "server")
    try:
        address = server.expect("serving on ").split()[2]
        return _soak(options, server, address)
    finally:
        server.close()


def _soak(options: argparse.Namespace, server: Process, address: str) -> int:
    pid, random = server.process.pid, Random(options.seed)
    said = [fuzz.record(address, model="lenet5", at="pool1", codec=c) for c in ("raw", "int8+zstd")]
    crowd = Crowd(address, options.seed)
    for _ in range(_CLIENTS):
        crowd.come(visits=10)
    crowd.leave()
    crowd.totals.clear()
    rested = _at_rest(pid, None)
    print(f"at rest before: {rested}", flush=True)
    rude = [Rude(address, said, Random(f"{options.seed}/rude/{k}")) for k in range(2)]
    for one in rude:
        one.thread.start()
    for _ in range(_CLIENTS):
        crowd.come()
    samples: list[Vitals] = []
    began = time.monotonic()
    next_kill = began + random.uniform(5, 10)
    while (now := time.monotonic()) < began + options.seconds:
        time.sleep(min(1.0, began + options.seconds - now))
        samples.append(vitals(pid))
        if time.monotonic() > next_kill:
            crowd.kill(random.choice(crowd.here))
            crowd.come()
            next_kill = time.monotonic() + random.uniform(4, 10)
        if len(samples) % 30 == 0:
            print(f"{time.monotonic() - began:5.0f} s  {samples[-1]}", flush=True)
    for one in rude:
        one.stop.set()
        one.thread.join()
    crowd.leave()
    after = _at_rest(pid, rested)
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(30)
    return _report(options, crowd, rude, samples, rested, after, status)


def _at_rest(pid: int, before: Vitals | None) -> Vitals:
    """How the server is when everyone has left: as soon as it is as `before`, or after a while."""
    end = time.monotonic() + (35 if before else 3)
    while time.monotonic() < end:
        now = vitals(pid)
        if before is not None and now.fds <= before.fds and now.threads <= before.threads:
            break
        time.sleep(0.1)
    return vitals(pid)


def _report(
    options: argparse.Namespace, crowd: Crowd, rude: Sequence[Rude], samples: Sequence[Vitals], before: Vitals,
    after: Vitals, status: int,
) -> int:  # fmt: skip
    total = crowd.totals
    deeds = sum((r.counts for r in rude), Counter())
    fifth = max(1, len(samples) // 5)
    first = median(s.rss_nbytes for s in samples[fifth : 2 * fifth] or samples)
    last = median(s.rss_nbytes for s in samples[-fifth:])
    unanswered = total["asked"] - total["answered"] - total["busy"] - total["refused"]
    rows = {
        "seconds, seed": f"{options.seconds:g}, {options.seed}",
        "visits, clients killed": f"{total['visits']}, {crowd.killed}",
        "requests": f"{total['asked']}",
        "answered": f"{total['answered']}",
        "told that the server is busy": f"{total['busy']}",
        "not answered, refused": f"{unanswered + total['lost']}, {total['refused']}",
        "answered twice, wrong": f"{total['twice']}, {total['wrong']}",
        "rude clients": ", ".join(f"{n} × {k}" for k, n in sorted(deeds.items()) if n),
        "memory, second and last fifth": f"{size(first)}, {size(last)} (peak {size(after.peak_nbytes)})",
        "most descriptors, threads": f"{max(s.fds for s in samples)}, {max(s.threads for s in samples)}",
        "at rest before": str(before),
        "at rest after": str(after),
        "exit status": str(status),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    complaints = list(crowd.complaints)
    for name, number in (("lost", unanswered + total["lost"]), *((n, total[n]) for n in ("refused", "twice", "wrong"))):
        if number:
            complaints.append(f"{counted(number, 'request')} {name}")
    if deeds["stuck"]:
        complaints.append(f"{counted(deeds['stuck'], 'conversation')} got stuck")
    base = max(first, before.rss_nbytes)
    if max(last, after.rss_nbytes) > base + max(_GROWTH_NBYTES, _GROWTH_SHARE * base):
        complaints.append(f"memory grew from {size(base)} to {size(last)}, and {size(after.rss_nbytes)} at rest")
    if after.fds > before.fds or after.threads > before.threads:
        complaints.append(f"something leaks: {before} before, {after} after")
    if status:
        complaints.append(f"the server ended with {status}")
    for complaint in complaints:
        print(f"NOT SOUND: {complaint}")
    return 1 if complaints else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client", nargs=3, metavar=("ADDRESS", "SEED", "VISITS"), help="for itself")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if "--client" not in sys.argv:
        print(this_machine(), ", ".join(f"{k} {v}" for k, v in versions().items()), sep="\n")
    raise SystemExit(main(sys.argv[1:]))
