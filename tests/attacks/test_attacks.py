"""What a hostile or broken client may try. The fixture checks after each that the server serves on."""

from __future__ import annotations

import random
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from attacking import LIMITS, Target
from places import ROOT
from serving import until

from splitpoint.runtime.probe.link_probe import MOST_NBYTES
from splitpoint.wire import Kind


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xf5",
        b"\xf5SPT",
        b"\xf5SPT" + bytes(20),
        bytes(4096),
        b"\xff" * 4096,
        random.Random(1).randbytes(100_000),
        b"SSH-2.0-x\r\n",
        b"\x00\x00\x00\x0eJSON",
        b"\x80\x04\x95pickle",
    ],
)
def test_garbage(target: Target, data: bytes) -> None:
    attacker = target.attacker(hello=False)
    attacker.raw(data)
    if len(data) < 24 and data[:1] == b"\xf5":
        attacker.sock.shutdown(socket.SHUT_WR)
    try:
        while attacker.sock.recv(1000):
            pass
    except ConnectionResetError:
        pass


def test_http_is_answered_in_http(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while part := attacker.sock.recv(1000):
        answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"splitpoint" in answer


def test_a_tls_hello_is_hung_up_on(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.raw(bytes.fromhex("1603010200010001fc0303") + bytes(200))
    attacker.hung_up()


def test_saying_nothing_is_ended(target: Target) -> None:
    assert "said nothing" in target.attacker(hello=False).refusal()


def test_a_name_with_terminal_escapes_is_one_harmless_line(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(2, 0, {"version": [1, 0], "software": "\x1b]0;title\x07\nserving on 6.6.6.6" + "x" * 10_000})
    assert attacker.receive()[0] == Kind.WELCOME
    assert until(lambda: any(e.kind == "connected" for e in target.told))
    (text,) = [e.sentence for e in target.told if e.kind == "connected"]
    assert text.isprintable()
    assert "(]0;title serving on 6.6.6.6xxx" in text
    assert len(text) < 200


@pytest.mark.parametrize("cut", [1, 10, 23, 24, 30, 60, 1000])
def test_half_a_frame_and_silence(target: Target, cut: int) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    data = attacker.frame(32, 2, [segment, [["float32", [1, 1024], 4096, ""]]], bytes(4096))
    attacker.raw(data[:cut])
    assert "silent" in attacker.refusal()


@pytest.mark.parametrize("cut", [10, 24, 60, 1000])
def test_half_a_frame_and_gone(target: Target, cut: int) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    data = attacker.frame(32, 2, [segment, [["float32", [1, 1024], 4096, ""]]], bytes(4096))
    attacker.raw(data[:cut])
    attacker.close()
    assert until(lambda: not target.server._peers)


def test_dripping_bytes_is_ended(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    attacker.raw(attacker.frame(32, 2, [segment, [["float32", [4, 1024], 16384, ""]]], b"", size=16384))
    ended = time.monotonic() + 10
    while time.monotonic() < ended:
        try:
            attacker.raw(b"x")
        except OSError:
            break
        time.sleep(0.05)  # the attack itself
    assert time.monotonic() < ended
    assert any("too slowly" in e.sentence for e in target.told)


@pytest.mark.parametrize(
    ("header_bytes", "body_bytes", "words"),
    [
        (2**32 - 1, 0, "header of 4294967295 bytes"),
        (5, 2**64 - 1, "body of 18446744073709551615 bytes"),
        (5, 65 << 20, "is over the limit"),
    ],
)
def test_huge_lengths(target: Target, header_bytes: int, body_bytes: int, words: str) -> None:
    import struct

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attacker = target.attacker()
    attacker.raw(struct.pack("<4sBBBBIIQ", b"\xf5SPT", 1, 0, 32, 0, 1, header_bytes, body_bytes))
    assert words in attacker.refusal()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # kilobytes


def test_a_body_before_hello(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(32, 1, [1, [["uint8", [100], 100, ""]]], bytes(100))
    assert "over the limit, 0" in attacker.refusal()


def test_a_large_header_before_hello(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(2, 0, {"software": "x" * 100_000})
    assert "over the limit" in attacker.refusal()


@pytest.mark.parametrize("kind", [3, 5, 6, 16, 18, 20, 32, 33, 200])
def test_anything_but_hello_first(target: Target, kind: int) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(kind, 1, [] if kind in (5, 6) else {})
    attacker.refusal()


@pytest.mark.parametrize(
    ("tensor", "body", "words"),
    [
        (["float32", [1, 1024], 4095, ""], 4095, "4096 bytes, not 4095"),
        (["float32", [1, 1024], 4096, ""], 4097, "4096 bytes and its body 4097"),
        (["float32", [2**31, 2**31, 2**31], 4096, ""], 4096, "over the limit"),
        (["float32", [1] * 40 + [1024], 4096, ""], 4096, "dimensions"),
        (["float32", [2**62, 2**62, 0], 0, ""], 0, "dimensions over the limit"),
        (["float32", [0, 2**62], 0, ""], 0, "dimensions over the limit"),
        (["object", [1, 1024], 4096, ""], 4096, "unknown dtype 'object'"),
        (["float32", [-1, -1024], 4096, ""], 4096, "cannot be read"),
        (["float32", "1024", 4096, ""], 4096, "cannot be read"),
        ([None], 4096, "cannot be read"),
    ],
)
def test_tensors_that_contradict_themselves(target: Target, tensor: object, body: int, words: str) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    attacker.send(32, 2, [segment, [tensor]], bytes(body))
    assert words in attacker.refusal()


def test_too_many_tensors(target: Target) -> None:
    attacker = target.attacker()
    attacker.send(32, 2, [1, [["uint8", [], 1, ""]] * 257], bytes(257))
    assert "257 tensors" in attacker.refusal()


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ([99, [["float32", [1, 1024], 4096, ""]]], 4096, "segment 99 is not open"),
        ([1, []], 0, "needs 1 tensors"),
        ([1, [["float32", [1, 1024], 4096, ""]] * 2], 8192, "needs 1 tensors"),
        ([1, [["float32", [1, 1023], 4092, ""]]], 4092, "must be float32[batch,1024]"),
        ([1, [["float32", [1024], 4096, ""]]], 4096, "must be float32[batch,1024]"),
        ([1, [["int32", [1, 1024], 4096, ""]]], 4096, "must be float32[batch,1024]"),
        ([1, [["float32", [1, 1024], 100, "zip-bomb"]]], 100, "codec zip-bomb"),
        ([1, [["float32", [1, 1024], 4096, ""]], [[2**62]]], 4096, "needs 1 tensors and 0 shape vectors"),
        ([1, [["float32", [10**4, 1024], 40_960_000, ""]]], 40_960_000, None),
    ],
)
def test_requests_that_do_not_fit_are_refused_and_the_connection_lives(
    target: Target, header: object, body: int, words: str | None
) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    for id in (2, 3):
        attacker.send(32, id, header, bytes(body))
        kind, got, answer, _ = attacker.receive()
        assert got == id
        if words is None:
            assert kind == Kind.RESULT  # large, but right
        else:
            assert kind == Kind.ERROR
            assert words in answer["message"]
    attacker.infer(4, segment)
    assert attacker.receive()[:2] == (Kind.RESULT, 4)


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (16, {"fingerprint": "0" * 64}),
        (16, {"fingerprint": "../../etc/passwd"}),
        (18, {"fingerprint": "F", "hash": "0" * 64}),
        (18, {"fingerprint": "M", "hash": "../../etc/passwd"}),
        (18, {"fingerprint": "M", "hash": "B", "offset": 2**62}),
        (20, {"fingerprint": "0" * 64, "inputs": ["x"], "outputs": ["y3"]}),
        (20, {"fingerprint": "M", "inputs": ["nope"], "outputs": ["y3"]}),
        (20, {"fingerprint": "M", "inputs": ["x"], "outputs": ["nope"]}),
        (20, {"fingerprint": "M", "inputs": ["y0"], "outputs": ["m0"]}),
        (20, {"fingerprint": "M", "inputs": ["x"], "outputs": []}),
        (20, {"fingerprint": "M", "inputs": [], "outputs": ["y3"]}),
        (20, {"fingerprint": "M", "inputs": ["w0"], "outputs": ["w0"]}),
        (20, {"fingerprint": "M", "inputs": ["x"] * 1000, "outputs": ["y3"] * 1000}),
    ],
)
def test_unknown_models_weights_and_boundaries(target: Target, kind: int, header: dict[str, object]) -> None:
    attacker = target.attacker()
    stand_ins = {"M": target.model.fingerprint, "B": next(iter(target.model.blobs))}
    asked = {k: stand_ins.get(v, v) if isinstance(v, str) else v for k, v in header.items()}
    attacker.send(kind, 7, asked)
    answer = attacker.receive()
    if header.get("inputs") != ["x"] * 1000:
        assert answer[:2] == (Kind.ERROR, 7), answer
    segment = attacker.open(target.model.fingerprint)
    attacker.infer(8, segment)
    assert attacker.receive()[:2] == (Kind.RESULT, 8)


def test_unknown_kinds_are_answered_and_skipped(target: Target) -> None:
    attacker = target.attacker()
    attacker.send(99, 5, {"new": 1}, bytes(50_000))
    kind, id, header, _ = attacker.receive()
    assert (kind, id) == (Kind.ERROR, 5)
    assert "99" in header["message"]
    attacker.send(5, 6, [1.5])
    assert attacker.receive()[:2] == (Kind.PONG, 6)


@pytest.mark.parametrize(
    ("reply", "body"),
    [(MOST_NBYTES + 1, 0), (2**63 - 1, 0), (0, MOST_NBYTES), (0, 32 << 20), (2**40, 32 << 20)],
)
def test_a_probe_over_the_limit_is_skipped(target: Target, reply: int, body: int) -> None:
    attacker = target.attacker()
    data = attacker.frame(7, 5, [reply], bytes(body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attacker.raw(data)
    kind, id, header, _ = attacker.receive()
    assert (kind, id) == (Kind.ERROR, 5)
    assert "is over the limit" in header["message"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # kilobytes
    attacker.send(7, 6, [10], bytes(100))
    assert attacker.receive()[:2] == (Kind.PROBED, 6)


def test_a_probe_padded_with_a_long_header(target: Target) -> None:
    attacker = target.attacker()
    attacker.send(7, 5, [0, "x" * (3 << 20)])
    assert attacker.receive()[:2] == (Kind.ERROR, 5)


@pytest.mark.parametrize("header", [[-1], [2**63], ["x"], [1.5], {}])
def test_a_broken_probe(target: Target, header: object) -> None:
    attacker = target.attacker()
    attacker.send(7, 5, header)
    assert "cannot be read" in attacker.refusal()


def test_asking_for_probes_without_reading_them(target: Target) -> None:
    attacker = target.attacker()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attacker.raw(b"".join(attacker.frame(7, id, [MOST_NBYTES]) for id in range(2, 2000)))
    target.serves()  # meanwhile
    assert until(lambda: not target.server._peers, 10)  # it does not read: given up
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # kilobytes; it asked for 2 GB


def test_leaving_in_the_middle_of_a_probe(target: Target) -> None:
    attacker = target.attacker()
    attacker.raw(attacker.frame(7, 5, [MOST_NBYTES], bytes(1000), size=100_000))
    attacker.close()
    assert until(lambda: not target.server._peers)


@pytest.mark.parametrize("kind", [3, 6, 8, 17, 19, 21, 33, 34])
def test_a_client_that_talks_like_a_server(target: Target, kind: int) -> None:
    attacker = target.attacker()
    headers: dict[int, object] = {
        3: {},
        6: [0.0, 0.0, 0.0],
        8: [0.0, 0.0, 0.0],
        17: {"fingerprint": ""},
        19: {"hash": ""},
        21: {"segment": 1},
        33: [[]],
        34: {},
    }
    attacker.send(kind, 1, headers[kind], bytes(64) if kind == 33 else b"")
    assert "a client does not send" in attacker.refusal()


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x91" * 10_000, b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", [5, 16, 20, 32])
def test_broken_headers(target: Target, kind: int, header: bytes) -> None:
    attacker = target.attacker()
    attacker.send(kind, 1, header)
    assert "cannot be read" in attacker.refusal()


def test_another_major_version(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(2, 0, {"version": [9, 0]}, major=9)
    assert "version 9" in attacker.refusal()


def test_an_id_used_twice_ends_the_connection(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    target.gate.open.clear()
    attacker.infer(5, segment, flags=1)
    assert target.gate.entered.acquire(timeout=5)
    attacker.infer(5, segment, flags=1)
    assert "in flight already" in attacker.refusal()
    target.gate.open.set()


def test_more_in_flight_than_allowed_is_busy(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    target.gate.open.clear()
    for id in range(10, 20):
        attacker.infer(id, segment, flags=1)
    busy = [attacker.receive() for _ in range(10 - LIMITS.in_flight)]
    assert {k for k, *_ in busy} == {Kind.BUSY}
    assert all(h["retry_after_s"] > 0 for _, _, h, _ in busy)
    target.gate.open.set()
    answers = {attacker.receive()[1] for _ in range(LIMITS.in_flight)}
    assert answers | {i for _, i, *_ in busy} == set(range(10, 20))


def test_memory_of_waiting_requests_is_bounded(target: Target) -> None:
    target.gate.open.clear()
    size = 40 << 20
    header = [1, [["float32", [size // 4096, 1024], size, ""]]]
    attackers = [target.attacker() for _ in range(3)]
    for attacker in attackers:
        attacker.open(target.model.fingerprint)
    for k, attacker in enumerate(attackers):
        attacker.send(32, 2, header, bytes(size), flags=1)
        assert until(lambda k=k: target.server.ledger.held_nbytes >= min(2, k + 1) * size)
    assert attackers[2].receive()[0] == Kind.BUSY
    target.gate.open.set()
    with ThreadPoolExecutor(2) as pool:  # at once: an answer that waits to be read is given up after a while
        answers = [pool.submit(attacker.receive) for attacker in attackers[:2]]
    assert [answer.result()[0] for answer in answers] == [Kind.RESULT] * 2


def test_a_peer_that_does_not_read_holds_up_nobody_and_is_given_up(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    size = 16 << 20
    header = [segment, [["float32", [size // 4096, 1024], size, ""]]]
    for id in range(2, 4):
        attacker.send(32, id, header, bytes(size), flags=1)
    target.serves()  # while the attacker's answers are stuck
    assert until(lambda: not target.server._peers or not any(p.requests.in_flight for p in target.server._peers))
    target.serves()
    assert until(lambda: not target.server._peers, 10)


def test_asking_for_blobs_without_reading_them(target: Target) -> None:
    attacker = target.attacker()
    hash = next(iter(target.model.blobs))
    attacker.sock.settimeout(0.5)
    frames = b"".join(
        attacker.frame(18, id, {"fingerprint": target.model.fingerprint, "hash": hash}) for id in range(2, 100_000)
    )
    with pytest.raises(OSError):  # noqa: PT011 - the kernel's buffers fill up, and the server gives up on us
        attacker.raw(frames)
    target.serves()


def test_a_flood_of_connections(target: Target) -> None:
    idle = [target.attacker() for _ in range(LIMITS.connections)]
    turned_away = [target.attacker(hello=False) for _ in range(20)]
    for attacker in turned_away:
        kind, _, header, _ = attacker.receive()
        assert kind == Kind.ERROR
        assert header["retry_after_s"] > 0
    for attacker in idle:
        attacker.close()
    assert until(lambda: not target.server._peers)


def test_connecting_and_leaving_at_once_many_times(target: Target) -> None:
    host, _, port = target.server.address.rpartition(":")
    for k in range(100):
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            if k % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
    assert until(lambda: not target.server._peers)


def test_opening_more_segments_than_allowed(target: Target) -> None:
    attacker = target.attacker()
    for id in range(1, 60):
        attacker.send(20, id, {"fingerprint": target.model.fingerprint, "inputs": ["x"], "outputs": ["y3"]})
    kinds = [attacker.receive()[0] for _ in range(1, 60)]
    assert kinds.count(Kind.OPENED) <= LIMITS.segments
    assert Kind.ERROR in kinds


def test_leaving_while_a_tail_is_compiled(target: Target) -> None:
    target.gate.compile_gate.clear()
    attacker = target.attacker()
    attacker.send(20, 1, {"fingerprint": target.model.fingerprint, "inputs": ["x"], "outputs": ["y3"]})
    assert until(lambda: any(p.requests.waiting for p in target.server._peers))
    attacker.close()
    assert until(lambda: not target.server._peers)
    target.gate.compile_gate.set()
    target.serves()
    assert until(lambda: all(not t.open for t in target.server.services.runner.tails._known.values()))


def test_leaving_while_computing(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    target.gate.open.clear()
    attacker.infer(2, segment, flags=1)
    assert target.gate.entered.acquire(timeout=5)
    attacker.close()
    assert until(lambda: not target.server._peers)
    target.gate.open.set()


def test_nothing_of_ours_reads_pickles() -> None:
    folder = ROOT / "src" / "splitpoint"
    for name in ("wire.py", "transports", "runtime"):
        path = folder / name
        files = [path] if path.is_file() else list(path.glob("*.py"))
        assert files
        for file in files:
            words = file.read_text()
            assert "import pickle" not in words
            assert "eval(" not in words
