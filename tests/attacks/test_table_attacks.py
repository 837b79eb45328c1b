"""Tables of codecs, and bits that were made with some: what a client may try with a server, and a server with a device.
Each is one error of that request alone, or another codec, which is said; memory stays what it was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from attacking import LIMITS, Attacker, memory_stays
from calibration_cases import ENGINE
from hostile import Hostile, hostile
from serving import nothing_leaks
from tabled import AT, TENSOR, answers, calibration, digits, lenet, other_calibration, tables_for

from splitpoint import wire
from splitpoint.codecs.klt import Klt
from splitpoint.codecs.klt_tables import MAX_TABLES_BYTES, sent_with
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.wire import Kind

SHAPE = (1, 6, 14, 14)


@pytest.fixture(autouse=True, scope="module")
def _made_before() -> None:
    digits(), answers(), calibration(), other_calibration()


def feature(k: int = 10) -> Array:
    session = ENGINE.compile(lenet().head(lenet().graph.cut(AT)))
    try:
        return session.run(digits()[k])[TENSOR]
    finally:
        session.close()


@contextmanager
def attacked(share: str = "model") -> Iterator[tuple[Attacker, Server]]:
    """A server with tables, which must serve an honest device at the end."""
    told: list[Event] = []
    limits: Any = {"limits": LIMITS, "calibrations": [calibration()], "on_event": told.append}
    with nothing_leaks(), Server([lenet()], engine=ENGINE, port=0, share=share, **limits) as server:
        attacker = Attacker(server.address)
        yield attacker, server
        model = lenet() if share == "none" else None
        own = calibration() if share == "none" else None
        with Edge(server.address, model, at=AT, codec="klt:100", calibration=own) as edge:
            result = edge.infer(digits()[10])
            assert result.codecs == {TENSOR: "klt:100"}
            assert result.outputs["logits"].argmax() == answers()[0].argmax()
        attacker.close()
    assert not [event for event in told if event.kind == "failed"]


def opened(attacker: Attacker, *inputs: str) -> int:
    attacker.send(20, 1, {"fingerprint": lenet().fingerprint, "inputs": inputs, "outputs": ["logits"]})
    kind, _, header, _ = attacker.receive()
    assert kind == Kind.OPENED, header
    return int(header["segment"])


def ask(attacker: Attacker, id: int, segment: int, codec: str, body: bytes, shape: tuple[int, ...] = SHAPE) -> str:
    """The words of the ERROR that this request alone gets; empty if it gets a RESULT."""
    attacker.send(32, id, [segment, [["float32", list(shape), len(body), codec]]], body)
    kind, got, header, _ = attacker.receive()
    assert got == id
    assert kind in (Kind.RESULT, Kind.ERROR), header
    if kind == Kind.ERROR:
        assert header["code"] == "input", header
        assert str(header["message"]).isprintable()
        return str(header["message"])
    return ""


# --- a client ---------------------------------------------------------------------------------------------------------


def test_tables_that_the_server_does_not_have_or_has_for_another_tensor() -> None:
    codec = Klt("klt:50", tables_for(calibration()))
    body, right = codec.encode(feature()).tobytes(), codec.sent_as
    with attacked() as (attacker, _):
        segment, deeper = opened(attacker, TENSOR), opened(attacker, "pool2")
        assert ask(attacker, 2, segment, right, body) == ""
        others = sent_with(tables_for(other_calibration())), sent_with(tables_for(calibration(), "pool2"))
        for id, name in enumerate((*others, "klt:" + "0" * 16, "klt:", "klt", "klt:50", right[:-1], right + "0"), 10):
            words = ask(attacker, id, segment, name, body)
            assert f"and this server has those of {right} for it" in words, (name, words)
        assert f"this server has those of {others[1]} for it" in ask(attacker, 30, deeper, right, body, (1, 16, 5, 5))
        assert "not known here" in ask(attacker, 31, segment, right.upper(), body)
        assert "not known here" in ask(attacker, 32, segment, right + "é" * 30, body)
        # What has no tables at all, and what is no tensor of that segment.
        assert "this server has no tables for it" in ask(
            attacker, 33, opened(attacker, "conv1"), right, body, (1, 6, 28, 28)
        )
        assert "must be float32" in ask(attacker, 34, segment, right, body, (1, 6, 14, 13))
        assert ask(attacker, 35, segment, right, body) == ""


def test_bits_that_end_early_or_never_or_are_damaged() -> None:
    codec = Klt("klt:50", tables_for(calibration()))
    body, name = codec.encode(feature()).tobytes(), codec.sent_as
    rng = np.random.default_rng(0)
    with attacked() as (attacker, _), memory_stays(within_mb=16):
        segment = opened(attacker, TENSOR)
        bodies = [body[:k] for k in (0, 1, 2, 3, 7, len(body) // 2, len(body) - 1)]
        bodies += [body + b"\0", body + body, bytes(len(body)), b"\xff" * len(body), rng.bytes(300)]
        for id, bad in enumerate(bodies, 2):
            assert ask(attacker, id, segment, name, bad), bad[:8]
        for id in range(100, 300):
            damaged = bytearray(body)
            for at in rng.integers(len(body), size=1 + id % 4):
                damaged[at] ^= 1 << int(rng.integers(8))
            ask(attacker, id, segment, name, bytes(damaged))  # an answer or an error, and nothing else
        assert ask(attacker, 999, segment, name, body) == ""


def test_more_bytes_than_an_honest_encoding_are_refused_before_they_are_received() -> None:
    codec = Klt("klt:50", tables_for(calibration()))
    body, size = codec.encode(feature()).tobytes(), 48 << 20
    with attacked() as (attacker, _), memory_stays(within_mb=16):
        segment = opened(attacker, TENSOR)
        header = [segment, [["float32", list(SHAPE), size, codec.sent_as]]]
        attacker.raw(attacker.frame(32, 2, header, b"", size=size))
        for _ in range(48):
            attacker.raw(bytes(1 << 20))
        kind, id, said, _ = attacker.receive()
        assert (kind, id) == (Kind.ERROR, 2)
        assert "takes at most" in said["message"]
        assert ask(attacker, 3, segment, codec.sent_as, body) == ""


def test_a_batch_that_says_it_is_a_million_rows_takes_no_memory() -> None:
    codec = Klt("klt:50", tables_for(calibration()))
    with attacked() as (attacker, _), memory_stays(within_mb=32):
        segment = opened(attacker, TENSOR)
        assert ask(attacker, 2, segment, codec.sent_as, bytes(100), (10_000, 6, 14, 14))


@pytest.mark.parametrize(
    ("share", "leaves"), [("model", True), ("head:pool1", True), ("head:conv1", False), ("none", False)]
)
def test_tables_are_handed_out_like_the_weights_of_the_head(share: str, leaves: bool) -> None:
    if share == "head:conv1":  # behind which no tail is run: the honest device of `attacked` could not cut there
        with Server([lenet()], engine=ENGINE, port=0, share=share, calibrations=[calibration()]) as server:
            attacker = Attacker(server.address)
            _fetches(attacker, leaves=False)
            attacker.close()
        return
    with attacked(share) as (attacker, _):
        _fetches(attacker, leaves=leaves)


def _fetches(attacker: Attacker, *, leaves: bool) -> None:
    tables = tables_for(calibration())
    request = {"fingerprint": lenet().fingerprint, "hash": tables.hash, "offset": 0, "length": 0}
    attacker.send(18, 5, request)
    kind, _, header, body = attacker.receive()
    assert (kind == Kind.BLOB_DATA) == leaves, header
    if leaves:
        assert body == tables.to_bytes()
    attacker.send(18, 6, {**request, "hash": tables_for(other_calibration()).hash})
    kind, _, header, _ = attacker.receive()
    assert kind == Kind.ERROR
    assert header["code"] in ("model", "refused")


def test_who_does_not_know_the_codec_is_told_of_no_tables() -> None:
    with attacked() as (_, server):
        for features, told in ((["codec:int8"], False), (["codec:klt"], True)):
            attacker = Attacker(server.address, hello=False)
            attacker.send(2, 0, {"version": [1, 3], "features": features})
            _, _, header, _ = attacker.receive()
            assert ("tables" in header["models"][0]) == told
            attacker.close()


# --- a server ---------------------------------------------------------------------------------------------------------


class _Liar:
    """A server that says `tables` in WELCOME, and answers BLOB for them with `data`."""

    def __init__(self, tables: list[Any], data: bytes) -> None:
        self.tables, self.data = tables, data

    def hello(self, server: Hostile, id: int, header: Any, body: bytes) -> bool:
        welcome = server.welcome()
        models = tuple(msgspec.structs.replace(m, tables=tuple(map(tuple, self.tables))) for m in welcome.models)
        features = ("codec:klt", "codec:int8")
        server.send(Kind.WELCOME, id, msgspec.structs.replace(welcome, models=models, features=features))
        return True

    def blob(self, server: Hostile, id: int, header: Any, body: bytes) -> bool:
        if header["hash"] not in {hash for _, hash, _ in self.tables}:
            return False
        part = self.data[header.get("offset", 0) :][: header["length"]]
        server.send(Kind.BLOB_DATA, id, wire.BlobData(header["hash"], 0, len(self.data)), part)
        return True

    def infer(self, server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.result(id, np.zeros((1, 10), np.float32))
        return True


def _good() -> bytes:
    return tables_for(calibration()).to_bytes()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


OTHER = b"KLT2" + bytes(4000)


@pytest.mark.parametrize(
    ("tables", "data", "why"),
    [
        ([(TENSOR, "0" * 64, 4000)], bytes(4000), "has the hash"),
        ([(TENSOR, _hash(OTHER), 4004)], OTHER, "codec tables"),
        ([(TENSOR, _hash(OTHER), 1 << 30)], OTHER, r"have 1\.\d GB at the server, and"),
        ([(TENSOR, _hash(OTHER), MAX_TABLES_BYTES + 1)], OTHER, "are the most"),
        ([(TENSOR, _hash(OTHER), 9000)], OTHER, "asked for 9000 bytes"),
        ([(TENSOR, "../../../etc/passwd", 4004)], OTHER, "is no SHA-256"),
        ([(TENSOR, "x" * 100_000, 4004)], OTHER, "is no SHA-256"),
        ([("elsewhere", _hash(OTHER), 4004)], OTHER, "hands out none"),
        ([], OTHER, "has no tables for it"),
    ],
)  # fmt: skip
def test_a_server_that_lies_of_its_tables_gets_int8_and_is_said(
    tables: list[Any], data: bytes, why: str, tmp_path: Path
) -> None:  # fmt: skip
    liar, told = _Liar(tables, data), list[Event]()
    says: Any = {Kind.HELLO: liar.hello, Kind.BLOB: liar.blob, Kind.INFER: liar.infer}
    with (
        hostile(lenet(), says) as server,
        memory_stays(within_mb=32),
        Edge(server.address, lenet(), at=AT, codec="klt:50", cache=tmp_path, on_event=told.append) as edge,
    ):
        assert edge.codecs == {TENSOR: "int8"}
        assert edge.infer(digits()[10]).codecs == {TENSOR: "int8"}
        assert edge.infer(digits()[11]).codecs == {TENSOR: "int8"}, "the connection lives on"
    (said,) = [event.sentence for event in told if event.kind == "notice"]
    assert said.startswith(f"{TENSOR} travels as int8 instead of klt:50: ")
    assert re.search(why, said), said
    assert len(said) < 400
    assert not [h for _, h, _ in tables if len(h) == 64 and h in BlobCache(tmp_path) and h != _hash(data)]


def test_a_server_that_gives_the_tables_of_another_tensor(tmp_path: Path) -> None:
    deeper, told = tables_for(calibration(), "pool2").to_bytes(), list[Event]()
    liar = _Liar([(TENSOR, _hash(deeper), len(deeper))], deeper)
    says: Any = {Kind.HELLO: liar.hello, Kind.BLOB: liar.blob, Kind.INFER: liar.infer}
    with (
        hostile(lenet(), says) as server,
        Edge(server.address, lenet(), at=AT, codec={TENSOR: "klt:50"}, cache=tmp_path, on_event=told.append) as edge,
    ):
        assert edge.infer(digits()[10]).codecs == {TENSOR: "int8"}
    (said,) = [event.sentence for event in told if event.kind == "notice"]
    assert "are of another tensor, [batch,16,5,5]" in said


def test_tables_in_the_cache_that_have_rotted_are_fetched_again(tmp_path: Path) -> None:
    hash = tables_for(calibration()).hash
    with nothing_leaks(), Server([lenet()], engine=ENGINE, port=0, calibrations=[calibration()]) as server:
        with Edge(server.address, at=AT, codec="klt:100", cache=tmp_path):
            pass
        path = BlobCache(tmp_path).path(hash)
        path.write_bytes(bytes(path.stat().st_size))
        with Edge(server.address, at=AT, codec="klt:100", cache=tmp_path) as edge:
            assert edge.infer(digits()[10]).codecs == {TENSOR: "klt:100"}
        assert path.read_bytes() == _good()
