"""Round trips on loopback: a bare socket, splitpoint's Edge and Server, with TLS too, and unary gRPC; the same bytes.

    python bench/wire.py [--rounds 200] [--block 10]

Read this first: loopback has no bandwidth limit and hardly a round trip, so what is compared is software alone, the
worst case for it. On a real link the bytes cost far more. Server processes run on one core and the client on
another. The contenders take turns in blocks within one run, so that they meet the same noise. splitpoint's path is the
whole of it (`Edge.infer`, request ids, checks, clock, trace marks); only the model's computing is left out, by an
engine that returns a ready answer. With TLS every byte is encrypted and decrypted too, by the same two cores, where
without it there is next to nothing to do; *bare TLS* is the standard library's socket, as far as encryption goes the
fastest that Python has. The bare socket knows how many bytes come and receives into one buffer, 64 KiB a call: of the
ways we tried the fastest (one call with MSG_WAITALL is a sixth slower).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep

import numpy as np

from splitpoint import install
from splitpoint.certificates import make
from splitpoint.errors import MissingExtraError
from splitpoint.machine import this_machine, versions
from splitpoint.models import load
from splitpoint.models.model import Segment
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.security import OPEN, Security, ServerSecurity
from splitpoint.tensors import Array, TensorSpec
from splitpoint.transports.tls import client_context, server_context

DOWN_FLOATS = 1024
#: What the project asks of itself: (bytes up, at most this many times the bare socket).
TARGETS = {600_000: 1.3, 4_096: 5.0}
GRPC_TIMES = 2.0
#: Before each turn, so that the one before has come to rest.
_PAUSE_S = 0.002


def two_cores() -> tuple[int, int]:
    """A core for the client and another for the servers; both -1 where that cannot be had."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (cores[0], cores[1]) if len(cores) > 1 else (-1, -1)


def pin(core: int) -> None:
    """Keeps this process on `core`."""
    if core >= 0:
        os.sched_setaffinity(0, {core})


# --- the three servers ------------------------------------------------------------------------------------------------


