"""What one client may take of a server, what a header may become in memory, and a server that is out of means."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attacking import LIMITS, Attacker, Target, memory_stays, under_attack
from places import SUPPORT
from serving import affine, until

from splitpoint import errors
from splitpoint.errors import BusyError, SplitpointError, UsageError
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.accounts import Account, Origin, Origins
from splitpoint.runtime.server.connection import Peer
from splitpoint.runtime.server.requests import Requests
from splitpoint.wire import Kind, Limits

STRICT = dataclasses.replace(LIMITS, client_connections=3, client_compiles=4, segments=100)


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Target]:
    with under_attack(tmp_path, STRICT) as made:
        yield made


# --- connections of one client --------------------------------------------------------------------------------------


def test_one_address_cannot_take_every_connection(strict: Target) -> None:
    kept = [strict.attacker() for _ in range(STRICT.client_connections)]
    for _ in range(10):
        kind, id, header, _ = strict.attacker(hello=False).receive()
        assert (kind, id, header["code"]) == (Kind.ERROR, 0, "busy")
        assert "from this address" in header["message"]
        assert header["retry_after_s"] > 0
    elsewhere = strict.attacker(source="127.0.0.2")
    elsewhere.send(5, 6, [1.5])
    assert elsewhere.receive()[:2] == (Kind.PONG, 6)
    kept[0].close()
    assert until(lambda: len(strict.server._peers) == STRICT.client_connections)
    again = strict.attacker()
    again.send(5, 7, [1.5])
    assert again.receive()[:2] == (Kind.PONG, 7)
    for attacker in (again, elsewhere, *kept):
        attacker.close()
    assert until(lambda: not strict.server._peers)


def test_a_hello_in_drips_is_ended(strict: Target) -> None:
    attacker, began = strict.attacker(hello=False), time.monotonic()
    try:
        for byte in attacker.frame(2, 0, {"software": "x" * 5000}):
            attacker.raw(bytes([byte]))
            time.sleep(0.02)  # the attack itself
    except OSError:
        pass
    assert time.monotonic() - began < 20, "5000 bytes take 100 s"
    assert until(lambda: not strict.server._peers)


def test_a_client_that_asks_for_nothing_is_told_goodbye(tmp_path: Path) -> None:
    with under_attack(tmp_path, dataclasses.replace(LIMITS, idle_s=0.2)) as target:
        attacker = target.attacker()
        kind, _, header, _ = attacker.receive()
        assert kind == Kind.BYE
        assert "nothing was asked for 0.2 s" in header["reason"]
        attacker.hung_up()
        assert until(lambda: not target.server._peers)


# --- tails of one client --------------------------------------------------------------------------------------------


def open_at(attacker: Attacker, target: Target, id: int, boundary: str) -> tuple[int, dict[str, object]]:
    asked = {"fingerprint": target.model.fingerprint, "inputs": [boundary], "outputs": ["y3"]}
    attacker.send(20, id, asked)
    kind, got, header, _ = attacker.receive()
    assert got == id
    return kind, header


def test_distinct_cuts_compiled_for_one_client_are_bounded(strict: Target) -> None:
    names = ["m0", "y0", "m1", "y1", "m2", "y2", "m3"]
    attacker = strict.attacker()
    outcomes = [open_at(attacker, strict, id, name) for id, name in enumerate(names, 1)]
    opened = [header for kind, header in outcomes if kind == Kind.OPENED]
    refused = [header for kind, header in outcomes if kind == Kind.ERROR]
    assert len(opened) == len(strict.gate.compiled) == STRICT.client_compiles
    assert {h["code"] for h in refused} == {"busy"}
    assert all("compiled for one address" in str(h["message"]) for h in refused)
    assert all(0 < float(str(h["retry_after_s"])) <= 60 / STRICT.client_compiles for h in refused)
    # Closing them, or leaving, buys no new ones.
    for header in opened:
        attacker.send(22, 0, {"segment": header["segment"]})
    attacker.close()
    assert until(lambda: not strict.server._peers)
    attacker = strict.attacker()
    assert open_at(attacker, strict, 1, names[-1])[0] == Kind.ERROR
    assert len(strict.gate.compiled) == STRICT.client_compiles
    # Another address has its own share, and what is compiled already is for everyone.
    other = strict.attacker(source="127.0.0.2")
    assert open_at(other, strict, 1, names[-1])[0] == Kind.OPENED
    assert open_at(attacker, strict, 2, names[-1])[0] == Kind.OPENED
    other.close()
    attacker.close()
    assert until(lambda: not strict.server._peers)
    strict.server.ledger.origins._known.clear()  # a minute later: the fixture's honest client comes from here


def test_a_device_is_told_when_to_ask_for_another_tail(strict: Target) -> None:
    with Edge(strict.server.address, strict.model, at="input") as edge:
        *few, one_more = strict.model.graph.chain()[1 : STRICT.client_compiles + 1]
        for cut in few:
            edge.warm(cut)
        with pytest.raises(BusyError, match="compiled for one address") as caught:
            edge.warm(one_more)
        assert 0 < caught.value.retry_after_s <= 15
    strict.server.ledger.origins._known.clear()


# --- what a header becomes ------------------------------------------------------------------------------------------


def _array(count: int, entry: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + entry * count


_MANY = 1_000_000
#: A few bytes of a header each, and a hundred or so once decoded.
_TENSOR = b"\x93\xa1x\x90\x00"


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (32, b"\x92\x01" + _array(800_000, _TENSOR)),
        (32, b"\x93\x01\x90" + _array(_MANY, b"\x91\xcd\x01")[: 3 << 20]),
        (32, b"\x93\x01\x90\x91" + _array(_MANY, b"\xcd\x11\x11")),
        (32, b"\x92\x01\x91\x93\xa1x" + _array(_MANY, b"\xcd\x11\x11") + b"\x00"),
        (20, b"\x83\xabfingerprint\xa1x\xa7outputs\x90\xa6inputs" + _array(_MANY, b"\xa2ab")),
        (20, b"\x83\xabfingerprint\xa1x\xa6inputs\x90\xa7outputs" + _array(_MANY, b"\xa2ab")),
    ],
)
def test_a_header_of_a_million_entries_is_refused_before_they_are_made(
    target: Target, kind: int, header: bytes
) -> None:
    assert len(header) < LIMITS.header_bytes
    attacker = target.attacker()
    with memory_stays(within_mb=24):  # the attacker's own copies are in it
        attacker.send(kind, 1, header)
        assert "cannot be read" in attacker.refusal()


def test_many_features_are_refused(target: Target) -> None:
    attacker = target.attacker(hello=False)
    attacker.send(2, 0, {"version": [1, 0], "features": ["x"] * 20_000})
    assert "cannot be read" in attacker.refusal()


def test_unknown_fields_of_a_header_cost_no_memory(target: Target) -> None:
    attacker = target.attacker()
    header = b"\x92\xcb" + bytes(8) + _array(_MANY, b"\xa2ab")
    with memory_stays(within_mb=24):
        attacker.send(5, 1, header)
        assert attacker.receive()[:2] == (Kind.PONG, 1)


def test_a_blob_is_answered_in_pieces(target: Target) -> None:
    attacker = target.attacker()
    hash, blob = next(iter(target.model.blobs.items()))
    for id, (offset, length) in enumerate([(0, 2**62), (0, 0), (blob.nbytes - 1, 2**62), (blob.nbytes, 2**62)], 2):
        asked = {"fingerprint": target.model.fingerprint, "hash": hash, "offset": offset, "length": length}
        attacker.send(18, id, asked)
        kind, got, header, body = attacker.receive()
        assert (kind, got) == (Kind.BLOB_DATA, id)
        assert len(body) == blob.nbytes - offset <= LIMITS.blob_chunk
        assert header["nbytes"] == blob.nbytes


def test_pings_without_reading_the_answers(target: Target) -> None:
    attacker = target.attacker()
    attacker.sock.settimeout(0.3)
    pings = b"".join(attacker.frame(5, id, [1.5]) for id in range(2, 2000))
    with memory_stays(within_mb=32), pytest.raises(OSError):  # noqa: PT011 - nobody reads us any more
        attacker.raw(pings * 300)
    target.serves()
    attacker.close()
    assert until(lambda: not target.server._peers, 10)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ([99, [["float32", [1, 1024], 4096, ""]]], 4096),
        ([1, [["float32", [1, 1023], 4092, ""]]], 4092),
        ([1, [["float32", [1, 1024], 10, "zip-bomb"]]], 10),
        ([1, [["float32", [1, 1024], 10, "raw+zstd"]]], 10),
    ],
)
@pytest.mark.parametrize("leaves", [False, True])
def test_refused_requests_leave_memory(target: Target, header: object, body: int, leaves: bool) -> None:
    """Frames are invisible to the garbage collector: one that was part of a cycle would stay for ever."""

    def left() -> int:
        gc.collect()
        return sum(issubclass(type(o), (SplitpointError, Peer, Requests, Account)) for o in gc.get_objects())

    attacker = target.attacker()
    attacker.open(target.model.fingerprint)
    before = left()
    if leaves:  # in the middle of the body that is skipped
        for _ in range(20):
            one = Attacker(target.server.address)
            one.open(target.model.fingerprint)
            one.raw(one.frame(32, 2, header, bytes(body))[:-5])
            one.close()
        assert until(lambda: len(target.server._peers) == 1)
    else:
        for id in range(2, 102):
            attacker.send(32, id, header, bytes(body))
            assert attacker.receive()[:2] == (Kind.ERROR, id)
    assert until(lambda: left() <= before + 3)


# --- limits themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(f.name, -1) for f in dataclasses.fields(Limits)],
        ("connections", 0),
        ("tensors", 0),
        ("in_flight", 1.5),
        ("queue", True),
        ("client_connections", "many"),
        ("client_compiles", None),
        ("stall_s", 0),
        ("stall_s", math.nan),
        ("handshake_s", math.inf),
    ],
)
def test_limits_that_make_no_sense_are_said(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"the limit {name} must be"):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_a_minute_of_compiling_in_virtual_time() -> None:
    compiles = Origin("10.0.0.1", 60).compiles
    assert [compiles.take(1.0, 100.0) for _ in range(60)] == [0.0] * 60
    assert compiles.take(1.0, 100.0) == pytest.approx(1.0)
    assert compiles.take(1.0, 100.5) == pytest.approx(0.5)
    assert compiles.take(1.0, 101.0) == 0.0
    assert compiles.take(1.0, 101.0) == pytest.approx(1.0)
    assert compiles.take(1.0, 90.0) == pytest.approx(1.0), "a clock that goes back gives nothing"
    assert [compiles.take(1.0, 1000.0) for _ in range(61)] == [0.0] * 60 + [pytest.approx(1.0)]


def test_clients_are_told_apart_and_forgotten_when_there_are_too_many() -> None:
    origins = Origins(connections=2, compiles=1)
    one = origins.enter("[2001:db8::1]:1")
    assert one is not None
    assert origins.enter("[2001:db8::ffff]:2") is one, "one network is one client"
    assert origins.enter("[2001:db8::2]:3") is None
    assert one.compiles.take(1.0, 0.0) == 0.0
    origins.leave(one)
    origins.leave(one)
    assert origins.enter("[2001:db8::1]:4") is one, "whoever comes back has not been forgiven"
    assert one.compiles.take(1.0, 0.0) > 0
    for k in range(10_000):
        other = origins.enter(f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}:1")
        assert other is not None
        origins.leave(other)
    assert len(origins._known) < 5000
    assert origins.enter("[2001:db8::1]:5") is one, "nobody who is here is forgotten"


# --- out of means ---------------------------------------------------------------------------------------------------


def no_thread_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the system has none for threads whose name begins so."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_without_a_thread_for_a_connection_it_is_turned_away(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    here = target.attacker()
    with monkeypatch.context() as patched:
        no_thread_for(patched, "peer ")
        kind, _, header, _ = target.attacker(hello=False).receive()
        assert (kind, header["code"]) == (Kind.ERROR, "busy")
        assert "no thread left" in header["message"]
        here.send(5, 6, [1.5])
        assert here.receive()[:2] == (Kind.PONG, 6)
    assert len(target.server._peers) == 1


def test_without_a_thread_for_a_slow_reader_only_that_one_ends(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 32 << 20  # more than the kernel takes at once
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    with monkeypatch.context() as patched:
        no_thread_for(patched, "write ")
        attacker.send(32, 2, [segment, [["float32", [size // 4096, 1024], size, ""]]], bytes(size), flags=1)
        assert until(lambda: not target.server._peers, 10)
        target.serves()


_POOR = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serving import affine
from splitpoint.engines import open_engine
from splitpoint.runtime.server.server import Server
model = affine(Path(sys.argv[2]))
def tell(event):
    if event.kind == "warning":
        print(event.sentence, flush=True)
with Server([model], engine=open_engine(threads=1), port=0, on_event=tell) as server:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print(server.address, flush=True)
    sys.stdin.read()
"""


