"""Frames as bytes, for those who read them."""

from __future__ import annotations

from places import DOCS

from splitpoint import wire
from splitpoint.transports import memory
from splitpoint.wire import Packet, flat

DOC = DOCS / "wire-format.md"


def joined(packet: Packet) -> bytes:
    data = b"".join(bytes(flat(b)) for b in packet.buffers)
    assert len(data) == packet.nbytes
    return data


def drain(connection: memory.MemoryConnection) -> None:
    """Receives until that raises."""
    while True:
        connection.receive(timeout_s=0.05)


def dump(data: bytes) -> str:
    """16 bytes a line, the prefix on lines of its own."""
    lines = []
    for part in (data[: wire.PREFIX_BYTES], data[wire.PREFIX_BYTES :]):
        for at in range(0, len(part), 16):
            row = part[at : at + 16]
            text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
            lines.append(f"{row.hex(' '):<47}  {text}")
    return "\n".join(lines)
