"""A server that lies, by hand: honest but for what it is told to say instead."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import certificates
import msgspec
import numpy as np
from serving import nothing_leaks

from splitpoint import wire
from splitpoint.engines import Session, open_engine
from splitpoint.models.model import Model
from splitpoint.tensors import Array
from splitpoint.transports.tls import server_context
from splitpoint.wire import Kind

#: Says something itself and returns True, or leaves it to the honest answer.
Says = Callable[["Hostile", int, Any, bytes], bool]


def silent(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    """Never answers."""
    return True


class Hostile:
    """Serves `model` on loopback, to one connection a thread. `says`: what it does instead, by the kind it is asked.

    `asked` counts what came; `welcome`, `fingerprint` and `graph` can be set to something else.
    """

    def __init__(self, model: Model, says: dict[Kind, Says] | None = None, *, tls: bool = False) -> None:
        self.model, self.says, self.asked = model, says or {}, Counter[str]()
        self.graph, self.fingerprint = model.graph_bytes(), model.fingerprint
        self.limits: dict[str, int] = {"in_flight": 64, "blob_chunk": 1 << 20}
        self.times: tuple[float, ...] = ()
        self.closed = threading.Event()
        self._segments: list[tuple[list[str], Session]] = []
        self._context = server_context(certificates.server()) if tls else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._socks: list[socket.socket] = []
        self._here = threading.local()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.closed.is_set():
                sock.close()
                return
            self._socks.append(sock)
            thread = threading.Thread(target=self._talk, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            self._here.sock = sock
            while True:
                _, _, _, kind, _, id, header_bytes, body_bytes = struct.unpack("<4sBBBBIIQ", self._read(24))
                header = msgspec.msgpack.decode(self._read(header_bytes)) if header_bytes else {}
                body = self._read(body_bytes)
                self.asked[Kind(kind).name] += 1
                says = self.says.get(Kind(kind))
                if says is None or not says(self, id, header, body):
                    self._answer(Kind(kind), id, header, body)
        except (OSError, EOFError, ssl.SSLError, ValueError):
            pass
        finally:
            sock.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._here.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    # --- what it can say ----------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        self._here.sock.sendall(data)

    def send(self, kind: Kind, id: int, header: wire.Message, body: bytes = b"") -> None:
        packet = wire.encode(kind, id, header, (body,) if body else (), len(body))
        self.raw(b"".join(bytes(wire.flat(part)) for part in packet.buffers))

    def result(self, id: int, *arrays: Array) -> None:
        packer = wire.Packer(Kind.RESULT, wire.ResultData)
        packet = packer.pack(id, list(arrays), (), self.times or (time.perf_counter(), *(0.0,) * 7))
        self.raw(b"".join(bytes(wire.flat(part)) for part in packet.buffers))

    def drip(self, data: bytes, every_s: float = 0.02) -> None:
        for k in range(len(data)):
            self.raw(data[k : k + 1])
            self.asked["dripped"] += 1
            if self.closed.wait(every_s):
                return

    def welcome(self) -> wire.Welcome:
        specs = [tuple(map(wire.TensorInfo.of, specs)) for specs in (self.model.inputs, self.model.outputs)]
        info = wire.ModelInfo(self.model.name, self.fingerprint, 1000, *specs)
        return wire.Welcome(software="hostile", models=(info,), limits=self.limits)

    # --- honestly -----------------------------------------------------------------------------------------------

    def compute(self, header: Any, body: bytes) -> list[Array]:
        """What an honest server answers to INFER."""
        outputs, session = self._segments[header[0] - 1]
        inputs, at = {}, 0
        for spec, (dtype, shape, nbytes, *_) in zip(session.inputs, header[1], strict=True):
            inputs[spec.name] = np.frombuffer(body[at : at + nbytes], dtype).reshape(shape)
            at += nbytes
        made = session.run(inputs)
        return [made[name] for name in outputs]

    def _answer(self, kind: Kind, id: int, header: Any, body: bytes) -> None:
        now = time.perf_counter()
        if kind == Kind.HELLO:
            self.send(Kind.WELCOME, id, self.welcome())
        elif kind == Kind.PING:
            self.send(Kind.PONG, id, wire.Pong(header[0] if header else 0.0, now, now))
        elif kind == Kind.PROBE:
            self.send(Kind.PROBED, id, wire.Probed(now, now, now), bytes(header[0] if header else 0))
        elif kind == Kind.GRAPH:
            self.send(Kind.GRAPH_DATA, id, wire.GraphData(self.fingerprint), self.graph)
        elif kind == Kind.BLOB:
            data = bytes(self.model.blob(header["hash"]))
            part = data[header.get("offset", 0) :][: header["length"]]
            self.send(Kind.BLOB_DATA, id, wire.BlobData(header["hash"]), part)
        elif kind == Kind.OPEN:
            segment = self.model.segment((*header["inputs"], *header.get("vectors", ())), header["outputs"])
            self._segments.append((header["outputs"], open_engine(threads=1).compile(segment)))
            specs = [tuple(map(wire.TensorInfo.of, specs)) for specs in (segment.inputs, segment.outputs)]
            self.send(Kind.OPENED, id, wire.Opened(len(self._segments), *specs))
        elif kind == Kind.INFER:
            self.result(id, *self.compute(header, body))
        elif kind == Kind.PROFILE:
            self.send(Kind.ERROR, id, wire.Error("refused", "no"))

    def close(self) -> None:
        self.closed.set()
        self._listener.close()
        with socket.socket() as last:  # `accept` may be waiting on what is closed already
            last.settimeout(0.2)
            last.connect_ex(("127.0.0.1", int(self.address.rpartition(":")[2])))
        for sock in list(self._socks):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)
        for _, session in self._segments:
            session.close()


@contextmanager
def hostile(model: Model, says: dict[Kind, Says] | None = None, *, tls: bool = False) -> Iterator[Hostile]:
    """A `Hostile` server, of which nothing is left behind, here or on the device."""
    with nothing_leaks():
        made = Hostile(model, says, tls=tls)
        try:
            yield made
        finally:
            made.close()