def test_a_server_out_of_file_descriptors_serves_on(tmp_path: Path) -> None:
    """More connections than it has descriptors for: those that are in are served, the others wait, and none is lost."""
    tests = str(SUPPORT)
    command = [sys.executable, "-c", _POOR, tests, str(tmp_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    crowd: list[socket.socket] = []
    try:
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        model = affine(tmp_path)
        x = np.ones((1, 1024), np.float32)
        with Edge(address, model, at="input") as edge:
            wanted = edge.infer(x).outputs["y3"]
            host, _, port = address.rpartition(":")
            crowd += [socket.create_connection((host, int(port)), timeout=5) for _ in range(60)]
            assert until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) >= 40)
            poll = select.poll()
            poll.register(child.stdout, select.POLLIN)
            assert poll.poll(10_000), "whoever runs it is told"
            assert "no file descriptor left" in child.stdout.readline()
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], wanted)
            for sock in crowd:
                sock.close()
            with Edge(address, model, at="input", patience=Patience(connect_s=20)) as late:
                np.testing.assert_array_equal(late.infer(x).outputs["y3"], wanted)
        assert until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) < 40)
    finally:
        for sock in crowd:
            sock.close()
        child.communicate(input="")
    assert child.returncode == 0


@pytest.mark.parametrize("kind", ["OPEN", "GRAPH", "BLOB", "PROFILE"])
def test_a_name_of_a_million_characters_is_compared_with_none(
    target: Target, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Looking for the nearest of the names that are known took a tenth of a second for each of them."""
    compared: list[int] = []
    monkeypatch.setattr(errors.difflib, "get_close_matches", lambda name, *_, **__: compared.append(len(name)) or [])
    attacker = target.attacker()
    header = {"fingerprint": "0a" * 500_000, "inputs": ["x"], "outputs": ["y3"], "hash": "", "budget_s": 1.0}
    attacker.send(Kind[kind], 1, header)
    answer, _, said, _ = attacker.receive()
    assert answer == Kind.ERROR
    assert len(said["message"]) < 3000
    assert not compared
