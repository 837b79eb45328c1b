"""How true the lab's shaped link is: transfer times up and down and round trips against what the link should give.

`python -m bench.relay [RATE …]`. The clock is the system's monotonic one, which two processes share: a transfer begins
before `sendall` and ends when the other process has the last byte. *ideal* is bytes ÷ rate + half the round trip.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from splitpoint.lab.relay import Relay
from splitpoint.link import Link

#: Rate both ways (Mbit/s), round trip (ms), sizes: a few bytes to some hundred milliseconds' worth.
CASES: tuple[tuple[float, float, tuple[int, ...]], ...] = (
    (0.13, 100, (1_000, 4_000, 20_000)),
    (0.5, 100, (1_000, 20_000, 50_000)),
    (1.1, 60, (4_000, 21_000, 100_000)),
    (5.85, 40, (4_000, 21_000, 150_528, 602_112)),
    (18.88, 10, (4_000, 21_000, 150_528, 1_000_000)),
    (100, 3, (4_000, 21_000, 150_528, 602_112, 5_000_000)),
    (200, 2, (4_000, 150_528, 602_112, 10_000_000)),
    (1000, 0.3, (4_000, 150_528, 602_112, 10_000_000)),
)
_ASK = struct.Struct("<QQ")
_STAMP = struct.Struct("<d")

SERVER = """
import socket, struct, time
ask, stamp = struct.Struct("<QQ"), struct.Struct("<d")
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = bytearray(1 << 20)
    try:
        while len(head := peer.recv(ask.size, socket.MSG_WAITALL)) == ask.size:
            up, down = ask.unpack(head)
            while up:
                up -= peer.recv_into(room, min(up, len(room)))
            got = time.monotonic()
            if down:
                peer.sendall(stamp.pack(got) + bytes(down - stamp.size))
            else:
                peer.sendall(stamp.pack(got))
    except ConnectionError:
        pass  # the relay has ended
    peer.close()
"""


@dataclass
class Client:
    sock: socket.socket

    def ask(self, up: int, down: int) -> tuple[float, float, float]:
        """Seconds up, down, and both, of a request with `up` and an answer with `down` bytes."""
        began = time.monotonic()
        self.sock.sendall(_ASK.pack(up - _ASK.size, down) + bytes(up - _ASK.size))
        room = bytearray(1 << 20)
        first = b""
        left = max(down, _STAMP.size)
        while left:
            n = self.sock.recv_into(room, min(left, len(room)))
            if not n:
                raise SystemExit("the server ended")
            if len(first) < _STAMP.size:
                first += bytes(room[: min(n, _STAMP.size)])
            left -= n
        ended = time.monotonic()
        got: float = _STAMP.unpack(first[: _STAMP.size])[0]
        return got - began, ended - got, ended - began


def connect(address: str) -> Client:
    host, port = address.split(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Client(sock)


def repeated(action: Callable[[], float], budget_s: float, least: int = 3, most: int = 15) -> list[float]:
    """Milliseconds of several runs, as many as fit."""
    values: list[float] = []
    end = time.monotonic() + budget_s
    while len(values) < least or (len(values) < most and time.monotonic() < end):
        values.append(action() * 1e3)
    return values


def main(chosen: tuple[float, ...] = ()) -> None:
    print("rate Mbit/s | bytes | ideal ms | up ms (median ÷ ideal, least) | down ms (median ÷ ideal, least)")
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        direct = connect(target)
        for gap in (0.0, 0.02):
            trips = []
            for _ in range(40):
                time.sleep(gap)
                trips.append(direct.ask(_ASK.size, 0)[2] * 1e3)
            print(f"without a relay: round trip {median(trips):.3f} ms ({gap * 1e3:.0f} ms apart)")
        direct.sock.close()
        for rate, rtt, sizes in CASES:
            if chosen and rate not in chosen:
                continue
            with Relay(target, Link(rate, rate, rtt)) as relay:
                client = connect(relay.address)
                client.ask(_ASK.size, 0)
                for nbytes in sizes:
                    case(client, rate, rtt, nbytes)
                round_trips(client, rate, rtt)
                client.sock.close()
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def case(client: Client, rate: float, rtt: float, nbytes: int) -> None:
    ideal = nbytes * 8e-3 / rate + rtt / 2
    ups = repeated(lambda: client.ask(nbytes, 0)[0], 2.0)
    downs = repeated(lambda: client.ask(_ASK.size, nbytes)[1], 2.0)
    print(
        f"{rate:g} | {nbytes:,} | {ideal:.2f} | {median(ups):.2f} ({median(ups) / ideal:.3f}, {min(ups) / ideal:.3f})"
        f" | {median(downs):.2f} ({median(downs) / ideal:.3f}, {min(downs) / ideal:.3f})"
    )


def round_trips(client: Client, rate: float, rtt: float) -> None:
    trips = repeated(lambda: client.ask(_ASK.size, 0)[2], 2.0, 5, 60)
    ideal = rtt + (_ASK.size + _STAMP.size) * 8e-3 / rate
    spread = f"least {min(trips):.3f}, most {max(trips):.3f} of {len(trips)}"
    print(f"{rate:g} | round trip: ideal {ideal:.3f} ms, median {median(trips):.3f}, {spread}")


if __name__ == "__main__":
    main(tuple(float(a) for a in sys.argv[1:]))
