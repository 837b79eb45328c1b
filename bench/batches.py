"""What a batch's wait is worth: one tail, clients that ask again when they are answered, ways to wait in turn.

    python -m bench.batches                                    # 1, 8 and 32 clients
    python -m bench.batches --triton VENV/bin/python           # beside Triton, if that Python has nvidia-pytriton 0.7
    python -m bench.batches --beside OTHER/src src             # beside servers of other trees, and of this one again
    python -m bench.batches --clients 8 --keep FILE            # in pieces: the report is of all rounds that FILE holds

Read this first. The clients are one process that replays recorded tensors over raw sockets on one core; a server has
the other, with one engine thread and batches of up to 8. All servers are up at once and asked in turn, each for some
seconds a round, in another order every round; what is printed are medians over the rounds, and of each round's ratios
the median and where it lies 19 times in 20. *CPU* is what the server's processes took, *size* how many ran as one. The
tail is AlexNet's after its features (random weights): two large matrices, which a batch of 8 reads once. Triton runs it
with ONNX Runtime too, through PyTriton, with a delay of `--delay` ms, and is asked over HTTP with binary tensors. *raw*
is the engine alone, in batches of 8.

Targets: the default's rate ≥ 1.0 of Triton's and its p95 ≤ 1.1 of it at 8 and 32 clients; at one client it takes at
most 1.02 of what never waiting takes (*never*: `--max-wait 0`). For one client it is one server that waits in one way
or the other, and by default *again*: what two processes that do the same differ by is more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from statistics import median
from subprocess import Popen
from typing import NamedTuple

import numpy as np

import splitpoint as sp
from bench.common import EDGE_CORE, header, helper, pin
from bench.load import Recorded, Replayed, cpu_of, play, tail_of
from bench.nets import path_of
from splitpoint.report.noise import median_interval
from splitpoint.wire import Times

CUT = "features.12/MaxPool"
MOST = 8
SRC = str(Path(sp.__file__).parents[1])

#: Arguments: the model, seconds to wait ("" for the default), where splitpoint is.
SERVE = """
import sys
sys.path.insert(0, sys.argv[3])
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import splitpoint as sp
wait = {"max_wait_s": float(sys.argv[2])} if sys.argv[2] else {}
with sp.Server([sp.load(sys.argv[1])], engine=sp.open_engine(threads=1), port=0, **wait) as server:
    print(server.address, flush=True)
    for line in sys.stdin:  # another wait from now on
        server._services.runner.compute._max_wait_s = float(line) if line.strip() else None
        print("set", flush=True)
"""

#: Prints the milliseconds of a batch when asked with a line. Arguments: the tail's file, its input, rows.
RAW = """
import sys
from time import perf_counter
from bench.common import pin, SERVER_CORE
pin(SERVER_CORE)
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = [int(sys.argv[3]), *session.get_inputs()[0].shape[1:]]
feed = {sys.argv[2]: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
print("ready", flush=True)
for _ in sys.stdin:
    took = []
    for _ in range(20):
        start = perf_counter()
        session.run(None, feed)
        took.append(perf_counter() - start)
    print(np.median(took[5:]) * 1e3, flush=True)
"""

#: Triton by PyTriton; needs a Python of its own. Arguments: the tail's file, its input and output, delay (us), port.
TRITON = """
import os, signal, sys
os.sched_setaffinity(0, {1})
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
path, name, out, delay, port = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
shapes = [tuple(t.shape[1:]) for t in (session.get_inputs()[0], session.get_outputs()[0])]
@batch
def infer(x):
    return [session.run(None, {name: x})[0]]
config = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, log_verbose=0)
with Triton(config=config) as triton:
    triton.bind(
        model_name="tail", infer_func=infer,
        inputs=[Tensor(name="x", dtype=np.float32, shape=shapes[0])],
        outputs=[Tensor(name="y", dtype=np.float32, shape=shapes[1])],
        config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=delay)),
    )
    triton.run()
    print("ready", flush=True)
    sys.stdin.read()
