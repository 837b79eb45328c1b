"""What a client may try that has agreed on checksums; and clients that read slowly."""

from __future__ import annotations

import struct
import zlib

import pytest
from attacking import LIMITS, Attacker, Target

from splitpoint.wire import Kind


class Careful(Attacker):
    """An attacker that has agreed on checksums, and may then forget them."""

    def __init__(self, address: str) -> None:
        super().__init__(address, hello=False)
        self.raw(super().frame(2, 0, {"version": [1, 2], "features": ["crc32"]}))
        kind, _, header, body = self.receive()
        assert kind == Kind.WELCOME
        assert header["features"] == ["crc32"]
        assert len(body) == 4  # the checksum

    def checked(self, kind: int, id: int, header: object, body: bytes = b"", *, wrong: int = 0) -> bytes:
        data = super().frame(kind, id, header, body, flags=2, size=len(body) + 4)
        return data + struct.pack("<I", zlib.crc32(data) ^ wrong)

    def refusal(self) -> str:
        kind, id, header, body = self.receive()
        assert (kind, id, len(body)) == (Kind.ERROR, 0, 4), header
        self.hung_up()
        return str(header["message"])


@pytest.fixture
def careful(target: Target) -> Careful:
    made = Careful(target.server.address)
    target.attackers.append(made)
    return made


def opened(attacker: Careful, target: Target) -> int:
    attacker.raw(attacker.checked(20, 1, {"fingerprint": target.model.fingerprint, "inputs": ["x"], "outputs": ["y3"]}))
    kind, _, header, _ = attacker.receive()
    assert kind == Kind.OPENED
    return int(header["segment"])


HEADER = [["float32", [1, 1024], 4096, ""]]


def test_an_honest_one_is_answered_with_checksums(target: Target, careful: Careful) -> None:
    segment = opened(careful, target)
    for id in (2, 3):
        careful.raw(careful.checked(32, id, [segment, HEADER], bytes(range(256)) * 16))
        kind, got, _, body = careful.receive()
        assert (kind, got) == (Kind.RESULT, id)
        assert body[64:-4] == bytes(range(256)) * 16  # the gate's engine answers with its input


@pytest.mark.parametrize("wrong", [1, 0xFFFFFFFF])
def test_a_wrong_checksum_ends_the_connection(target: Target, careful: Careful, wrong: int) -> None:
    segment = opened(careful, target)
    careful.raw(careful.checked(32, 2, [segment, HEADER], bytes(4096), wrong=wrong))
    assert "INFER from" in (said := careful.refusal())
    assert said.endswith("was changed on its way: its checksum is wrong")


def test_a_refused_request_with_a_wrong_checksum_ends_the_connection(target: Target, careful: Careful) -> None:
    careful.raw(careful.checked(32, 2, [77, HEADER], bytes(4096)))
    kind, id, _, _ = careful.receive()
    assert (kind, id) == (Kind.ERROR, 2)
    careful.raw(careful.checked(32, 3, [77, HEADER], bytes(4096), wrong=4))
    assert "was changed on its way" in careful.refusal()


def test_forgetting_the_checksum_ends_the_connection(target: Target, careful: Careful) -> None:
    careful.send(5, 1, [1.5])
    assert careful.refusal() == "PING came without the checksum that was agreed on"


@pytest.mark.parametrize("size", range(4))
def test_a_body_too_small_for_its_checksum(target: Target, careful: Careful, size: int) -> None:
    careful.send(5, 1, [1.5], bytes(size), flags=2)
    assert careful.refusal() == f"a checksum takes 4 bytes: a body of {size} came"


def test_turning_into_http_is_answered_in_http(target: Target, careful: Careful) -> None:
    careful.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert careful.sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_the_flag_without_the_agreement_is_a_contradiction(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    attacker.send(32, 2, [segment, HEADER], bytes(4100), flags=2)
    assert "tensors have 4096 bytes and its body 4100" in attacker.refusal()


def test_a_client_that_reads_slowly_holds_up_nobody_and_gets_all_of_its_answers(target: Target) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    size = 8 << 20
    assert size > LIMITS.backlog_bytes  # more than the server writes ahead
    header = [segment, [["float32", [size // 4096, 1024], size, ""]]]
    for id in (2, 3):
        attacker.send(32, id, header, bytes([id]) * size, flags=1)
        _, _, _, kind, _, got, header_bytes, body_bytes = struct.unpack("<4sBBBBIIQ", attacker.read(24))
        assert (kind, got) == (Kind.RESULT, id)
        attacker.read(header_bytes + 64)
        left = body_bytes - 64
        assert left == size
        while left:
            assert attacker.read(1 << 20) == bytes([id]) * (1 << 20)
            left -= 1 << 20
            target.serves()  # between any two pieces of it, somebody else
