"""A device against a server that says what hypothesis chooses: however wrong, late or long, a device with the whole
model answers, and one without a fallback is told what is wrong in one sentence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis.stateful import initialize
from serving import nothing_leaks
from steps import Stepping, kept, run, step

from splitpoint.engines import open_engine
from splitpoint.errors import SplitpointError
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client import ready_cuts as cuts
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.result import Result
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.wire import MAGIC, PREFIX_BYTES, Kind, Limits

#: A device that has no answer after so long is kept by its server: all its own waits are far shorter.
BOUND_S = 10.0
SHORT = Patience(
    answer_s=0.3, connect_s=0.3, first_s=0.05, least_s=0.02, pong_s=0.1, failures=3, pause_s=0.005,
    longest_pause_s=0.02, greet_s=0.2, seed=1,
)  # fmt: skip
LIMITS = Limits(frame_bytes=4 << 20, tensor_bytes=4 << 20, memory_bytes=16 << 20, stall_s=0.2)
_PREFIX = struct.Struct("<4sBBBBIIQ")
_RIGHT = {
    Kind.HELLO: Kind.WELCOME,
    Kind.PING: Kind.PONG,
    Kind.PROBE: Kind.PROBED,
    Kind.OPEN: Kind.OPENED,
    Kind.INFER: Kind.RESULT,
    Kind.PROFILE: Kind.PROFILED,
}
NAN, INF = float("nan"), float("inf")


def _frame(kind: int, id: int, header: Any, body: bytes = b"", *, flags: int = 0, size: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    length = len(body) if size is None else size
    return _PREFIX.pack(MAGIC, 1, 2, kind, flags, id, len(encoded), length) + encoded + body


class Liar:
    """A server of `model` that tells the truth but for what it is told to say: `lies` by the kind they answer."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.engine = open_engine(threads=1)
        self.tails: dict[tuple[str, ...], Any] = {}
        self.lies: dict[int, deque[str]] = {}
        self.told = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._conversations: list[tuple[threading.Thread, socket.socket]] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._conversations = [(t, s) for t, s in self._conversations if t.is_alive()]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._converse, args=(sock,), daemon=True)
            self._conversations.append((thread, sock))
            thread.start()

    def _converse(self, sock: socket.socket) -> None:
        opened: dict[int, Any] = {}
        speaks = True
        with sock, suppress(OSError, EOFError):
            while True:
                _, _, _, kind, _, id, header_bytes, body_bytes = _PREFIX.unpack(_read(sock, PREFIX_BYTES))
                header = msgspec.msgpack.decode(_read(sock, header_bytes))
                body = _read(sock, body_bytes)
                if kind in _RIGHT and speaks:
                    speaks = self._answer(sock, kind, id, self._truth(kind, header, body, opened))

    def _truth(self, kind: int, header: Any, body: bytes, opened: dict[int, Any]) -> tuple[Any, bytes]:
        model = self.model
        if kind == Kind.HELLO:
            ends = [[[t.name, t.dtype, t.shape] for t in side] for side in (model.inputs, model.outputs)]
            info = {"name": model.name, "fingerprint": model.fingerprint, "inputs": ends[0], "outputs": ends[1]}
            return {"version": [1, 2], "features": header.get("features", []), "models": [info]}, b""
        if kind == Kind.OPEN:
            segment = model.segment([*header["inputs"], *header.get("vectors", ())], header["outputs"])
            session = self.tails.get(tuple(header["inputs"])) or self.engine.compile(segment)
            self.tails[tuple(header["inputs"])] = session
            number = len(opened) + 1
            opened[number] = segment, session
            ends = [[[t.name, t.dtype, t.shape] for t in side] for side in (segment.inputs, segment.outputs)]
            return {"segment": number, "inputs": ends[0], "outputs": ends[1]}, b""
        if kind == Kind.INFER:
            segment, session = opened[header[0]]
            dtype, shape, *_ = header[1][0]
            made = session.run({segment.inputs[0].name: np.frombuffer(body, dtype).reshape(shape)})
            arrays = [made[t.name] for t in segment.outputs]
            now = time.perf_counter()
            times = struct.pack("<8d", now, 0, 0, 0, 1e-5, 0, 0, 0)
            return [[[a.dtype.name, a.shape, a.nbytes] for a in arrays]], times + b"".join(a.tobytes() for a in arrays)
        if kind == Kind.PING:
            return [header[0], time.perf_counter(), time.perf_counter()], b""
        if kind == Kind.PROBE:
            return [time.perf_counter()] * 3, bytes(header[0] if header else 0)
        return {"fingerprint": model.fingerprint}, b"{}"

    def _answer(self, sock: socket.socket, kind: int, id: int, truth: tuple[Any, bytes]) -> bool:
        """Whether it goes on speaking: what came after half a frame would be the rest of it, and so a wrong value."""
        lies = self.lies.get(kind)
        lie = lies.popleft() if lies else "truth"
        self.told += lie != "truth"
        header, body = truth
        right = _RIGHT[Kind(kind)]
        made = _frame(right, id, header, body)
        if lie == "late":
            time.sleep(0.15)
        elif lie == "twice":
            made += made
        elif lie == "another id":
            made = _frame(right, (id + 1000) % 2**32, header, body)
        elif lie == "all ids":
            made = b"".join(_frame(right, n, header, body) for n in range(50))
        elif lie == "id 0":
            made = _frame(right, 0, header, body)
        elif lie == "another kind":
            made = _frame(Kind.GRAPH_DATA, id, {"fingerprint": "x"}, b"")
        elif lie == "a request":
            made = _frame(Kind.INFER, id, [1, []])
        elif lie == "unknown kind":
            made = _frame(200, id, b"\xc0", bytes(30))
        elif lie == "no header":
            made = _frame(right, id, b"\xc0")
        elif lie == "deep":
            made = _frame(right, id, b"\x91" * 3000 + b"\xc0")
        elif lie == "huge":
            made = _frame(right, id, header, body, size=1 << 40)
        elif lie == "half, then silence":
            made = made[: len(made) // 2 or 1]
        elif lie == "half, then the end":
            sock.sendall(made[: len(made) // 2 or 1])
            raise EOFError
        elif lie == "drips":
            for byte in made[:12]:
                sock.sendall(bytes([byte]))
                time.sleep(0.01)
            made = made[12:]
        elif lie == "nothing":
            made = b""
        elif lie == "the end":
            raise EOFError
        elif lie == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise EOFError
        elif lie == "BYE":
            made = _frame(Kind.BYE, 0, {"reason": "\x1b[2J\u202e" * 100}) + made
        elif lie == "noise":
            made = b"HTTP/1.1 200 OK\r\n\r\n" * 3
        elif lie == "major":
            made = _PREFIX.pack(MAGIC, 9, 0, right, 0, id, 0, 0)
        elif lie.startswith("busy "):
            made = _frame(Kind.BUSY, id, {"retry_after_s": float(lie[5:]), "message": "\x1b[2J"})
        elif lie.startswith("error "):
            made = _frame(Kind.ERROR, id, {"code": lie[6:], "message": "[red]" * 1000, "retry_after_s": 0.0})
        elif lie == "error for all":
            made = _frame(Kind.ERROR, 0, {"code": "internal", "message": "x"})
        elif lie.startswith("rows ") and kind == Kind.INFER:
            rows = int(lie[5:])
            spec = self.model.outputs[0]
            array = np.zeros([rows, *map(int, spec.shape[1:])], spec.dtype)
            made = _frame(right, id, [[[spec.dtype, array.shape, array.nbytes]]], body[:64] + array.tobytes())
        elif lie == "dtype" and kind == Kind.INFER:
            made = _frame(right, id, [[["float64", [1, 10], 80]]], body[:64] + bytes(80))
        elif lie == "codec" and kind == Kind.INFER:
            made = _frame(right, id, [[["float32", [1, 10], 20, "fp16"]]], body[:64] + bytes(20))
        elif lie == "none" and kind == Kind.INFER:
            made = _frame(right, id, [[]], body[:64])
        elif lie.startswith("times ") and kind == Kind.INFER:
            made = _frame(right, id, header, struct.pack("<8d", *[float(lie[6:])] * 8) + body[64:])
        elif lie.startswith("times ") and kind in (Kind.PING, Kind.PROBE):
            made = _frame(right, id, [float(lie[6:])] * 3, body)
        elif lie == "another segment" and kind == Kind.OPEN:
            made = _frame(right, id, {**header, "inputs": header["outputs"], "outputs": header["inputs"]})
        elif lie == "no models" and kind == Kind.HELLO:
            made = _frame(right, id, {**header, "models": []})
        elif lie == "other limits" and kind == Kind.HELLO:
            made = _frame(right, id, {**header, "limits": {"in_flight": -5, "blob_chunk": 0, "\x1b": 2**62}})
        elif lie == "other models" and kind == Kind.HELLO:
            made = _frame(right, id, {**header, "models": [{**header["models"][0], "fingerprint": "\u202e" * 64}]})
        sock.sendall(made)
        return lie != "half, then silence"

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()
        for _, sock in self._conversations:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread, _ in self._conversations:
            thread.join()
        for session in self.tails.values():
            session.close()


def _read(sock: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        part = sock.recv(nbytes - len(data))
        if not part:
            raise EOFError
        data += part
    return data


lies = st.sampled_from(
    ["truth", "late", "twice", "another id", "all ids", "id 0", "another kind", "a request", "unknown kind",
     "no header", "deep", "huge", "half, then silence", "half, then the end", "drips", "nothing", "the end", "reset",
     "BYE", "noise", "major", "busy 0.0", "busy 1e9", "busy nan", "busy -1", "error input", "error busy",
     "error refused", "error made up", "error unauthorized", "error for all", "rows 0", "rows 2", "rows 1000", "dtype",
     "codec", "none", "times nan", "times inf", "times -1e300", "times 1e300", "another segment", "no models",
     "other limits", "other models"]
)  # fmt: skip
lying = st.lists(lies, min_size=1, max_size=4)
kinds = st.sampled_from([Kind.INFER, Kind.INFER, Kind.INFER, Kind.PING, Kind.OPEN, Kind.HELLO, Kind.PROBE])


#: Inputs, and what the whole model makes of them.
Known = tuple[Mapping[str, Array], Mapping[str, Array]]


class Lied(Stepping):
    """A device asks, and its server lies."""

    def __init__(
        self, liar: Liar, known: tuple[Mapping[str, Array], Mapping[str, Array]], fallback: str, wrong: list[str]
    ) -> None:
        super().__init__(wrong)
        self.liar, self.fallback = liar, fallback
        self.inputs, self.expected = known
        liar.lies.clear()
        self.edge: Edge | None = None

    @kept
    def teardown(self) -> None:
        self.liar.lies.clear()
        self.leaves()

    def bounded(self, work: Callable[[], Any], *, must: bool = True) -> Any:
        """What `work` gives, in time; None if it is told what is wrong, as it never is (`must`) with the fallback."""
        began = time.monotonic()
        try:
            return work()
        except SplitpointError as exc:
            wrong = str(exc)
        finally:
            assert time.monotonic() - began < BOUND_S, "the server has kept the device"
        assert wrong.isprintable(), repr(wrong[:300])
        assert not must or self.fallback != "local", f"no answer, although the whole model is here: {wrong[:300]}"
        return None

    @initialize()
    @kept
    def begins(self) -> None:
        self.comes()

    def comes(self) -> None:
        self.edge = self.bounded(
            lambda: Edge(
                self.liar.address, self.liar.model, at="pool1", fallback=self.fallback, patience=SHORT,
                wire=WireSettings(limits=LIMITS), on_event=lambda _: None,
            )
        )  # fmt: skip

    def leaves(self) -> None:
        edge, self.edge = self.edge, None
        if edge is not None:
            self.bounded(edge.close)

    def check(self, result: Result) -> None:
        for name, array in self.expected.items():
            np.testing.assert_allclose(result.outputs[name], array, rtol=1e-4, atol=1e-5)
        assert result.fallback.isprintable()
        assert "nan" not in str(result.trace)

    @step(kind=kinds, said=lying, times=st.sampled_from([1, 2, 5]), deadline_s=st.sampled_from([0.0, 0.0, 0.05]))
    def asks(self, kind: int, said: list[str], times: int, deadline_s: float) -> None:
        self.liar.lies[kind] = deque(said)
        for _ in range(times):
            if self.edge is None:
                self.comes()
            elif (result := self.bounded(partial(self.edge.infer, self.inputs, deadline_s=deadline_s))) is not None:
                self.check(result)
            else:
                self.leaves()

    @step(kind=kinds, said=lying, window=st.sampled_from([1, 4]))
    def streams(self, kind: int, said: list[str], window: int) -> None:
        self.liar.lies[kind] = deque(said)
        if (edge := self.edge) is not None:
            results = self.bounded(lambda: list(edge.stream([self.inputs] * 6, window=window)))
            for result in results or ():
                self.check(result)
            if results is None:
                self.leaves()

    @step(kind=kinds, said=lying, cut=st.sampled_from(["conv2", "fc1", "pool1", "input", "output"]))
    def switches(self, kind: int, said: list[str], cut: str) -> None:
        self.liar.lies[kind] = deque(said)
        if self.edge is not None:
            self.bounded(partial(self.edge.switch, cut))

    @step(kind=kinds, said=lying)
    def looks_at_the_link(self, kind: int, said: list[str]) -> None:
        self.liar.lies[kind] = deque(said)
        if (edge := self.edge) is not None:
            self.bounded(edge.ping, must=False)
            self.bounded(lambda: edge.glimpse(2000, 0.1), must=False)
            assert not np.isnan((edge.clock_error_ms, edge.round_trip_ms)).any()

    @step(kind=kinds, said=lying)
    def comes_again(self, kind: int, said: list[str]) -> None:
        self.liar.lies[kind] = deque(said)
        self.leaves()
        self.comes()


@pytest.mark.parametrize("fallback", ["local", "error"])
def test_whatever_a_server_says(fallback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "COMPILE_S", 0.5)  # so long it may compile, which is minutes
    model = load("zoo:lenet5")
    inputs = samples_for(model, 1)[0]
    whole = open_engine(threads=1).compile(model.whole())
    known = inputs, whole.run(inputs)
    whole.close()
    with nothing_leaks():
        liar = Liar(model)
        try:
            run(partial(Lied, liar, known, fallback), examples=4)
        finally:
            liar.close()
    assert liar.told > 20