"""


class ReplayedHttp(Replayed):
    """A connection to Triton with a recorded request, sent again and again, as `Replayed` is one to us."""

    def __init__(self, port: int, x: sp.tensors.Array) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shape = ",".join(map(str, x.shape))
        head = (
            f'{{"inputs":[{{"name":"x","shape":[{shape}],"datatype":"FP32","parameters":{{"binary_data_size":'
            f'{x.nbytes}}}}}],"outputs":[{{"name":"y","parameters":{{"binary_data":true}}}}]}}'
        ).encode()
        fields = (
            f"POST /v2/models/tail/infer HTTP/1.1\r\nHost: tail\r\nContent-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + x.nbytes}\r\n\r\n"
        )
        self._request = memoryview(fields.encode() + head + x.tobytes())
        self.sock.setblocking(False)
        self.due: dict[int, float] = {}
        self._ids = count(100)
        self._out: deque[memoryview] = deque()
        self._in = bytearray()

    def ask(self, due_s: float) -> None:
        self.due[next(self._ids)] = due_s
        self._out.append(self._request)
        self.write()

    def read(self) -> Iterator[tuple[float, Times | None, float]]:
        data = self.sock.recv(1 << 20)
        if not data:
            raise SystemExit("Triton closed a connection")
        self._in += data
        while (end := self._in.find(b"\r\n\r\n")) >= 0:
            fields = bytes(self._in[:end]).lower().split(b"\r\n")
            if b" 200 " not in fields[0]:
                raise SystemExit(f"Triton said {bytes(self._in)!r}")
            length = next(int(f.partition(b":")[2]) for f in fields if f.startswith(b"content-length:"))
            if len(self._in) < end + 4 + length:
                return
            del self._in[: end + 4 + length]
            yield self.due.pop(next(iter(self.due))), Times(), 0.0


class Row(NamedTuple):
    """What one server did in one round: answers a second, ms (of CPU: an answer), requests a run (0: not told)."""

    clients: int
    way: str
    rate: float
    p50: float
    p95: float
    cpu: float
    size: float


def measure(asked: argparse.Namespace) -> bool:
    """Whether the targets are met that could be measured."""
    name = path_of("alexnet")
    tail = tail_of(sp.load(name), CUT)
    (spec,), (out,) = tail.segment.inputs, tail.segment.outputs
    file = Path("out") / "alexnet-tail.onnx"
    tail.segment.save(file)
    waits = {"default": ("", SRC), "never": ("0", SRC), f"{asked.delay:g} ms": (str(asked.delay / 1e3), SRC)}
    waits = {way: args for way, args in waits.items() if not asked.ways or way in asked.ways}
    waits |= {f"beside{k or ''}": ("", src) for k, src in enumerate(asked.beside)}
    with ExitStack() as stack:
        raw = stack.enter_context(helper(RAW, str(file), spec.name, str(MOST)))
        servers = {way: stack.enter_context(helper(SERVE, name, *args)) for way, args in waits.items()}
        addresses: dict[str, str | int] = {way: said(server) for way, server in servers.items()}
        if asked.triton:
            port = str(free_ports())
            args = (str(file), spec.name, out.name, str(round(asked.delay * 1e3)), port)
            servers["Triton"] = stack.enter_context(helper(TRITON, *args, python=asked.triton))
            while said(servers["Triton"]) != "ready":  # it tells much before
                pass
            addresses["Triton"] = int(port)
        said(raw)
        pids = {way: family(server.pid) for way, server in servers.items()}
        met = True
        for clients in asked.clients:
            if clients == 1:
                rows = alone(servers["default"], str(addresses["default"]), tail, asked)
            else:
                rows = rounds(clients, pids, addresses, tail, raw, asked)
            if asked.keep:
                with asked.keep.open("a") as kept:
                    kept.writelines(json.dumps(row) + "\n" for row in rows)
                rows = [row for line in asked.keep.open() if (row := Row(*json.loads(line))).clients == clients]
            met = report(clients, rows) and met
    return met


def family(pid: int) -> list[int]:
    """A process and those that it has begun, and they."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    pids = [pid]
    for parent in pids:
        pids += [child for child, of in parents.items() if of == parent]
    return pids


def rounds(
    clients: int, pids: dict[str, list[int]], addresses: dict[str, str | int], tail: Recorded, raw: Popen[str],
    asked: argparse.Namespace,
) -> list[Row]:  # fmt: skip
    x = tail.feed[tail.segment.inputs[0].name]
    rows = []
    edges = {
        way: [ReplayedHttp(at, x) if isinstance(at, int) else Replayed(at, tail) for _ in range(clients)]
        for way, at in addresses.items()
    }
    for way, of in edges.items():
        play(of, pids[way][0], 2.0, window=1)  # until it is known what batches gain
    for k in range(asked.rounds):
        ways = list(edges)
        for way in ways[k % len(ways) :] + ways[: k % len(ways)]:
            rows.append(phase(way, edges[way], pids[way], asked.seconds))
        ms = float(told(raw, ""))
        rows.append(Row(clients, "raw", MOST * 1e3 / ms, ms, ms, ms / MOST, MOST))
    for of in edges.values():
        for edge in of:
            edge.sock.close()
    return rows


