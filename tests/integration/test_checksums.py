"""Checksums: not one changed bit gets through, whatever it changes, and nobody waits for ever for what it promises."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from relays import ThreadRelay
from serving import Gate, affine, nothing_leaks

from frames import DOC, drain, dump, joined
from splitpoint import wire
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import ProtocolError, ServerError
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.transports import memory, tcp
from splitpoint.wire import CHECKED, PREFIX_BYTES, Kind, Limits, Packer, Packet

FAST = Link(1000, 1000, 0)
SMALL = Limits(stall_s=0.02, tensor_bytes=1 << 20, frame_bytes=1 << 20, header_bytes=1 << 16)
TIMES = wire.Times(*(0.5 * n for n in range(8)))


def frames() -> dict[str, Packet]:
    """One of each that matters, each with a body of its own kind."""
    spec = (wire.TensorInfo("a1", "float32", ("batch", 2)), wire.TensorInfo("a3", "float32", ("batch", 2)))
    x, y = np.array([[1.0, -2.0]], np.float32), np.array(7, np.int8)
    return {
        "INFER": Packer(Kind.INFER, lambda t: wire.Infer(5, t)).pack(6, [x, y], flags=wire.PIPELINED),
        "RESULT": Packer(Kind.RESULT, wire.ResultData).pack(6, [x], (), TIMES),
        "OPEN": wire.encode(Kind.OPEN, 2, wire.OpenRequest("ab" * 8, ("a1", "a3"), ("y3",))),
        "OPENED": wire.encode(Kind.OPENED, 2, wire.Opened(1, spec, spec[:1], 2048, 0.5)),
        "PING": wire.encode(Kind.PING, 0, wire.Ping(1.5)),
        "BUSY": wire.encode(Kind.BUSY, 6, wire.Busy(0.5, "full")),
        "ERROR": wire.encode(Kind.ERROR, 6, wire.Error("input", "no")),
        "BLOB_DATA": wire.encode(Kind.BLOB_DATA, 3, wire.BlobData("ab", 0, 4), (b"blob",), 4),
    }


def pair(limits: Limits = SMALL) -> tuple[memory.MemoryConnection, memory.MemoryConnection]:
    """Connections of which the second expects checksums; the first sends what it is given."""
    near, far = memory.pair(limits)
    far.checks = far.seals = True
    return near, far


def said(near: memory.MemoryConnection, data: bytes) -> None:
    near.send(Packet((data,), len(data)))


# --- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", frames())
def test_a_frame_arrives_as_it_was_and_is_laid_out_as_the_document_says(name: str) -> None:
    plain, data = joined(frames()[name]), joined(wire.checked(frames()[name]))
    assert len(data) == len(plain) + 4
    assert int.from_bytes(data[-4:], "little") == zlib.crc32(data[:-4])
    assert data[PREFIX_BYTES:-4] == plain[PREFIX_BYTES:]
    assert data[7] == plain[7] | CHECKED
    assert int.from_bytes(data[16:24], "little") == int.from_bytes(plain[16:24], "little") + 4
    near, far = pair()
    near.seals = True
    other, unchecked = memory.pair(SMALL)
    for _ in range(3):  # the second one could be taken for the first, and must not be
        near.send(frames()[name])
        other.send(frames()[name])
        got, want = far.receive(timeout_s=1), unchecked.receive(timeout_s=1)
        assert (got.kind, got.id, got.header, got.times) == (want.kind, want.id, want.header, want.times)
        assert [t.tobytes() for t in got.tensors] == [t.tobytes() for t in want.tensors]
        assert got.nbytes == want.nbytes + 4


def test_large_tensors_and_several_frames_in_one_packet() -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(200, 300)).astype(np.float32), np.zeros((0, 3), np.float16), rng.bytes(70_000)]
    arrays = [np.frombuffer(t, np.uint8) if isinstance(t, bytes) else t for t in tensors]
    packer = Packer(Kind.INFER, lambda t: wire.Infer(1, t))
    packets = [packer.pack(k, arrays) for k in range(3)]
    near, far = pair(Limits())
    near.seals = True
    near.send(Packet([b for p in packets for b in p.buffers], sum(p.nbytes for p in packets)))
    for k in range(3):
        frame = far.receive(timeout_s=1)
        assert frame.id == k
        assert [np.array_equal(a, b) for a, b in zip(frame.tensors, arrays, strict=True)] == [True] * 3


def test_what_is_no_frame_is_left_as_it_is() -> None:
    for data in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x"):
        packet = Packet((data,), len(data))
        assert wire.checked(packet) == packet


@pytest.mark.parametrize("follows", [False, True], ids=["alone", "followed"])
@pytest.mark.parametrize("name", frames())
def test_not_one_changed_bit_gets_through(name: str, follows: bool) -> None:
    good = joined(wire.checked(frames()[name]))
    rest = joined(wire.checked(frames()["INFER"])) * 3 if follows else b""
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        near, far = pair()
        said(near, bytes(bad) + rest)
        near.close()
        with pytest.raises(ServerError):  # a ProtocolError, or the end in the middle of what a size promised
            far.receive(timeout_s=1)


@pytest.mark.parametrize("name", ["INFER", "RESULT", "BLOB_DATA"])
def test_a_changed_size_is_not_waited_for_for_ever(name: str) -> None:
    good = joined(wire.checked(frames()[name]))
    for bit in range(8 * 12, 8 * PREFIX_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        near, far = pair()  # and `near` stays, and says no more
        said(near, bytes(bad))
        with pytest.raises(ServerError):
            far.receive(timeout_s=5)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_whatever_is_damaged_only_whole_frames_are_handed_on(data: st.DataObject) -> None:
    sent = [joined(wire.checked(p)) for p in frames().values()]
    stream = bytearray(b"".join(sent))
    at = data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=8, unique=True))
    for k in at:
        stream[k] ^= data.draw(st.integers(1, 255))
    whole = 0  # frames before the first damage
    while sum(map(len, sent[: whole + 1])) <= min(at):
        whole += 1
    near, far = pair()
    said(near, bytes(stream))
    near.close()
    for packet in list(frames().values())[:whole]:
        assert far.receive(timeout_s=1).nbytes == packet.nbytes + 4
    with pytest.raises(ServerError):
        far.receive(timeout_s=1)


def test_a_refused_frame_is_checked_too() -> None:
    for name in ("INFER", "BLOB_DATA"):
        good = joined(wire.checked(frames()[name]))
        near, far = pair()
        said(near, good)
        frame = far.receive(timeout_s=1, admit=lambda _: ServerError("no"))
        assert str(frame.refused) == "no"
        assert frame.tensors == []
        said(near, good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
        # A refusal of what it was not would be wrong: it may have been another one's.
        with pytest.raises(ProtocolError, match="was changed on its way"):
            far.receive(timeout_s=1, admit=lambda _: ServerError("no"))


def test_a_frame_of_a_later_version_is_skipped_and_checked() -> None:
    packet = wire.encode(99, 5, wire.Ping(1.0), (b"x" * 70_000,), 70_000)
    good = joined(wire.checked(packet))
    near, far = pair()
    said(near, good)
    assert far.receive(timeout_s=1).header is None
    said(near, good[:-5] + b"y" + good[-4:])
    with pytest.raises(ProtocolError, match="was changed on its way"):
        far.receive(timeout_s=1)


def test_none_is_looked_at_where_none_was_agreed_on_and_none_may_be_missing_where_it_was() -> None:
    near, far = memory.pair(SMALL)
    said(near, joined(frames()["PING"]))
    assert far.receive(timeout_s=1).header == wire.Ping(1.5)
    said(near, joined(wire.checked(frames()["INFER"])))
    with pytest.raises(ProtocolError, match="tensors have 9 bytes and its body 13"):
        far.receive(timeout_s=1)
    near, far = pair()
    said(near, joined(frames()["PING"]))
    with pytest.raises(ProtocolError, match="PING came without the checksum"):
        far.receive(timeout_s=1)
    near, far = pair()
    data = bytearray(joined(frames()["PING"]))
    data[7] |= CHECKED
    said(near, bytes(data))
    with pytest.raises(ProtocolError, match="a checksum takes 4 bytes: a body of 0 came"):
        far.receive(timeout_s=1)


def test_the_worked_example_in_the_document_is_what_this_code_writes() -> None:
    x = np.array([[1.0, -2.0]], np.float32)
    packet = Packer(Kind.INFER, lambda t: wire.Infer(1, t)).pack(4, [x])
    found = re.findall(r"<!-- checked frame: (\w+) -->\n```text\n(.*?)\n```", DOC.read_text(), re.DOTALL)
    assert found == [("INFER", dump(joined(wire.checked(packet))))]


# --- agreeing on them -----------------------------------------------------------------------------------------------


def welcomed(welcome: Packet, *, seals: bool = False) -> Channel:
    """A channel that asked for checksums and got this answer."""
    device, server = memory.pair()
    server.seals = seals
    server.send(welcome)
    server.seals = False  # HELLO has none
    try:
        return Channel(device, software="test", timeout_s=1, checksum=True)
    finally:
        assert "crc32" in server.receive(timeout_s=1).header.features  # type: ignore[union-attr]


def test_a_server_that_makes_none_is_said_and_nothing_is_sent_without() -> None:
    with pytest.raises(ServerError, match="makes no checksums: install a newer splitpoint there"):
        welcomed(wire.encode(Kind.WELCOME, 0, wire.Welcome(features=wire.features())))
    agreeing = wire.encode(Kind.WELCOME, 0, wire.Welcome(features=("crc32",)))
    with pytest.raises(ProtocolError, match="sent WELCOME without one"):
        welcomed(agreeing)
    assert welcomed(agreeing, seals=True).welcome.features == ("crc32",)


def test_nobody_is_asked_for_them_who_does_not_want_them() -> None:
    device, server = memory.pair()
    server.send(wire.encode(Kind.WELCOME, 0, wire.Welcome()))
    Channel(device, software="test", timeout_s=1)
    hello = server.receive(timeout_s=1)
    assert isinstance(hello.header, wire.Hello)
    assert "crc32" not in hello.header.features
    assert not device.seals


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Model, Server]]:
    model = affine(tmp_path)
    with nothing_leaks(), Server([model], engine=open_engine(threads=1), port=0) as server:
        yield model, server


def test_every_way_of_asking_works_with_checksums(served: tuple[Model, Server], tmp_path: Path) -> None:
    model, server = served
    x = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float32)
    with Edge(server.address, at="output", cache=tmp_path / "c", wire=WireSettings(checksum=True)) as edge:
        want = edge.infer(x).outputs["y3"]
        for cut in model.graph.chain():
            for codec in ("raw", "fp16"):
                edge.switch(cut, codec)
                error = np.abs(edge.infer(x).outputs["y3"] - want).max()
                assert error < (1e-4 if codec == "raw" else 0.1), cut.name
        edge.switch("input", "raw")
        assert all(np.allclose(r.outputs["y3"], want, atol=1e-4) for r in edge.stream([x] * 9))
        assert edge.measure_link(0.3).up_mbps > 0
        result = edge.infer(x)
        assert result.trace.stages()["tail"] >= 0
        assert result.down_nbytes > 0


def test_run_asks_for_them_with_an_option(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made: list[int] = []
    monkeypatch.setattr(tcp, "checked", lambda packet: made.append(packet.nbytes) or wire.checked(packet))
    model = load("zoo:lenet5")
    np.save(tmp_path / "x.npy", samples_for(model, 1)[0][model.inputs[0].name])
    words = ["run", "zoo:lenet5", str(tmp_path / "x.npy"), "--at", "pool1"]
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        assert main([*words, "--cloud", server.address]) == 0
        assert not made
        assert main([*words, "--cloud", server.address, "--checksum"]) == 0
    assert len(made) > 4  # WELCOME, pings, OPEN, INFER, their answers
    assert main([*words, "--checksum"]) == 2
    assert "--checksum is for what crosses the link" in capfd.readouterr().err


# --- a link that changes bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("after", [0, 3, 8, 13, 17, 40, 90, 1000])
def test_a_changed_byte_ends_the_connection_wherever_it_is(tmp_path: Path, direction: str, after: int) -> None:
    model = affine(tmp_path)
    x = np.random.default_rng(1).normal(size=(1, 1024)).astype(np.float32)
    limits = Limits(stall_s=0.3)
    with (
        Server([model], engine=Gate(), port=0, limits=limits) as server,
        ThreadRelay(server.address, FAST, seed=after) as relay,
        Edge(
            relay.address,
            model,
            at="input",
            patience=Patience(answer_s=3.0),
            wire=WireSettings(checksum=True, limits=limits),
        ) as edge,
    ):
        np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)
        relay.corrupt(direction, after)

        def right(times: int) -> None:
            for _ in range(times):
                np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)

        with pytest.raises(ServerError):
            right(3)  # a ping may go first
        assert relay.status().changed_nbytes == 1


def test_without_checksums_a_changed_byte_is_a_wrong_answer(tmp_path: Path) -> None:
    model = affine(tmp_path)
    x = np.random.default_rng(1).normal(size=(1, 1024)).astype(np.float32)
    with (
        Server([model], engine=Gate(), port=0) as server,
        ThreadRelay(server.address, FAST) as relay,
        Edge(relay.address, model, at="input") as edge,
    ):
        edge.infer(x)
        relay.corrupt("down", 2000)  # in the tensor: the frame has 4.2 kB
        assert not np.array_equal(edge.infer(x).outputs["y3"], x)


def test_the_words_for_it(tmp_path: Path) -> None:
    model = affine(tmp_path)
    x = np.ones((1, 1024), np.float32)
    for direction in ("up", "down"):
        with (
            Server([model], engine=Gate(), port=0) as server,
            ThreadRelay(server.address, FAST) as relay,
            Edge(relay.address, model, at="input", wire=WireSettings(checksum=True)) as edge,
        ):
            edge.infer(x)
            relay.corrupt(direction, 2000)
            with pytest.raises(ProtocolError, match=r"(INFER|RESULT) from .* was changed on its way: its checksum is"):
                edge.infer(x)


def test_drain_ends() -> None:
    """What `drain` of test_wire does with a damaged stream, with checksums."""
    near, far = pair()
    said(near, joined(wire.checked(frames()["PING"])) * 3 + b"\xf5SPX")
    near.close()
    with pytest.raises(ProtocolError):
        drain(far)