def serve_bare(pipe: Connection, up: int, security: ServerSecurity | None = None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if security is not None:
        sock = server_context(security).wrap_socket(sock, server_side=True)
    buffer, answer = memoryview(bytearray(up)), bytes(4 * DOWN_FLOATS)
    while True:
        got = 0
        while got < up:
            part = sock.recv_into(buffer[got:], min(64 << 10, up - got))
            if not part:
                return
            got += part
        sock.sendall(answer)


def wait(pipe: Connection) -> None:
    """Returns when the parent is done."""
    with suppress(EOFError):
        pipe.recv()


class ReadySession:
    """Answers at once: what is left is the way there and back."""

    def __init__(self, segment: Segment) -> None:
        self.inputs: tuple[TensorSpec, ...] = segment.inputs
        self.outputs: tuple[TensorSpec, ...] = segment.outputs
        self.nbytes = 0
        self._answer = {segment.outputs[0].name: np.zeros(DOWN_FLOATS, np.float32)}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._answer

    def close(self) -> None:
        pass


class ReadyEngine:
    name, device, threads = "ready", "none", 1

    def compile(self, segment: Segment) -> ReadySession:
        return ReadySession(segment)


def serve_splitpoint(pipe: Connection, up: int, security: ServerSecurity | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = load(model_file(up, Path(folder)))
    with Server([model], engine=ReadyEngine(), port=0, security=security) as server:
        pipe.send(server.address)
        wait(pipe)


def serve_grpc(pipe: Connection, up: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    answer = bytes(4 * DOWN_FLOATS)
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server = grpc.server(ThreadPoolExecutor(2), options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Infer": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(port)
    wait(pipe)
    server.stop(None)


_GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def model_file(up: int, folder: Path) -> Path:
    """An ONNX file that takes `up` bytes of float32 and returns 4 KB."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [numpy_helper.from_array(np.array([n]), name) for n, name in ((0, "begin"), (DOWN_FLOATS, "end"))]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "begin", "end"], ["y"])],
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [up // 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [DOWN_FLOATS])],
        ends,
    )
    path = folder / "bench.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# --- the three clients ------------------------------------------------------------------------------------------------


def run(target: Callable[[Connection, int], None], pipe: Connection, up: int, core: int) -> None:
    pin(core)
    target(pipe, up)


@contextmanager
def process(target: Callable[[Connection, int], None], up: int, core: int) -> Iterator[object]:
    """Runs `target` in a fresh process on `core` and yields the address it sends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=run, args=(target, there, up, core), daemon=True)
    child.start()
    try:
        if not here.poll(60):
            raise SystemExit(f"{target} did not start")
        yield here.recv()
    finally:
        there.close()
        here.close()
        child.join(5)
        child.terminate()


def asking(
    stack: ExitStack,
    serve: Callable[[Connection, int], None],
    floats: Array,
    core: int,
    cache: Path,
    security: Security,
) -> Callable[[], float]:
    """A function that asks the server that `serve` runs, and returns the seconds."""
    address = stack.enter_context(process(serve, floats.nbytes, core))
    edge = stack.enter_context(Edge(str(address), at="input", cache=cache, security=security))

    def ask() -> float:
        started = perf_counter()
        edge.infer(floats)
        return perf_counter() - started

    return ask


def contenders(stack: ExitStack, up: int, core: int) -> dict[str, Callable[[], float]]:
    """Name → a function that makes one round trip and returns its seconds."""
    floats = np.random.default_rng(0).random(up // 4, np.float32)
    data = floats.tobytes()
    calls: dict[str, Callable[[], float]] = {}

    port = stack.enter_context(process(serve_bare, up, core))
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", int(str(port)))))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer = bytearray(4 * DOWN_FLOATS)

    def bare() -> float:
        started = perf_counter()
        sock.sendall(data)
        sock.recv_into(answer, len(answer), socket.MSG_WAITALL)
        return perf_counter() - started

    calls["bare socket"] = bare

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    calls["splitpoint"] = asking(stack, serve_splitpoint, floats, core, folder, OPEN)
    try:
        keys = make(folder / "keys", ["127.0.0.1"], now=datetime.now(timezone.utc))
    except MissingExtraError as exc:
        print(f"{exc}: TLS is left out")
    else:
        security = ServerSecurity(keys.server, keys.server_key)
        port = stack.enter_context(process(partial(serve_bare, security=security), up, core))
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", int(str(port)))))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        known = Security(ca=keys.ca)
        wrapped = stack.enter_context(client_context(known).wrap_socket(plain, server_hostname="127.0.0.1"))

        def bare_tls() -> float:
            started = perf_counter()
            wrapped.sendall(data)
            got = 0
            while got < len(answer):
                got += wrapped.recv_into(answer, len(answer) - got)
            return perf_counter() - started

        calls["bare TLS"] = bare_tls
        serve = partial(serve_splitpoint, security=security)
        calls["splitpoint TLS"] = asking(stack, serve, floats, core, folder, known)

    try:
        import grpc
    except ModuleNotFoundError:
        print(f"grpcio is not installed ({install.extra('bench')}): left out")
        return calls
    port = stack.enter_context(process(serve_grpc, up, core))
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=_GRPC_OPTIONS))
    method = channel.unary_unary("/bench/Infer")

    def unary() -> float:
        started = perf_counter()
        method(data)
        return perf_counter() - started

    calls["gRPC unary"] = unary
    return calls


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(up: int, rounds: int, block: int, core: int) -> dict[str, list[float]]:
    """Seconds of every round trip, by contender, without the first tenth."""
    with ExitStack() as stack:
        calls = contenders(stack, up, core)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        order = list(calls.items())
        for turn in range(rounds + rounds // 10):
            random.shuffle(order)  # nobody is always the one after gRPC, whose threads go on for a while
            for name, call in order:
                sleep(_PAUSE_S)
                times = [call() for _ in range(block)]
                if turn >= rounds // 10:
                    taken[name] += times
    return taken


def report(up: int, taken: Mapping[str, Sequence[float]]) -> None:
    """Prints a table, and whether the targets are met."""
    bare = median(taken["bare socket"])
    print(f"\n{up:,} bytes up, {4 * DOWN_FLOATS:,} down, {len(taken['bare socket'])} round trips each")
    print(f"{'':<16}{'median':>9}{'p10':>9}{'p90':>9}   x bare socket")
    for name, times in taken.items():
        deciles = quantiles(times, n=10)
        row = f"{name:<16}{median(times) * 1e6:>6.0f} µs{deciles[0] * 1e6:>6.0f} µs{deciles[-1] * 1e6:>6.0f} µs"
        print(f"{row}{median(times) / bare:>11.2f}")
    ours = median(taken["splitpoint"])
    verdict = "met" if ours <= TARGETS[up] * bare else "MISSED"
    print(f"target: at most {TARGETS[up]}x the bare socket: {ours / bare:.2f}x, {verdict}")
    if "splitpoint TLS" in taken:
        encrypted = median(taken["splitpoint TLS"])
        print(
            f"TLS: {encrypted / ours:.2f}x without it, {encrypted / median(taken['bare TLS']):.2f}x the bare TLS socket"
        )
    if "gRPC unary" in taken:
        ratio = median(taken["gRPC unary"]) / ours
        verdict = "met" if ratio >= GRPC_TIMES else "MISSED"
        print(f"target: at least {GRPC_TIMES}x faster than gRPC: {ratio:.2f}x, {verdict}")


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description="Round trips on loopback")
    parser.add_argument("--rounds", type=int, default=200, help="turns each contender has (default 200)")
    parser.add_argument("--block", type=int, default=10, help="round trips in a turn (default 10)")
    options = parser.parse_args(list(arguments))
    print(this_machine())
    print(", ".join(f"{k} {v}" for k, v in versions(("splitpoint", "numpy", "msgspec", "grpcio")).items()))
    near, far = two_cores()
    pin(near)
    where = f"client on core {near}, servers on core {far}" if near >= 0 else "not pinned: one core only"
    print(f"{where}; {options.block} round trips a turn")
    for up in TARGETS:
        report(up, measure(up, options.rounds, options.block, far))
    print("\nA missed target does not fail this run: it is a measurement, not a test.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
