"""What a hostile or broken client may try with encoded tensors. The server must serve on, and in bounded memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from attacking import LIMITS, Attacker, Target, memory_stays
from onnx import TensorProto, helper
from PIL import Image
from serving import Gate, nothing_leaks, until

from splitpoint.codecs import open_codec
from splitpoint.models import load
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import spec_of
from splitpoint.wire import BATCH, Kind, features

X = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
CODECS = ("raw+zstd", "fp16", "fp16+zstd", "int8", "int8+zstd", "int4", "int4+zstd")


def honest(codec: str, array: np.ndarray = X) -> bytes:
    return open_codec(codec).encode(array).tobytes()


def ask(attacker: Attacker, id: int, segment: int, codec: str, body: bytes, shape: object = (1, 1024)) -> str:
    """The words of the ERROR that this request alone gets; empty if it gets a RESULT."""
    attacker.send(32, id, [segment, [["float32", list(shape), len(body), codec]]], body)  # type: ignore[call-overload]
    kind, got, header, _ = attacker.receive()
    assert got == id
    assert kind in (Kind.RESULT, Kind.ERROR), header
    if kind == Kind.RESULT:
        return ""
    assert header["code"] == "input", header
    return str(header["message"])


@pytest.mark.parametrize(
    "codec",
    [
        "webp:90", "avif:90", "png", "webp-lossless", "jpeg@50:90",
        "zip-bomb", "raw", "INT8", "int8 ", "int8\0", "int8+zstd+zstd", "+zstd", ":", "jpeg", "jpeg:", "jpeg:0",
        "jpeg:101", "jpeg:-1", "jpeg:99999999999999999999", "jpeg:1e1", "jpeg:٣", "os:system",
        "splitpoint.codecs:open_codec", "../../etc/passwd", "x" * 100_000, "\x1b]0;title\x07", "int8:" + "9" * 30,
    ],
)  # fmt: skip
def test_unknown_codecs(target: Target, codec: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    words = ask(attacker, 2, segment, codec, bytes(1000))
    assert "codec" in words
    assert words.isprintable()
    assert len(words) < 300
    attacker.infer(3, segment)
    assert attacker.receive()[:2] == (Kind.RESULT, 3)


def test_the_same_unknown_codec_again_and_again_is_not_remembered(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    for id in range(2, 500):
        assert "not known here" in ask(attacker, id, segment, f"jpeg:{id + 1000}", b"x")
    assert ask(attacker, 1000, segment, "int8", honest("int8")) == ""


@pytest.mark.parametrize("codec", CODECS)
def test_more_bytes_than_an_honest_encoding_are_refused_before_they_are_received(target: Target, codec: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    most = open_codec(codec).most(spec_of("x", X))
    size = 48 << 20
    with memory_stays(within_mb=16):
        attacker.raw(attacker.frame(32, 2, [segment, [["float32", [1, 1024], size, codec]]], b"", size=size))
        part = bytes(1 << 20)
        for _ in range(48):  # skipped as it comes
            attacker.raw(part)
        kind, id, header, _ = attacker.receive()
    assert (kind, id) == (Kind.ERROR, 2)
    assert f"takes at most {most}" in header["message"]
    assert ask(attacker, 3, segment, codec, honest(codec)) == ""


@pytest.mark.parametrize("codec", CODECS)
def test_truncated_padded_and_damaged_bytes_fail_one_request_alone(target: Target, codec: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    body = honest(codec)
    rng = np.random.default_rng(1)
    bodies = [b"", body[:1], body[: len(body) // 2], body[:-1], body + b"\0", rng.bytes(len(body)), bytes(len(body))]
    for id, bad in enumerate(bodies, 2):
        words = ask(attacker, id, segment, codec, bad)
        # Where any bytes of the right number are somebody's numbers, they are an answer.
        assert words or (len(bad) == len(body) and "zstd" not in codec), (codec, len(bad))
        assert ask(attacker, id + 100, segment, codec, body) == ""
    for id in range(300, 340):
        damaged = bytearray(body)
        damaged[rng.integers(len(body))] ^= 1 << int(rng.integers(8))
        ask(attacker, id, segment, codec, bytes(damaged))
    assert ask(attacker, 999, segment, codec, body) == ""


@pytest.mark.parametrize("codec", CODECS)
def test_an_encoding_of_another_shape_is_refused(target: Target, codec: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    for id, other in enumerate((X[:, :1000], X[:, :0], np.zeros((2, 1024), np.float32)), 2):
        assert ask(attacker, id, segment, codec, honest(codec, other))
    # And said to be of that shape, it does not fit the segment.
    assert "must be float32[batch,1024]" in ask(attacker, 9, segment, codec, honest(codec, X[:, :1000]), (1, 1000))
    assert ask(attacker, 10, segment, codec, honest(codec)) == ""


@pytest.mark.parametrize("codec", [c for c in CODECS if "zstd" in c])
def test_a_zstd_bomb_is_not_unpacked(target: Target, codec: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    rows = 64
    most = open_codec(codec).most(spec_of("x", np.zeros((rows, 1024), np.float32)))
    sized, unsized = zstd_bomb(size=_BOMB), zstd_bomb(size=-1)
    small = zstandard.ZstdCompressor().compress(bytes(4096))
    with memory_stays(within_mb=16):
        for id, data in enumerate((sized, unsized, sized[:5000], small + unsized), 2):
            assert len(data) <= most
            assert "Zstandard" in ask(attacker, id, segment, codec, data, (rows, 1024)), id
    assert ask(attacker, 10, segment, codec, honest(codec)) == ""


_BOMB = 400 << 20


def zstd_bomb(size: int) -> bytes:
    """400 MiB of zeros; `size` is what its header says is in it (-1: nothing)."""
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    part = bytes(1 << 20)
    return b"".join(packer.compress(part) for _ in range(_BOMB >> 20)) + packer.flush()


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    # Magic, no content size, windowLog 31 - 10 = exponent 21, one raw last block.
    window = struct.pack("<IBB", 0xFD2FB528, 0x00, 21 << 3)
    block = struct.pack("<I", (1 | (64 << 3)))[:3] + bytes(64)
    with memory_stays(within_mb=16):
        assert ask(attacker, 2, segment, "raw+zstd", window + block)


def test_what_decodes_to_more_than_the_limits_ends_the_connection(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    rows = LIMITS.tensor_bytes // 4096 + 1
    attacker.send(32, 2, [segment, [["float32", [rows, 1024], 10, "raw+zstd"]]], bytes(10))
    assert "over the limit" in attacker.refusal()
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    tensor = ["float32", [rows // 2, 1024], 10, "raw+zstd"]
    attacker.send(32, 2, [segment, [tensor] * 3], bytes(30))
    assert "decode to" in attacker.refusal()


def test_many_small_requests_that_decode_to_much_find_no_room(target: Target) -> None:
    """Each is a few KB on the wire and 40 MiB decoded: what waits for a worker is counted as what it will be."""
    target.gate.open.clear()
    rows = (40 << 20) // 4096
    body = honest("raw+zstd", np.zeros((rows, 1024), np.float32))
    assert len(body) < 100_000
    attackers = [target.attacker() for _ in range(3)]
    for attacker in attackers:
        attacker.open(target.model.fingerprint)
    with memory_stays(within_mb=128):  # two of 40 MiB, and the bytes one of them is decoded from
        for k, attacker in enumerate(attackers):
            attacker.send(32, 2, [1, [["float32", [rows, 1024], len(body), "raw+zstd"]]], body, flags=1)
            wanted = min(2, k + 1) * ((40 << 20) + len(body))
            assert until(lambda wanted=wanted: target.server.ledger.held_nbytes >= wanted)
        assert attackers[2].receive()[0] == Kind.BUSY
    for attacker in attackers:
        attacker.close()
    target.gate.open.set()
    assert until(lambda: target.server.ledger.held_nbytes == 0)


def test_leaving_in_the_middle_of_an_encoded_body_gives_its_room_back(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    body = honest("int8", np.zeros((1000, 1024), np.float32))
    frame = attacker.frame(32, 2, [segment, [["float32", [1000, 1024], len(body), "int8"]]], body)
    attacker.raw(frame[: len(frame) // 2])
    assert until(lambda: target.server.ledger.held_nbytes >= 4096 * 1000)
    attacker.close()
    assert until(lambda: target.server.ledger.held_nbytes == 0 and not target.server._peers)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Target]:
    """A server of a model that takes uint8[batch,64,64,3]."""
    shape = ["batch", 64, 64, 3]
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y3"], to=TensorProto.FLOAT, name="cast")],
        "picture",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y3", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "picture.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model, gate = load(path), Gate()
    with nothing_leaks():
        told: list[Event] = []
        with Server([model], engine=gate, port=0, limits=LIMITS, on_event=told.append) as server:
            made = Target(server, model, gate, tmp_path / "cache", told)
            yield made
            with Edge(server.address, at="input", codec="jpeg:95", cache=made.cache) as edge:
                result = edge.infer(np.full((1, 64, 64, 3), 200, np.uint8))
                assert result.codecs == {"x": "jpeg:95"}
                assert np.abs(result.outputs["y3"] - 200.0).max() < 4
            for attacker in made.attackers:
                attacker.close()
        assert not [e.sentence for e in told if "internal" in e.sentence]
        assert server.ledger.held_nbytes == 0


def saved(picture: Image.Image, format: str = "JPEG", **more: object) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **more)
    return data.getvalue()


def test_pictures_that_are_not_what_they_are_said_to_be(pictures: Target) -> None:
    attacker = pictures.attacker()
    segment = attacker.open(pictures.model.fingerprint)
    right = saved(Image.new("RGB", (64, 64), (10, 200, 30)), quality=90)
    bomb = bytearray(right)
    at = bomb.index(b"\xff\xc0")  # the frame header: precision, height, width
    bomb[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    spec = spec_of("x", np.zeros((1, 64, 64, 3), np.uint8))
    most = open_codec("jpeg:90").most(spec)
    rng = np.random.default_rng(0)
    bodies = [
        bytes(bomb),
        b"",
        b"\xff\xd8",
        right[:200],
        right[: len(right) // 2],
        saved(Image.new("RGB", (64, 63))),
        saved(Image.new("RGB", (2000, 2000))),
        saved(Image.new("L", (64, 64))),
        saved(Image.new("CMYK", (64, 64))),
        saved(Image.new("RGB", (64, 64)), "PNG"),
        saved(Image.new("RGB", (64, 64)), "GIF"),
        saved(Image.new("RGB", (64, 64)), "TIFF"),
        rng.bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
    ]
    with memory_stays(within_mb=32):
        for id, body in enumerate(bodies, 2):
            body = body[:most]
            attacker.send(32, id, [segment, [["uint8", [1, 64, 64, 3], len(body), "jpeg:90"]]], body)
            kind, got, header, _ = attacker.receive()
            assert (kind, got) == (Kind.ERROR, id), body[:40]
            assert header["code"] == "input", header
        for id in range(100, 160):
            damaged = bytearray(right)
            for at in rng.integers(len(right), size=4):
                damaged[at] ^= 1 << int(rng.integers(8))
            attacker.send(32, id, [segment, [["uint8", [1, 64, 64, 3], len(damaged), "jpeg:90"]]], bytes(damaged))
            kind, got, header, _ = attacker.receive()
            assert got == id
            assert kind == Kind.RESULT or header["code"] == "input", header
    attacker.send(32, 200, [segment, [["uint8", [1, 64, 64, 3], len(right), "jpeg:90"]]], right)
    assert attacker.receive()[:2] == (Kind.RESULT, 200)


@pytest.mark.parametrize(
    ("codec", "shape"), [("jpeg:90", [2, 64, 64, 3]), ("int8", [1, 64, 64, 3]), ("fp16", [1, 64, 64, 3])]
)
def test_codecs_that_do_not_take_such_a_tensor(pictures: Target, codec: str, shape: list[int]) -> None:
    attacker = pictures.attacker()
    segment = attacker.open(pictures.model.fingerprint)
    attacker.send(32, 2, [segment, [["uint8", shape, 100, codec]]], bytes(100))
    kind, id, header, _ = attacker.receive()
    assert (kind, id) == (Kind.ERROR, 2)
    assert f"came with the codec {codec}, which does not take uint8" in header["message"]


def test_every_codec_that_is_told_is_attacked_here() -> None:
    # Of klt, which needs tables, in test_table_attacks.
    assert {f"codec:{name}" for name in (*CODECS, "jpeg", "jpeg444", "klt")} == set(features()) - {BATCH}
