"""One address against the others: what costs is counted to it before it is done, however many connections it has."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from attacking import LIMITS, Attacker, Target, under_attack
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import BusyError
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.server import connection, requests
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.accounts import Account, Origin, Origins
from splitpoint.runtime.server.compiled_tails import Tails
from splitpoint.runtime.server.fair_queue import Client, FairQueue, WaitingJob
from splitpoint.runtime.server.run_limits import Watch
from splitpoint.runtime.server.server import Server
from splitpoint.transports.framed import Framed
from splitpoint.wire import Kind

OTHER = "127.0.0.2"


def origin(target: Target, address: str = "127.0.0.1") -> Origin:
    return target.server.ledger.origins._known[address]


def nothing(_waited: float) -> None:
    """A job."""


# --- tails ----------------------------------------------------------------------------------------------------------


def test_made_up_names_are_refused_before_anything_is_planned(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[object] = []
    monkeypatch.setattr(Model, "segment", lambda *names: planned.append(names))
    charge, charged = Account.charge, list[float]()
    monkeypatch.setattr(Account, "charge", lambda account, s: charged.append(s) or charge(account, s))
    attacker = target.attacker()
    fingerprint, junk = target.model.fingerprint, [f"junk{k}" for k in range(4096)]
    for id, (inputs, outputs) in enumerate(
        [(junk, junk), (["x"], ["junk"]), (["junk"], ["y3"]), (["x"] * 4096, ["y3"])], 2
    ):
        attacker.send(20, id, {"fingerprint": fingerprint, "inputs": inputs, "outputs": outputs, "vectors": []})
        kind, got, header, _ = attacker.receive()
        assert (kind, got, header["code"]) == (Kind.ERROR, id, "model")
    assert not planned
    assert until(lambda: len(charged) == 4), "and even that is counted"
    assert min(charged) > 0
    monkeypatch.undo()


def test_tails_are_made_in_turns_among_addresses_and_there_is_room_for_every_one(target: Target) -> None:
    gate, fingerprint = target.gate, target.model.fingerprint
    gate.compile_gate.clear()
    flood = [target.attacker() for _ in range(3)]
    for attacker in flood:
        for id in range(2, 2 + 12):
            attacker.send(
                20, id, {"fingerprint": fingerprint, "inputs": ["x"], "outputs": [f"m{id % 4}", f"y{id % 3}"]}
            )
    assert until(lambda: target.server.services.builders.waiting + 2 >= 30)
    queue = target.server.services.builders._queue
    queue.end(origin(target).builds, took_s=1.0)  # those two that are being made, say
    late = target.attacker(source=OTHER)
    late.send(20, 7, {"fingerprint": fingerprint, "inputs": ["m3"], "outputs": ["y3"]})
    assert until(lambda: len(origin(target, OTHER).builds.jobs) == 1)
    assert queue._next(queue._clients) is origin(target, OTHER).builds, "whoever has had least is next"
    gate.compile_gate.set()
    assert late.receive()[:2] == (Kind.OPENED, 7)
    for attacker in flood:
        for _ in range(12):
            assert attacker.receive()[0] == Kind.OPENED


def test_who_left_has_no_tails_made(target: Target) -> None:
    target.gate.compile_gate.clear()
    attacker = target.attacker()
    for id, name in enumerate(["x", "m0", "y0", "m1", "y1", "m2", "y2", "m3"], 2):
        attacker.send(20, id, {"fingerprint": target.model.fingerprint, "inputs": [name], "outputs": ["y3"]})
    assert until(lambda: target.server.services.builders.waiting >= 6)
    attacker.close()
    assert until(lambda: not target.server.services.builders.waiting)
    target.gate.compile_gate.set()
    assert until(lambda: not target.server._peers)
    assert len(target.gate.compiled) <= 2, "those that had begun"


def test_an_address_that_had_too_much_made_is_told_when_to_come_back(target: Target) -> None:
    attacker, other = target.attacker(), target.attacker(source=OTHER)
    attacker.open(target.model.fingerprint)
    asked = {"fingerprint": target.model.fingerprint, "inputs": ["m1"], "outputs": ["y3"]}
    before = origin(target).building._left
    origin(target).building.spend(1000.0)
    attacker.send(20, 5, asked)
    kind, _, header, _ = attacker.receive()
    assert (kind, header["code"]) == (Kind.ERROR, "busy")
    assert header["retry_after_s"] == pytest.approx((1000.0 - before) / 0.25, rel=0.01)
    other.send(20, 5, asked)
    assert other.receive()[0] == Kind.OPENED
    origin(target).building.spend(-1000.0)  # later: the honest client of the fixture comes from here


class Named(Gate):
    """Notes which threads compile."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes=nbytes)
        self.threads_: list[str] = []

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        self.threads_.append(threading.current_thread().name)
        return super().compile(segment)


