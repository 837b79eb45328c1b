"""A split request against its physical limit: head + bare socket + tail, both processes pinned apart."""

from __future__ import annotations

import socket
import subprocess
import sys

import splitpoint as sp
from bench.common import ECHO, EDGE_CORE, SERVE, TAIL, header, helper, interleaved, pin
from splitpoint.segments import samples_for

TARGET_MS = 0.3


def main(model_name: str = "mobilenet_v2.onnx", at: str = "middle", rounds: int = 300) -> None:
    pin(EDGE_CORE)
    model = sp.load(model_name)
    cut = model.graph.cut(at)
    up, down = cut.nbytes, sum(t.bind(model.graph.assumed).nbytes for t in model.outputs)
    image = samples_for(model, 1)[0]
    head = sp.open_engine(threads=1).compile(model.head(cut))
    with helper(TAIL, model_name, cut.name) as tail, helper(SERVE, model_name) as server:
        said(tail)
        with (
            helper(ECHO, str(up), str(down)) as echo,
            sp.Edge(said(server), model, at=cut, engine=sp.open_engine(threads=1)) as edge,
            Trip(int(said(echo)), up, down) as bare,
        ):
            times = interleaved(
                {
                    "split": lambda: edge.infer(image) and None,
                    "head": lambda: head.run(image) and None,
                    "socket": bare,
                    "tail": lambda: ask(tail),
                },
                rounds,
            )
    limit = times["head"] + times["socket"] + times["tail"]
    print(f"{model.name} cut at {cut.name}: {up} B up, {down} B down; medians of {rounds}, interleaved")
    print(f"  head {times['head']:.2f} + bare socket {times['socket']:.2f} + tail {times['tail']:.2f} = {limit:.2f} ms")
    print(f"  split request {times['split']:.2f} ms: {times['split'] - limit:+.2f} ms (target ≤ {TARGET_MS:+.1f})")


class Trip:
    """A round trip of `up` and `down` bytes over a bare socket, each time it is called."""

    def __init__(self, port: int, up: int, down: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._payload, self._answer = bytes(up), bytearray(down)

    def __call__(self) -> None:
        self._socket.sendall(self._payload)
        self._socket.recv_into(self._answer, len(self._answer), socket.MSG_WAITALL)

    def __enter__(self) -> Trip:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def ask(tail: subprocess.Popen[str]) -> float:
    """Milliseconds of one run of the tail alone, in a process of its own."""
    assert tail.stdin
    tail.stdin.write("\n")
    tail.stdin.flush()
    return float(said(tail))


def said(process: subprocess.Popen[str]) -> str:
    """The next line a helper prints."""
    assert process.stdout
    return process.stdout.readline().strip()


if __name__ == "__main__":
    print(header())
    main(*sys.argv[1:3])
