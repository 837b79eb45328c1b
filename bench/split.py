"""A split request against its physical limit: head + bare socket + tail, both processes pinned apart."""

from __future__ import annotations

import socket
import sys
from time import perf_counter

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
    with (
        helper(SERVE, model_name) as server,
        helper(ECHO, str(up), str(down)) as echo,
        helper(TAIL, model_name, cut.name) as tail,
    ):
        assert server.stdout
        assert echo.stdout
        assert tail.stdout
        assert tail.stdin
        address, port = server.stdout.readline().strip(), int(echo.stdout.readline())
        tail.stdout.readline()
        with (
            sp.Edge(address, model, at=cut, engine=sp.open_engine(threads=1)) as edge,
            socket.create_connection(("127.0.0.1", port)) as bare,
        ):
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            payload, buffer = bytes(up), bytearray(down)

            def trip() -> None:
                bare.sendall(payload)
                bare.recv_into(buffer, down, socket.MSG_WAITALL)

            def ask() -> float:
                assert tail.stdin
                assert tail.stdout
                tail.stdin.write("\n")
                tail.stdin.flush()
                return float(tail.stdout.readline())

            def whole() -> float:
                start = perf_counter()
                edge.infer(image)
                return (perf_counter() - start) * 1e3

            def alone() -> None:
                head.run(image)

            times = interleaved({"split": whole, "head": alone, "socket": trip, "tail": ask}, rounds)
    limit = times["head"] + times["socket"] + times["tail"]
    over = times["split"] - limit
    print(f"{model.name} cut at {cut.name}: {up} B up, {down} B down; medians of {rounds}, interleaved")
    print(f"  head {times['head']:.2f} + bare socket {times['socket']:.2f} + tail {times['tail']:.2f} = {limit:.2f} ms")
    print(f"  split request {times['split']:.2f} ms: {over:+.2f} ms (target ≤ {TARGET_MS:+.1f})")


if __name__ == "__main__":
    print(header())
    main(*sys.argv[1:3])
