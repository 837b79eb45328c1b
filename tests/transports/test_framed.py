"""Frames over every transport: whole, in order, into their final memory, and with the right error when cut short."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from socket_pairs import QUICK, tcp_pair, tls_pair

from splitpoint import wire
from splitpoint.errors import ProtocolError, ServerError
from splitpoint.transports import Connection, Ended, memory
from splitpoint.transports.framed import Framed, flat
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import Kind, Limits, Packer, Packet

Pair = Callable[..., tuple[Connection, Connection]]
SocketsPair = Callable[..., tuple[TcpConnection, TcpConnection]]


def memory_pair(limits: Limits = QUICK) -> tuple[Connection, Connection]:
    return memory.pair(limits)


pytestmark = pytest.mark.usefixtures("no_leaks")


sockets = pytest.mark.parametrize("sockets_pair", [tcp_pair, tls_pair], ids=["tcp", "tls"])


@pytest.fixture(params=[tcp_pair, tls_pair, memory_pair], ids=["tcp", "tls", "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made: list[Connection] = []

    def make(limits: Limits = QUICK) -> tuple[Connection, Connection]:
        both = request.param(limits)
        made.extend(both)
        return both  # type: ignore[no-any-return]

    yield make
    for connection in made:
        connection.close()


def infer_packer() -> Packer:
    return Packer(Kind.INFER, lambda tensors: wire.Infer(1, tensors))


def test_tensors_of_many_sizes_arrive_in_order(pair: Pair) -> None:
    near, far = pair()
    packer = infer_packer()
    rng = np.random.default_rng(0)
    shapes = [(3,), (1024,), (1024,), (5000,), (5000,), (0,), (), (2, 0, 3), (300_000,), (1,), (7, 11, 13), (16_384,)]
    sent = [rng.normal(size=s).astype(np.float32) for s in shapes for _ in range(3)]

    def send() -> None:
        for k, array in enumerate(sent, 1):
            near.send(packer.pack(k, [array]))

    thread = threading.Thread(target=send)
    thread.start()
    for k, array in enumerate(sent, 1):
        frame = far.receive(timeout_s=5)
        assert frame.id == k
        assert frame.tensors[0].shape == array.shape
        np.testing.assert_array_equal(frame.tensors[0], array)
        assert frame.started <= frame.received
    thread.join()


def test_frames_of_all_kinds_mixed(pair: Pair) -> None:
    near, far = pair()
    packer = infer_packer()
    x = np.arange(10, dtype=np.int64)
    for k in range(20):
        near.send(wire.encode(Kind.PING, k, wire.Ping(float(k))))
        near.send(packer.pack(100 + k, [x, x[:k]]))
        near.send(wire.encode(Kind.BLOB_DATA, 200 + k, wire.BlobData("ab"), (b"z" * k,), k))
        near.send(wire.encode(Kind.ERROR, k, wire.Error("input", "e" * (k * 1000))))
    for k in range(20):
        assert far.receive(timeout_s=5).header == wire.Ping(float(k))
        frame = far.receive(timeout_s=5)
        assert frame.id == 100 + k
        assert frame.tensors[1].tolist() == list(range(min(k, 10)))
        blob = far.receive(timeout_s=5)
        assert b"".join(t.tobytes() for t in blob.tensors) == b"z" * k
        assert far.receive(timeout_s=5).header == wire.Error("input", "e" * (k * 1000))


def test_result_brings_its_times(pair: Pair) -> None:
    near, far = pair()
    packer = Packer(Kind.RESULT, wire.ResultData)
    for size in (4, 100_000):
        for k in range(3):
            times = wire.Times(*(0.1 * (k + n) for n in range(8)))
            near.send(packer.pack(k, [np.full(size, k, np.uint8)], (), times), wait=False)
            frame = far.receive(timeout_s=5)
            assert wire.parse_times(frame.times) == times
            assert frame.tensors[0].tolist() == [k] * size


def test_several_threads_may_send(pair: Pair) -> None:
    near, far = pair()

    def send(first: int) -> None:
        packer = infer_packer()
        for k in range(50):
            near.send(packer.pack(first + k, [np.full(20_000, first + k, np.int32)]))

    threads = [threading.Thread(target=send, args=(1000 * n,)) for n in range(4)]
    for t in threads:
        t.start()
    seen = set()
    for _ in range(200):
        frame = far.receive(timeout_s=5)
        assert (frame.tensors[0] == frame.id).all()
        seen.add(frame.id)
    for t in threads:
        t.join()
    assert len(seen) == 200


def test_a_timeout_between_frames_loses_nothing(pair: Pair) -> None:
    near, far = pair()
    with pytest.raises(TimeoutError):
        far.receive(timeout_s=0.01)
    near.send(wire.encode(Kind.PING, 3, wire.Ping()))
    assert far.receive(timeout_s=5).id == 3


def test_a_short_timeout_does_not_cut_a_slow_body(pair: Pair) -> None:
    near, far = pair(Limits(stall_s=5))
    packet = infer_packer().pack(1, [np.zeros(50_000, np.uint8)])
    head, body = packet.buffers
    near.send(Packet((head,), len(flat(head))))
    later = threading.Timer(0.1, lambda: near.send(Packet((body,), 50_000)))
    later.start()
    assert far.receive(timeout_s=0.02).tensors[0].nbytes == 50_000
    later.join()


INTERRUPTED = {
    "a short one": wire.encode(Kind.PING, 7, wire.Ping(2.0)),
    "tensors": Packer(Kind.INFER, lambda t: wire.Infer(1, t)).pack(7, [np.arange(70_000), np.ones(3, np.int8)]),
    "an answer": Packer(Kind.RESULT, wire.ResultData).pack(7, [np.arange(5)], (), wire.Times(1.0)),
    "a long header": wire.encode(Kind.ERROR, 7, wire.Error("x", "m" * 20_000)),
    "bytes": wire.encode(Kind.BLOB_DATA, 7, wire.BlobData("ab"), (b"z" * 300_000,), 300_000),
    "what nobody knows": wire.encode(99, 7, wire.Ping(1.0), (b"x" * 200_000,), 200_000),
}


@pytest.mark.parametrize("what", INTERRUPTED)
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "checksum"])
def test_a_receiver_whose_time_is_over_goes_on_where_it_was(pair: Pair, what: str, sealed: bool) -> None:
    near, far = pair(Limits(stall_s=5))
    packet = INTERRUPTED[what]
    if sealed:
        far.checks = far.seals = True
        packet = wire.checked(packet)
    data = b"".join(bytes(flat(b)) for b in packet.buffers)
    following = wire.encode(Kind.PING, 8, wire.Ping(3.0))
    next_one = b"".join(bytes(flat(b)) for b in (wire.checked(following) if sealed else following).buffers)
    expected = None
    for cut in (None, 1, 5, wire.PREFIX_BYTES, wire.PREFIX_BYTES + 3, len(data) // 2, len(data) - 1):
        parts = [data] if cut is None else [data[:cut], data[cut : cut + 2], data[cut + 2 :]]
        for part in filter(None, parts[:-1]):
            near.send(Packet((part,), len(part)))
            if part is not parts[-2] or parts[-1]:
                with pytest.raises(TimeoutError):
                    far.receive(timeout_s=0.01, whole=True)
        near.send(Packet((parts[-1] + next_one,), len(parts[-1]) + len(next_one)))
        frame = far.receive(timeout_s=5, whole=True)
        here = (frame.kind, frame.id, frame.header, frame.times, [t.tobytes() for t in frame.tensors])
        expected = expected or here
        assert here == expected
        assert far.receive(timeout_s=5, whole=True).header == wire.Ping(3.0)


def test_who_has_no_time_gets_what_is_there_and_never_waits_for_the_rest(pair: Pair) -> None:
    near, far = pair(Limits(stall_s=30))
    data = b"".join(bytes(flat(b)) for b in INTERRUPTED["tensors"].buffers)
    near.send(Packet((data[:100_000],), 100_000))
    began = time.perf_counter()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            far.receive(timeout_s=0.001, whole=True)
    assert time.perf_counter() - began < 5
    near.send(Packet((data[100_000:],), len(data) - 100_000))
    assert far.receive(timeout_s=None).tensors[0].tolist() == list(range(70_000)), "by whoever has time"


def test_the_peer_closing_is_told_from_a_frame_cut_short(pair: Pair) -> None:
    near, far = pair()
    near.close()
    with pytest.raises(Ended, match="closed"):
        far.receive(timeout_s=5)

    near, far = pair()
    packet = infer_packer().pack(1, [np.zeros(50_000, np.uint8)])
    near.send(Packet(packet.buffers[:1], len(flat(packet.buffers[0]))))
    near.close()
    with pytest.raises(ServerError, match="middle of a frame") as caught:
        far.receive(timeout_s=5)
    assert not isinstance(caught.value, Ended)


def test_silence_in_the_middle_of_a_frame_is_an_error(pair: Pair) -> None:
    near, far = pair()
    head = infer_packer().pack(1, [np.zeros(50_000, np.uint8)]).buffers[0]
    near.send(Packet((head,), len(flat(head))))
    with pytest.raises(ServerError, match="silent"):
        far.receive(timeout_s=0.05)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "'HTTP/1.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "'SSH-2.0-OpenSSH_9.6'"),
        (b"hi\n", "'hi'"),
        (b"\x16\x03\x01\x02", "16 03 01 02"),
    ],
)
def test_another_protocol_is_shown_as_it_spoke(pair: Pair, said: bytes, shown: str) -> None:
    near, far = pair(Limits(stall_s=5))
    near.send(Packet((said,), len(said)))
    with pytest.raises(ProtocolError) as caught:
        far.receive(timeout_s=5)  # at once: a short banner is not waited on
    assert shown in str(caught.value)


def test_a_refused_body_is_skipped_and_the_next_frame_read(pair: Pair) -> None:
    near, far = pair()
    packer = infer_packer()
    for size in (10, 500_000):
        for k in (1, 2):
            near_thread = threading.Thread(target=near.send, args=(packer.pack(k, [np.full(size, k, np.uint8)]),))
            near_thread.start()
            frame = far.receive(timeout_s=5, admit=lambda f: ServerError("no") if f.id == 1 else None)
            near_thread.join()
            assert (frame.refused is not None) == (k == 1)
            assert [t.nbytes for t in frame.tensors] == ([] if k == 1 else [size])


def test_a_kind_of_a_later_version_is_skipped(pair: Pair) -> None:
    near, far = pair()
    near.send(wire.encode(99, 5, wire.Ping(1.0), (b"x" * 70_000,), 70_000))
    near.send(wire.encode(Kind.PING, 6, wire.Ping(1.0)))
    frame = far.receive(timeout_s=5)
    assert (frame.kind, frame.id, frame.header) == (99, 5, None)
    assert far.receive(timeout_s=5).id == 6


def test_a_large_header_is_read_and_its_memory_given_back(pair: Pair) -> None:
    near, far = pair()
    assert isinstance(far, Framed)
    for size in (5_000, 200_000, 10):
        near.send(wire.encode(Kind.ERROR, 1, wire.Error("x", "m" * size)))
        frame = far.receive(timeout_s=5)
        assert isinstance(frame.header, wire.Error)
        assert len(frame.header.message) == size
    assert len(far._buffer) < 50_000


# --- the final buffer -----------------------------------------------------------------------------------------------


def test_received_bytes_go_straight_into_the_tensor() -> None:
    near, far = tcp_pair(Limits())
    packer = infer_packer()
    arrays = [np.random.default_rng(k).integers(0, 255, 400_000 + k, np.uint8) for k in range(3)]
    places: list[tuple[int, int]] = []
    receive, scatter = far._recv_into, far._recvmsg_into

    def note(buffer: wire.Buffer, nbytes: int) -> None:
        places.append((np.frombuffer(flat(buffer), np.uint8).__array_interface__["data"][0], nbytes))

    def spy(buffer: wire.Buffer, nbytes: int, flags: int = 0) -> int:
        got = receive(buffer, nbytes, flags)
        note(buffer, got)
        return got

    def spy_scatter(buffers: list[wire.Buffer]) -> tuple[int]:
        got = left = scatter(buffers)[0]
        for buffer in buffers:
            note(buffer, min(left, len(flat(buffer))))
            left -= min(left, len(flat(buffer)))
        return (got,)

    far._recv_into, far._recvmsg_into = spy, spy_scatter
    thread = threading.Thread(target=lambda: [near.send(packer.pack(k, arrays)) for k in range(2)])
    thread.start()
    for _ in range(2):
        places.clear()
        frame = far.receive(timeout_s=5)
        for sent, got in zip(arrays, frame.tensors, strict=True):
            np.testing.assert_array_equal(sent, got)
            start = got.__array_interface__["data"][0]
            direct = sum(n for at, n in places if start <= at < start + got.nbytes)
            assert direct >= got.nbytes, "bytes were received elsewhere and copied"
    thread.join()
    near.close()
    far.close()


@sockets
def test_receiving_allocates_the_tensor_once(sockets_pair: SocketsPair) -> None:
    near, far = sockets_pair(Limits())
    size = 32 << 20
    sent = np.ones(size, np.uint8)
    thread = threading.Thread(target=lambda: near.send(infer_packer().pack(1, [sent])))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        thread.start()
        frame = far.receive(timeout_s=10)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        thread.join()
    assert frame.tensors[0].nbytes == size
    assert peak < 1.1 * size
    near.close()
    far.close()
