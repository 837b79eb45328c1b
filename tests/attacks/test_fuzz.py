"""Frames that nobody meant: a few thousand here (`python -m bench.fuzz`: a million), and what hypothesis thinks of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from attacking import Attacker, Target, memory_stays, under_attack
from bench import damaged_frames
from hypothesis import HealthCheck, given, settings
from serving import nothing_leaks, until

from splitpoint.engines import open_engine
from splitpoint.errors import ServerError
from splitpoint.models import load
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.transports import memory
from splitpoint.wire import Kind, Limits, Packet

TIGHT = Limits(tensor_bytes=1 << 20, frame_bytes=2 << 20, header_bytes=1 << 16, stall_s=0.02)

kinds = st.sampled_from([*map(int, Kind), 0, 9, 200])
names = (
    st.sampled_from(["x", "y0", "y3", "m2", "w0", "", "nope", "float32", "int8", "int8+zstd", "\x1b]0;"]) | st.text()
)
numbers = st.sampled_from([0, 1, 2, 1024, 4096, -1, 2**31, 2**62, 2**63 - 1]) | st.integers(-(2**63), 2**64 - 1)
leaves = st.none() | st.booleans() | numbers | st.floats() | names | st.binary(max_size=20)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=4))
keys = st.sampled_from(
    ["fingerprint", "inputs", "outputs", "vectors", "segment", "hash", "offset", "length", "budget_s", "version", "x"]
)
tensors = st.lists(
    st.tuples(st.sampled_from(["float32", "uint8", "object"]), st.lists(numbers, max_size=4), numbers, names),
    max_size=3,
)
headers = (
    trees
    | st.dictionaries(keys, trees, max_size=5)
    | st.tuples(numbers, tensors)
    | st.tuples(st.just(1), st.just([("float32", [1, 1024], 4096, "")]))
)
sizes = st.sampled_from([-1, 0, 1, 64, 4096]) | st.integers(0, 2**64 - 1)


def packed(header: Any) -> bytes:
    return msgspec.msgpack.encode(header)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame whose lengths are mostly right."""
    header = draw(headers.map(packed) | st.binary(max_size=60))
    body = draw(st.sampled_from([b"", bytes(64), bytes(4096)]) | st.binary(max_size=100))
    size = draw(sizes) if draw(st.integers(0, 5)) == 0 else -1
    length = len(body) if size < 0 else size
    kind, flags, id = draw(kinds), draw(st.integers(0, 255) | st.just(0)), draw(st.integers(0, 2**32 - 1))
    return struct.pack("<4sBBBBIIQ", b"\xf5SPT", 1, 2, kind, flags, id, len(header), length) + header + body


def receive_all(connection: memory.MemoryConnection, nbytes: int) -> None:
    while True:
        frame = connection.receive(timeout_s=1)
        assert sum(t.nbytes for t in frame.tensors) <= TIGHT.frame_bytes
        assert frame.nbytes <= nbytes


@given(st.lists(st.binary(max_size=200) | frames(), max_size=4), st.booleans(), st.sampled_from([1, 7, 1 << 20]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_frame_or_a_refusal(data: list[bytes], checks: bool, chunk: int) -> None:
    near, far = memory.pair(TIGHT)
    far.checks = checks
    joined = b"".join(data)
    for at in range(0, len(joined), chunk):
        near.send(Packet((joined[at : at + chunk],), 1))
    near._out.close()
    with pytest.raises(ServerError):  # how every conversation ends
        receive_all(far, len(joined))


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with under_attack(tmp_path_factory.mktemp("victim")) as made:
        yield made


@given(st.lists(frames(), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frames_leave_a_server_that_answers(victim: Target, data: list[bytes]) -> None:
    attacker = Attacker(victim.server.address)
    opening = {"fingerprint": victim.model.fingerprint, "inputs": ["x"], "outputs": ["y3"]}
    try:
        attacker.raw(attacker.frame(20, 1, opening) + b"".join(data))
        attacker.sock.shutdown(1)  # and now it is the server's turn to end
        while attacker.sock.recv(1 << 16):
            pass
    except (ConnectionError, BrokenPipeError):
        pass
    finally:
        attacker.close()
    honest = Attacker(victim.server.address)
    try:
        segment = honest.open(victim.model.fingerprint)
        honest.infer(2, segment)
        assert honest.receive()[:2] == (Kind.RESULT, 2)
    finally:
        honest.close()


def test_a_few_thousand_damaged_frames(tmp_path: Path) -> None:
    model, told = load("zoo:lenet5"), list[Event]()
    engine = open_engine(threads=1)
    with (
        nothing_leaks(),
        Server([model], engine=engine, port=0, limits=damaged_frames.LIMITS, on_event=told.append) as server,
    ):
        said = [
            damaged_frames.record(server.address, at="pool1", codec=codec) for codec in ("raw", "int8+zstd", "fp16")
        ]
        said.append(damaged_frames.record(server.address, at="input", checksum=True))
        damaged_frames.attack(server.address, said, frames=200, seed=0)
        with memory_stays(within_mb=damaged_frames.SLACK_NBYTES >> 20):
            tally = damaged_frames.attack(server.address, said, frames=2500, seed=1)
        damaged_frames.honest(server.address, at="pool1", cache=tmp_path)
        assert until(lambda: not server._peers, 10)
        assert server.ledger.held_nbytes == 0
    assert not tally.stuck
    assert not [e.sentence for e in told if "internal" in e.sentence or e.kind == "failed"]
    # It was not all refused at the door: there were answers, refusals of one request, and ends of conversations.
    assert min(tally.answers[k] for k in ("WELCOME", "OPENED", "RESULT", "ERROR", "PONG", "END")) > 10


def test_damage_is_the_same_for_the_same_seed_and_goes_everywhere() -> None:
    requests = [_frame(32, [k, [["float32", [1, 4], 16, ""]]], bytes(16)) for k in range(9)]
    said = [[_frame(2, {"version": [1, 2]}), _frame(20, {"inputs": ["x"]}), *requests]]

    def run(seed: int) -> list[damaged_frames.Conversation]:
        random = Random(seed)
        return [damaged_frames.damaged(random, said) for _ in range(300)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    once = [frame for conversation in run(1) for frame in (*conversation.opening, *conversation.rest)]
    assert len({len(frame) for frame in once}) > 30
    prefixes = [struct.unpack_from("<4sBBBBIIQ", frame) for frame in once if len(frame) >= 24]
    assert all(len({p[k] for p in prefixes}) > 5 for k in range(8)), "every field of a prefix is damaged somewhere"
    whole = sum(len(f) == 24 + p[6] + p[7] for f, p in zip((f for f in once if len(f) >= 24), prefixes, strict=True))
    assert 0.5 < whole / len(once) < 0.98, "most are still frames"
    assert np.mean([frame in said[0] for frame in once]) < 0.8


def _frame(kind: int, header: object, body: bytes = b"") -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return struct.pack("<4sBBBBIIQ", b"\xf5SPT", 1, 2, kind, 0, 1, len(encoded), len(body)) + encoded + body