def test_a_tail_that_left_memory_is_compiled_at_the_cost_of_who_asks_and_not_by_a_worker(tmp_path: Path) -> None:
    model, gate = affine(tmp_path), Named(nbytes=400)
    limits = dataclasses.replace(LIMITS, client_compiles=4)
    with (
        nothing_leaks(),
        Server([model], engine=gate, port=0, limits=limits, tail_cache_bytes=500) as server,
    ):
        attacker, segments = Attacker(server.address), []
        for id, name in enumerate(("x", "m0"), 2):
            attacker.send(20, id, {"fingerprint": model.fingerprint, "inputs": [name], "outputs": ["y3"]})
            segments.append(attacker.receive()[2]["segment"])
        kinds = []
        for k in range(4):  # each has pushed the other one out
            attacker.infer(10 + k, segments[k % 2])
            kinds.append(attacker.receive()[0])
        assert kinds == [Kind.RESULT, Kind.RESULT, Kind.BUSY, Kind.RESULT], "the last one is in memory still"
        assert len(gate.compiled) == 4
        assert all(name.startswith("compile") for name in gate.threads_)
        attacker.close()
        assert until(lambda: not server._peers)
        assert server.ledger.held_nbytes == 0
        assert not any(tail.users for tail in server.services.runner.tails._cached.values())


def test_who_has_many_tails_compiled_pushes_out_its_own(tmp_path: Path) -> None:
    model, gate = affine(tmp_path), Gate(nbytes=100)
    tails = Tails(gate, budget=400)
    honest = tails.tail(model.segment(("x",), ("y3",)))
    tails.build(honest, "honest")
    tails.release(honest)
    kept = []
    for name in ("m0", "y0", "m1", "y1", "m2", "y2", "m3"):
        kept.append(tails.tail(model.segment((name,), ("y3",))))
        tails.build(kept[-1], "attacker")
        tails.release(kept[-1])
    assert honest.session is not None
    assert tails.nbytes == 400
    tails.close()


# --- the queue ------------------------------------------------------------------------------------------------------


