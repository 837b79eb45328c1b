"""Every attack is made on a running server, which must serve an honest client afterwards as if nothing had been."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from serving import Gate, affine, nothing_leaks

from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind, Limits

LIMITS = Limits(
    handshake_s=0.3,
    stall_s=1.0,
    connections=8,
    in_flight=4,
    queue=8,
    segments=20,
    tensor_bytes=64 << 20,
    frame_bytes=64 << 20,
    memory_bytes=96 << 20,
    backlog_bytes=1 << 20,
)


class Attacker:
    """Speaks the wire format by hand, from docs/wire-format.md and not from our code, and so may break it."""

    def __init__(self, address: str, *, hello: bool = True, source: str = "") -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0))
        if hello:
            self.send(2, 0, {"version": [1, 0]})
            assert self.receive()[0] == Kind.WELCOME

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def frame(
        self,
        kind: int,
        id: int,
        header: Any,
        body: bytes = b"",
        *,
        flags: int = 0,
        size: int | None = None,
        major: int = 1,
    ) -> bytes:
        encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
        length = len(body) if size is None else size
        prefix = struct.pack("<4sBBBBIIQ", b"\xf5SPT", major, 0, kind, flags, id, len(encoded), length)
        return prefix + encoded + body

    def send(self, kind: int, id: int, header: Any, body: bytes = b"", **more: Any) -> None:
        self.raw(self.frame(kind, id, header, body, **more))

    def read(self, size: int) -> bytes:
        # In one buffer: joining parts costs the square of the size, and a slow reader is given up.
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            got = self.sock.recv_into(rest)
            if not got:
                raise EOFError
            rest = rest[got:]
        return bytes(data)

    def receive(self) -> tuple[int, int, Any, bytes]:
        """(kind, id, header, body) of the next frame; EOFError when the server has hung up."""
        _, _, _, kind, _, id, header_bytes, body_bytes = struct.unpack("<4sBBBBIIQ", self.read(24))
        return kind, id, msgspec.msgpack.decode(self.read(header_bytes)), self.read(body_bytes)

    def refusal(self) -> str:
        """The words of the ERROR that ends the connection."""
        kind, id, header, _ = self.receive()
        assert (kind, id) == (Kind.ERROR, 0), (kind, id, header)
        self.hung_up()
        return str(header["message"])

    def hung_up(self) -> None:
        """Returns when the server has closed; fails if it says anything more."""
        try:
            rest = self.sock.recv(100)
        except ConnectionResetError:
            rest = b""
        assert rest == b"", rest

    def open(self, fingerprint: str) -> int:
        self.send(20, 1, {"fingerprint": fingerprint, "inputs": ["x"], "outputs": ["y3"]})
        kind, _, header, _ = self.receive()
        assert kind == Kind.OPENED, header
        return int(header["segment"])

    def infer(self, id: int, segment: int, data: bytes | None = None, **more: Any) -> None:
        """An honest request: 1 x 1024 float32."""
        data = bytes(4096) if data is None else data
        self.send(32, id, [segment, [["float32", [1, 1024], 4096, ""]]], data, **more)

    def close(self) -> None:
        self.sock.close()


@dataclass
class Target:
    """A server under attack."""

    server: Server
    model: Model
    gate: Gate
    cache: Path
    told: list[Event] = field(default_factory=list)
    attackers: list[Attacker] = field(default_factory=list)

    def attacker(self, **more: Any) -> Attacker:
        made = Attacker(self.server.address, **more)
        self.attackers.append(made)
        return made

    def serves(self) -> None:
        """An honest client gets its answer."""
        with Edge(self.server.address, at="input", cache=self.cache) as edge:
            x = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)


@contextmanager
def under_attack(folder: Path, limits: Limits = LIMITS) -> Iterator[Target]:
    """A server that must serve an honest client at the end, have lost nothing, and have said of no bug of ours."""
    model, gate = affine(folder), Gate()
    with nothing_leaks():
        told: list[Event] = []
        with Server([model], engine=gate, port=0, limits=limits, on_event=told.append) as server:
            made = Target(server, model, gate, folder / "cache", told)
            yield made
            gate.open.set()
            made.serves()
            for attacker in made.attackers:
                attacker.close()
        internal = [e.sentence for e in told if "internal" in e.sentence]
        assert not internal
        assert server.ledger.held_nbytes == 0, "room for requests was not given back"


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


@contextmanager
def memory_stays(within_mb: int) -> Iterator[None]:
    """Fails if this process, server and attacker, takes more than that at any moment, besides what it has now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: an earlier test's must not hide this one's
    before = _status_kb("VmRSS")
    yield
    assert _status_kb("VmHWM") - before < within_mb << 10
