"""Many kinds of clients for ten minutes: is the server the same afterwards, and was every request answered once?

    python -m bench.soak [--seconds 600] [--seed 1]        # make soak, SECONDS=60 make soak

A server process (`splitpoint serve`) with two networks and room for few waiting requests. Three client processes ask
for answers at random cuts, with random codecs, one by one, as streams and pipelined by hand; some ask for far more at
once than may wait, and who is told BUSY asks again when it was told to. They come and go all the time, and every few
seconds one is killed (SIGKILL). Meanwhile rude clients stall or leave in the middle of a frame, do not read, or send
damaged frames. Exits with 1 if a request of a client that lived was not answered exactly once (BUSY is an answer, and
who asks again must get another one), if nobody was told BUSY, if an answer was wrong, or if the server's memory, file
descriptors or threads are not what they were.
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from statistics import median

from bench import damaged_frames
from bench.asker import MODELS
from bench.vitals import Vitals, vitals
from splitpoint.lab.process import PIPES, Process
from splitpoint.machine import this_machine, versions
from splitpoint.units import counted, size

_CLIENTS = 3
#: Requests that may wait at the server: fewer than some clients push at once.
_QUEUE = 32
#: Memory may grow by so much between the first and the last fifth of a run: the allocator is not flat to the byte.
_GROWTH_SHARE, _GROWTH_NBYTES = 0.03, 12 << 20


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
        tally = damaged_frames.attack(
            self._address, self._said, frames=200, seed=self._random.randrange(1 << 30), threads=1
        )
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
        seed = f"{self.seed}/{self._made}"
        command = [sys.executable, "-u", "-m", "bench.asker", self.address, seed, str(visits)]
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
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", *MODELS, "--port", "0", "--threads", "1"]
    command += ["--queue", str(_QUEUE), "--until-stdin-ends"]
    server = Process(subprocess.Popen(command, **PIPES), "server")
    try:
        address = server.expect("serving on ").split()[2]
        return _soak(options, server, address)
    finally:
        server.close()


def _soak(options: argparse.Namespace, server: Process, address: str) -> int:
    pid, random = server.process.pid, Random(options.seed)
    said = [damaged_frames.record(address, model="lenet5", at="pool1", codec=c) for c in ("raw", "int8+zstd")]
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
        "told that the server is busy": f"{total['busy']} times, asked again {total['again']} times",
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
    if not total["busy"]:
        complaints.append("nobody was told that the server is busy: that was not tried")
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
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(this_machine(), ", ".join(f"{k} {v}" for k, v in versions().items()), sep="\n")
    raise SystemExit(main(sys.argv[1:]))