def alone(server: Popen[str], address: str, tail: Recorded, asked: argparse.Namespace) -> list[Row]:
    """One client of one server, which waits by default, never, and by default *again* in turn.

    In one process: two that do the same differ by up to a tenth for as long as they live, by where their memory lies.
    """
    edges, waits, rows = [Replayed(address, tail)], {"default": "", "never": "0", "again": ""}, []
    play(edges, server.pid, 2.0, window=1)
    for k in range(asked.rounds):
        ways = list(waits)
        for way in ways[k % len(ways) :] + ways[: k % len(ways)]:
            told(server, waits[way])
            rows.append(phase(way, edges, [server.pid], asked.seconds))
    told(server, "")
    edges[0].sock.close()
    return rows


def phase(way: str, edges: Sequence[Replayed], pids: Sequence[int], seconds: float) -> Row:
    before = sum(map(cpu_of, pids))
    played = play(edges, pids[0], seconds, window=1)
    cpu_ms = (sum(map(cpu_of, pids)) - before) * 1e3 / (len(played.answers) + len(edges))
    took = [(a.answered_s - a.due_s) * 1e3 for a in played.answers]
    runs = {a.times.compute_s for a in played.answers} - {0.0}
    size = len(took) / len(runs) if runs else 0.0
    p50, p95 = np.percentile(took, (50, 95)).tolist()
    return Row(len(edges), way, len(took) / played.seconds, p50, p95, cpu_ms, size)


def report(clients: int, rows: Sequence[Row]) -> bool:
    """Whether what these rounds say meets the targets."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row.way, []).append(row)
    print(f"{clients} client{'s' * (clients > 1)}, {len(of['default'])} rounds")
    for way, own in of.items():
        rate, p50, p95, cpu, size = map(median, list(zip(*own, strict=True))[2:])
        said = f", {size:.1f} a run" if size else ""
        print(f"  {way:8} {rate:6.1f}/s  p50 {p50:5.1f}  p95 {p95:5.1f} ms  CPU {cpu:5.2f} ms an answer{said}")

    def ratio(way: str, column: str) -> float:
        own, others = of["default"], of[way]
        each: list[float] = [getattr(a, column) / getattr(b, column) for a, b in zip(own, others, strict=True)]
        middle, (low, high) = median(each), median_interval(each)
        print(f" {column} {middle:.3f} [{low:.3f}, {high:.3f}]", end="")
        return middle

    met = True
    for way in of:
        if way not in ("default", "raw"):
            print(f"  default/{way}:", end="")
            rate, p50, p95, _ = (ratio(way, column) for column in ("rate", "p50", "p95", "cpu"))
            print(flush=True)
            if way == "never" and clients == 1:
                met = met and p50 <= 1.02
            if way == "Triton" and clients > 1:
                met = met and rate >= 1.0 and p95 <= 1.1
    return met


def told(process: Popen[str], line: str) -> str:
    """What it answers to `line`."""
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return said(process)


def said(process: Popen[str]) -> str:
    """The next line it prints."""
    assert process.stdout
    if line := process.stdout.readline():
        return line.strip()
    raise SystemExit("a server has ended: it says above why")


def free_ports() -> int:
    """A port of which, and of the next two, nobody listens at now."""
    for port in range(18500, 19500, 10):
        try:
            for k in range(3):
                socket.create_server(("127.0.0.1", port + k)).close()
            return port
        except OSError:
            continue
    raise SystemExit("no three free ports in a row")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ways to wait for a batch.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=4.0, help="what Triton, and ours beside the default, waits, ms")
    parser.add_argument("--triton", metavar="PYTHON", help="a Python with nvidia-pytriton, onnxruntime and numpy")
    parser.add_argument("--beside", metavar="SRC", nargs="*", default=[], help="src of trees whose server is asked too")
    parser.add_argument("--ways", nargs="*", metavar="WAY", help="of ours only these: default, never, 4 ms")
    parser.add_argument("--keep", metavar="FILE", type=Path, help="add the rounds to FILE, report on all it holds")
    asked = parser.parse_args(arguments)
    pin(EDGE_CORE)
    return 0 if measure(asked) else 1


if __name__ == "__main__":
    print(header())
    raise SystemExit(main())
