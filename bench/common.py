"""What every benchmark needs: who measures, processes pinned to their own cores, interleaved medians."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from splitpoint.machine import this_machine, versions

EDGE_CORE, SERVER_CORE = 0, 1


def header(pinned: bool = True) -> str:
    """Machine and versions: no number means anything without them. `pinned`: each side to its core."""
    packages = ", ".join(f"{k} {v}" for k, v in versions().items())
    where = f"\nedge on core {EDGE_CORE}, server on core {SERVER_CORE}" if pinned else ""
    return f"{this_machine()}\n{packages}{where}"


def pin(core: int) -> None:
    """Keep this process on one core, so that edge and server do not share one."""
    # Not from sched_getaffinity: a child inherits its parent's one core.
    if core >= (os.cpu_count() or 1):
        raise SystemExit("these benchmarks need two cores: one for the edge, one for the server")
    os.sched_setaffinity(0, {core})


def interleaved(actions: Mapping[str, Callable[[], float | None]], rounds: int, warm: int = 5) -> dict[str, float]:
    """Median milliseconds of each action, one after the other in every round.

    An action may return its own milliseconds (measured where it happened), or None to be timed here.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for k in range(warm + rounds):
        for name, action in actions.items():
            start = perf_counter()
            own = action()
            spent = (perf_counter() - start) * 1e3 if own is None else own
            if k >= warm:
                taken[name].append(spent)
    return {name: median(values) for name, values in taken.items()}


@contextmanager
def helper(code: str, *arguments: str, python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """A Python process of our own on the server's core; it must print one line when it is ready."""
    process = subprocess.Popen(
        [python, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


SERVE = """
import sys
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import splitpoint as sp
models = [sp.load(m) for m in sys.argv[1:]]
with sp.Server(models, engine=sp.open_engine(threads=1), port=0) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""

ECHO = """
import socket, sys
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
up, down = int(sys.argv[1]), int(sys.argv[2])
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    peer, _ = listening.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer, answer = bytearray(up), bytes(down)
    with peer:
        while peer.recv_into(buffer, up, socket.MSG_WAITALL) == up:
            peer.sendall(answer)
"""

#: Runs the tail of a cut alone when asked with a line, and answers with its milliseconds.
TAIL = """
import sys
from time import perf_counter
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import splitpoint as sp
from splitpoint.models.shapes import sample_inputs
model = sp.load(sys.argv[1])
segment = model.tail(model.graph.cut(sys.argv[2]))
session = sp.open_engine(threads=1).compile(segment)
inputs = sample_inputs([t.bind(model.graph.assumed) for t in segment.inputs])
print("ready", flush=True)
for _ in sys.stdin:
    start = perf_counter()
    session.run(inputs)
    print((perf_counter() - start) * 1e3, flush=True)
"""