def test_connections_of_one_address_share_its_places(target: Target) -> None:
    target.gate.open.clear()
    flood = [target.attacker() for _ in range(LIMITS.connections - 1)]
    segments = [attacker.open(target.model.fingerprint) for attacker in flood]
    other = target.attacker(source=OTHER)
    segment = other.open(target.model.fingerprint)
    flood[0].infer(9, segments[0])
    assert target.gate.entered.acquire(timeout=5)
    for attacker, number in zip(flood, segments, strict=True):
        for id in range(10, 13):
            attacker.infer(id, number, flags=1)
    waiting = origin(target).requests.jobs
    assert until(lambda: len(waiting) == LIMITS.queue * 3 // 4), "a quarter of the queue is for others"
    for attacker in flood[1:]:
        assert attacker.receive()[0] == Kind.BUSY
    assert len(waiting) == LIMITS.queue * 3 // 4
    other.infer(2, segment)
    assert until(lambda: target.server.services.runner.compute.waiting == len(waiting) + 1)
    target.gate.open.set()
    assert other.receive()[:2] == (Kind.RESULT, 2)
    for attacker in (*flood, other):
        attacker.close()
    assert until(lambda: not target.server._peers)


def test_connections_of_one_address_take_turns_and_none_fills_its_places() -> None:
    queue, flood = FairQueue(16), Client()
    taken = [queue.push(0.0, WaitingJob(flood, nothing, line="a")) for _ in range(10)]
    assert taken == [True] * 8 + [False] * 2
    assert queue.push(0.0, WaitingJob(flood, nothing, line="b")), "it has none waiting"
    assert not queue.push(0.0, WaitingJob(flood, nothing, line="b"))
    assert [queue.take(0.0).line for _ in range(3)] == ["a", "b", "a"]
    assert [job.line for job in queue.drop(flood, "a")] == ["a"] * 6
    assert queue.waiting == 0
    assert not flood.waiting
    assert not flood.rounds


def test_whoever_has_many_waiting_is_read_as_fast_as_it_is_computed(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(requests, "sleep", pauses.append)
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    for id in range(10, 13):
        attacker.infer(id, segment)
        attacker.receive()
    assert not pauses
    origin(target).requests.mean_s = 0.125
    target.gate.open.clear()
    for id in range(20, 24):
        attacker.infer(id, segment, flags=1)
    assert until(lambda: len(pauses) >= 3)
    assert all(0 < seconds <= requests.REFUSED_S for seconds in pauses)
    target.gate.open.set()
    for _ in range(4):
        assert attacker.receive()[0] == Kind.RESULT


def test_refusing_costs_less_than_asking(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(connection, "sleep", pauses.append)
    target.gate.open.clear()
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    origin(target).requests.mean_s = 0.125
    for id in range(10, 40):
        attacker.infer(id, segment, flags=1)
    busy = [attacker.receive() for _ in range(30 - LIMITS.in_flight)]
    assert {kind for kind, *_ in busy} == {Kind.BUSY}
    assert until(lambda: len(pauses) >= len(busy)), "it is not read from before it was to ask again"
    assert all(pause == min(header["retry_after_s"], requests.REFUSED_S) for pause, (_, _, header, _) in
               zip(pauses[-len(busy):], busy, strict=True))  # fmt: skip
    target.gate.open.set()
    for _ in range(LIMITS.in_flight):
        assert attacker.receive()[0] == Kind.RESULT


def test_who_talks_too_much_is_not_read_from_and_neighbours_are(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[str] = []
    # It is frozen: nothing but a test changes it.
    object.__setattr__(target.server.services, "pause", lambda seconds: pauses.append(threading.current_thread().name))
    attacker, neighbour, other = target.attacker(), target.attacker(), target.attacker(source=OTHER)

    def ping(one: Attacker, times: int) -> None:
        for _ in range(times):
            one.send(5, 1, [1.5])
            assert one.receive()[0] == Kind.PONG

    ping(attacker, 1)
    assert until(lambda: origin(target).talking._then_s > 0)
    origin(target).talking.spend(1000.0)
    ping(attacker, 400)
    assert len(pauses) > 100
    name = f"peer {attacker.sock.getsockname()[0]}:{attacker.sock.getsockname()[1]}"
    ping(neighbour, 5)
    ping(other, 400)
    assert set(pauses) == {name}, "a few pings are everybody's"


# --- memory ---------------------------------------------------------------------------------------------------------


def narrow(target: Target, **more: str) -> Attacker:
    """An attacker for whom the system keeps little."""
    attacker = target.attacker(**more)
    attacker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    attacker.sock.settimeout(0.3)
    return attacker


@pytest.mark.parametrize("what", ["PING", "GRAPH"])
def test_what_an_address_does_not_read_is_bounded_for_all_its_connections(tmp_path: Path, what: str) -> None:
    with under_attack(tmp_path, dataclasses.replace(LIMITS, stall_s=30.0)) as target:
        flood = [narrow(target) for _ in range(3)]
        for peer in target.server._peers:  # the system keeps megabytes else
            peer.connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        kind, header = {"PING": (5, [1.5]), "GRAPH": (16, {"fingerprint": target.model.fingerprint})}[what]
        frames = flood[0].frame(kind, 3, header) * 1000
        origin(target).talking._most = 1e9  # which would stop them earlier
        for attacker in flood:
            with suppress(OSError):  # nobody reads it any more
                for _ in range(100):
                    attacker.raw(frames)
        backlog = origin(target).backlog
        peers = [peer.connection for peer in target.server._peers]
        most = LIMITS.backlog_bytes + len(flood) * 10_000  # each may have one more on its way
        assert LIMITS.backlog_bytes < backlog.nbytes <= most
        assert sum(len(one._queue) for one in peers) * 512 <= most, "objects count too"
        assert sum(one._queued for one in peers) == backlog.nbytes
        other = target.attacker(source=OTHER)
        other.send(5, 7, [1.5])
        assert other.receive()[:2] == (Kind.PONG, 7)
        for attacker in flood:
            attacker.close()
        assert until(lambda: backlog.nbytes == 0, 10)


def test_a_graph_is_in_memory_once_whoever_asks(target: Target) -> None:
    assert target.model.graph_bytes() is target.model.graph_bytes()


def test_a_request_of_who_does_not_read_is_not_computed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    attacker = target.attacker()
    segment = attacker.open(target.model.fingerprint)
    with monkeypatch.context() as patched:
        patched.setattr(Framed, "behind", property(lambda connection: True))
        attacker.infer(2, segment, flags=1)
        kind, _, header, _ = attacker.receive()
    assert kind == Kind.BUSY
    assert "not read" in header["message"]
    assert not target.gate.entered.acquire(blocking=False)


def test_reading_in_drips_ends_the_connection(tmp_path: Path) -> None:
    with under_attack(tmp_path, dataclasses.replace(LIMITS, stall_s=0.2, slowest=1e12)) as target:
        attacker = narrow(target)
        with suppress(OSError):
            attacker.raw(attacker.frame(7, 3, [1 << 20]) * 50)
        [peer] = target.server._peers
        end = time.monotonic() + 20
        while time.monotonic() < end and not peer.connection._broken:
            with suppress(OSError):
                attacker.sock.recv(1000)
            time.sleep(0.01)  # the attack itself
        assert "does not read its answers" in peer.connection._broken
        assert origin(target).backlog.nbytes == 0


def test_weights_asked_for_in_turns_are_read_once_for_an_address(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    blob = Model.blob

    def counted(model: Model, hash: str) -> memoryview:
        read.append(hash)
        return blob(model, hash)

    monkeypatch.setattr(Model, "blob", counted)
    hashes = list(target.model.blobs)[:4]
    flood = [target.attacker() for _ in range(3)]
    for k in range(5):
        for attacker in flood:
            for hash in hashes:
                asked = {"fingerprint": target.model.fingerprint, "hash": hash, "offset": 100 * k, "length": 100}
                attacker.send(18, 2, asked)
                assert attacker.receive()[0] == Kind.BLOB_DATA
    assert sorted(read) == sorted(hashes)
    assert len(origin(target).giving) == 4
    kept = origin(target)
    for attacker in flood:
        attacker.close()
    assert until(lambda: not target.server._peers)
    assert not kept.giving, "nothing is kept for who is not here"


# --- profiles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Measuring a model takes until this is set."""
    go = threading.Event()

    def measured(model: Model, engine: Gate, *, proceed: object, **how: object) -> object:
        assert callable(proceed)
        while not go.wait(0.01):
            proceed()
        proceed()
        raise AssertionError("nobody wants it")

    monkeypatch.setattr(profiling, "profile_model", measured)
    yield go
    go.set()


def test_who_asked_for_a_profile_and_left_is_forgotten(target: Target, measuring: threading.Event) -> None:
    asked = {"fingerprint": target.model.fingerprint, "budget_s": 20.0}
    staying = target.attacker(source=OTHER)
    staying.send(24, 2, asked)
    jobs = target.server.services.profiling._jobs
    assert until(lambda: len(jobs) == 1)
    for _ in range(5):
        one = target.attacker()
        one.send(24, 2, asked)
        one.send(5, 3, [1.5])
        assert one.receive()[0] == Kind.PONG  # so it has been asked for
        one.close()
        assert until(lambda: len(target.server._peers) == 1)
    assert len(jobs[0].askers) == 1
    assert origin(target).profiles == 0
    staying.close()
    assert until(lambda: not jobs), "and nothing is measured for nobody"


def test_an_address_waits_for_eight_profiles_at_most(target: Target, measuring: threading.Event) -> None:
    asked = {"fingerprint": target.model.fingerprint, "budget_s": 20.0}
    flood = [target.attacker() for _ in range(4)]
    for attacker in flood:
        for id in range(2, 6):
            attacker.send(24, id, asked)
        attacker.send(5, 9, [1.5])
    kinds = []
    for attacker in flood:
        while (kind := attacker.receive()[0]) != Kind.PONG:
            kinds.append(kind)
    assert kinds == [Kind.BUSY] * 8
    other = target.attacker(source=OTHER)
    other.send(24, 2, asked)
    assert until(lambda: origin(target, OTHER).profiles == 1)
    for attacker in (*flood, other):
        attacker.close()
    assert until(lambda: not target.server._peers)


def test_one_address_may_have_half_of_the_models_that_wait_and_others_are_measured_first(tmp_path: Path) -> None:
    models = [affine(tmp_path, name=f"m{k}", seed=k) for k in range(10)]
    watch = Watch(30.0, 0, lambda: None, lambda: None, lambda: None, lambda text: None)
    asked = profiling.Profiling(Gate(), 60.0, lambda event: None, lambda: 0, watch)
    asked.thread = threading.current_thread()  # nothing is measured
    greedy, modest = Origin("10.0.0.1", 1), Origin("10.0.0.2", 1)

    def ask(model: Model, origin: Origin) -> bool:
        try:
            asked.ask(model, 1.0, lambda made: None, object(), origin)
        except BusyError:
            return False
        return True

    assert [ask(model, greedy) for model in models[:8]] == [True] * 5 + [False] * 3
    assert ask(models[8], modest)
    greedy.measured_s = 60.0
    assert min(asked._jobs, key=profiling._ProfileJob.spent_s).model is models[8]


# --- who is one client ----------------------------------------------------------------------------------------------


def test_a_certificate_at_an_address_is_an_account_and_the_address_counts_connections() -> None:
    origins = Origins(connections=2, compiles=10)
    home, again = origins.enter("10.0.0.1:1"), origins.enter("10.0.0.1:2")
    assert home is not None
    assert home is again
    one, other = origins.identify(home, "camera"), origins.identify(home, "phone")
    assert one is not other
    assert one is not home
    assert origins.identify(home, "camera") is one
    assert origins.enter("10.0.0.1:3") is None, "more certificates are no more connections"
    elsewhere = origins.enter("10.0.0.2:1")
    assert elsewhere is not None
    assert origins.identify(elsewhere, "camera") is not one, "many devices may have one certificate"


def test_an_ipv4_address_is_the_same_client_by_ipv6() -> None:
    origins = Origins(connections=9, compiles=10)
    assert origins.enter("10.0.0.1:1") is origins.enter("[::ffff:10.0.0.1]:2")
