"""A million damaged frames: the server must be alive, well and no larger afterwards.

    python -m bench.fuzz [--frames 1000000] [--seed 1] [--model zoo:lenet5]

The server is a process of its own with small limits (`bench.damaged_frames`). What is sent are recorded conversations
with changed bits, lengths, header values, bodies and orders, from hundreds of loopback addresses. Between rounds an
honest device must get the right answer, and memory, file descriptors and threads must be what they were. Exits with 1
if not.

A frame counts when it is sent: what follows one that ends its connection is not read, so conversations are short. Some
2,000 frames a second on two cores, so a million takes ten minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.damaged_frames import SLACK_NBYTES, attack, honest, record
from bench.vitals import Vitals, vitals
from splitpoint.lab.process import PIPES, Process
from splitpoint.machine import this_machine, versions
from splitpoint.units import size

CODECS = ("raw", "fp16", "int8", "int4", "int8+zstd", "raw+zstd")
#: Frames between two looks at the server.
_ROUND = 50_000
#: Conversations at the same time: one waits for the server most of its time, and with 12 the server's core is busy.
_THREADS = 12
#: Memory that may be more at the end than after the first round: the allocator's, which is not flat to the byte.
_GROWTH_NBYTES = 24 << 20


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    command = [sys.executable, "-u", "-m", "bench.damaged_frames", options.model]
    server = Process(subprocess.Popen(command, **PIPES), "server under attack")
    try:
        with TemporaryDirectory() as cache:
            return _rounds(options, server, Path(cache))
    finally:
        server.close()


def _rounds(options: argparse.Namespace, server: Process, cache: Path) -> int:
    address, pid, at = server.line(120), server.process.pid, options.at
    said = [record(address, at=at, codec=codec) for codec in CODECS]
    said += [record(address, at="input"), record(address, at="output"), record(address, at=at, checksum=True)]
    honest(address, at=at, cache=cache)
    frames = conversations = nbytes = 0
    answers: Counter[str] = Counter()
    complaints: list[str] = []
    first: Vitals | None = None
    began, number = time.monotonic(), 0
    spent_s = 0.0
    while frames < options.frames and not complaints:
        started = time.monotonic()
        count, seed = min(_ROUND, options.frames - frames), options.seed * 1000 + number
        tally = attack(address, said, frames=count, seed=seed, threads=_THREADS)
        spent_s += time.monotonic() - started
        number += 1
        frames += tally.frames
        conversations += tally.conversations
        nbytes += tally.nbytes
        answers.update(tally.answers)
        complaints += tally.stuck
        honest(address, at=at, cache=cache)
        now = _at_rest(pid, first)
        first = first or now
        complaints += _judged(first, now)
        print(f"{frames:>9} frames, {frames / spent_s:,.0f} a second; {now}, peak {size(now.peak_nbytes)}", flush=True)
    complaints += [f"the server said: {line}" for line in server.said()]
    assert first is not None
    seconds = time.monotonic() - began
    print(f"{conversations} conversations, {size(nbytes)}, seed {options.seed}, {seconds:.0f} s in all")
    print(f"the server answered with {', '.join(f'{n} {k}' for k, n in answers.most_common())}")
    for complaint in complaints[:20]:
        print(f"NOT WELL: {complaint}")
    return 1 if complaints else 0


def _at_rest(pid: int, first: Vitals | None) -> Vitals:
    """How the server is when its connections have ended, which it may take a few seconds for."""
    end = time.monotonic() + 15
    while True:
        now = vitals(pid)
        if (first is not None and now.fds <= first.fds and now.threads <= first.threads) or time.monotonic() > end:
            return now
        if first is None and time.monotonic() > end - 12:
            return now
        time.sleep(0.1)


def _judged(first: Vitals, now: Vitals) -> list[str]:
    complaints = []
    if now.fds > first.fds or now.threads > first.threads:
        complaints.append(f"something leaks: {first} at first, {now} now")
    if now.rss_nbytes > first.rss_nbytes + _GROWTH_NBYTES:
        complaints.append(f"memory grows: {first} at first, {now} now")
    if now.peak_nbytes > first.rss_nbytes + SLACK_NBYTES:
        complaints.append(f"memory beyond the limits: {size(now.peak_nbytes)} at its peak, {first} at rest")
    return complaints


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="zoo:lenet5")
    parser.add_argument("--at", default="pool1")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(this_machine(), ", ".join(f"{k} {v}" for k, v in versions().items()), sep="\n")
    raise SystemExit(main(sys.argv[1:]))
