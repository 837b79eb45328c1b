"""What a server makes for one client and keeps: compiled tails and their threads, open segments, batches, profiles."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacking import Attacker, Target, under_attack
from onnx import TensorProto, helper, numpy_helper
from serving import Gate, affine, until

from splitpoint.engines import Engine, open_engine, underway
from splitpoint.errors import BusyError, EngineError, StorageError
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.models.weights import Part
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client import held_weights as holding
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import accounts as origins
from splitpoint.runtime.server import batching
from splitpoint.runtime.server import compiled_tails as tails_module
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.accounts import Origin
from splitpoint.runtime.server.batching import Gain
from splitpoint.runtime.server.compiled_tails import Tail, Tails
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.run_limits import GuardedRun, Watch
from splitpoint.wire import Kind

# --- compiling ------------------------------------------------------------------------------------------------------


class Crowded(Gate):
    """Counts how many compile at once: each waits a moment for a second one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._second = threading.Lock(), threading.Event()
        self.now = self.most = 0

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now > 1:
                self._second.set()
        self._second.wait(0.1)
        with self._lock:
            self.now -= 1
        return super().compile(segment)


def build_at_once(tails: Tails, made: list[Tail]) -> None:
    def build(tail: Tail) -> None:
        tails.build(tail, "attacker")
        tails.release(tail)

    threads = [threading.Thread(target=build, args=(tail,)) for tail in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tails_of(tails: Tails, model: Model, names: tuple[str, ...] = ("x", "m0", "y0", "m1", "y1", "m2")) -> list[Tail]:
    return [tails.tail(model.segment((name,), ("y3",))) for name in names]


@pytest.mark.parametrize("at_once", [1, 2])
def test_tails_are_compiled_one_by_one_where_that_leaves_a_core_to_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(tails_module, "_PATIENCE_S", 60.0)
    engine = Crowded()
    tails = Tails(engine, budget=1 << 30, at_once=at_once)
    build_at_once(tails, tails_of(tails, affine(tmp_path), ("x", "m0")))
    assert engine.most == at_once
    assert len(engine.compiled) == 2
    tails.close()


def test_a_tail_whose_compiling_does_not_end_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose compiling waits for another's: what is told of it may be waited for."""
    monkeypatch.setattr(tails_module, "_PATIENCE_S", 0.0)
    engine = Crowded()
    tails = Tails(engine, budget=1 << 30)
    build_at_once(tails, tails_of(tails, affine(tmp_path), ("x", "m0")))
    assert engine.most == 2
    tails.close()


# --- threads of compiled tails --------------------------------------------------------------------------------------


class Broad(Gate):
    threads = 32


@pytest.mark.parametrize(("most", "kept"), [(96, 3), (8, 2)])
def test_threads_of_compiled_tails_are_bounded_and_who_has_most_loses_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    monkeypatch.setattr(tails_module, "_MOST_THREADS", most)
    monkeypatch.setattr(tails_module, "_FEWEST", 2)
    engine, model = Broad(nbytes=1), affine(tmp_path)
    tails = Tails(engine, budget=1 << 30)
    [honest] = tails_of(tails, model, ("y2",))
    tails.build(honest, "honest")
    tails.release(honest)
    for tail in (many := tails_of(tails, model)):
        tails.build(tail, "attacker")
        tails.release(tail)
    assert len(engine.compiled) == 7
    assert len(tails._cached) == kept
    assert honest.session is not None
    assert [tail.session is not None for tail in many[-2:]] == [kept == 3, True], "the last one stays"
    tails.close()


def test_tails_that_run_keep_their_threads_and_leave_when_they_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "_MOST_THREADS", 64)
    monkeypatch.setattr(tails_module, "_FEWEST", 1)
    engine = Broad(nbytes=1)
    tails = Tails(engine, budget=1 << 30)
    for tail in (many := tails_of(tails, affine(tmp_path))):
        tails.build(tail, "attacker")
    assert all(tail.session is not None for tail in many)
    for tail in many:
        tails.release(tail)
    assert len(tails._cached) == 2
    tails.close()


# --- measuring ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of the profiler, which pass when a profile is made."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.made: list[float] = []
        self.begun, self.proceed = threading.Event(), threading.Event()
        self.proceed.set()

    def profile(
        self, model: Model, engine: Gate, *, budget_s: float, proceed: Callable[[], None], **more: object
    ) -> Profile:
        self.begun.set()
        assert self.proceed.wait(10)
        self.now_s += budget_s
        self.made.append(budget_s)
        proceed()
        raise BusyError("it is measured, and nobody looks at what", 1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(profiling, "monotonic", lambda: made.now_s)
    monkeypatch.setattr(profiling, "profile_model", made.profile)
    yield made
    made.proceed.set()


def profiler(engine: Engine, watch: Watch | None = None) -> Profiling:
    return Profiling(engine, 60.0, lambda event: None, lambda: 0, watch or watching(30.0))


def watching(run_s: float) -> Watch:
    return Watch(run_s, 0, lambda: None, lambda: None, lambda: None, lambda text: None)


def idle(measured: Profiling) -> bool:
    return measured.thread is None


def test_measuring_is_counted_to_who_asks_before_it_is_done(tmp_path: Path, clock: Clock) -> None:
    model, measured = affine(tmp_path), profiler(Gate())
    greedy, other = Origin("10.0.0.1", 1), Origin("10.0.0.2", 1)

    def ask(origin: Origin, seconds: float = 60.0) -> float:
        try:
            measured.ask(model, seconds, lambda made: None, object(), origin, fresh=True)
        except BusyError as exc:
            return exc.retry_after_s
        assert until(lambda: idle(measured))
        return 0.0

    assert [ask(greedy), ask(greedy)] == [0.0, 0.0]
    assert clock.made == [60.0, 60.0]
    # It had 60 s, and took 120 in the time in which 30 came back.
    assert ask(greedy) == pytest.approx(30.0 / 0.25)
    assert ask(other) == 0.0, "another address has its own"
    clock.now_s += 120.0 - 60.0
    assert ask(greedy) == 0.0
    clock.now_s += 60.0
    assert ask(greedy, 1.0) > 0, "15 s a minute"
    assert clock.made == [60.0] * 4


def test_who_leaves_pays_for_what_was_begun_and_for_nothing_else(tmp_path: Path, clock: Clock) -> None:
    models = [affine(tmp_path, name=f"m{k}", seed=k) for k in range(2)]
    measured = profiler(Gate())
    origin, who = Origin("10.0.0.1", 1), object()
    clock.proceed.clear()
    measured.ask(models[0], 40.0, lambda made: None, who, origin)
    measured.ask(models[1], 20.0, lambda made: None, who, origin)
    measured.ask(models[1], 15.0, lambda made: None, who, origin)  # the same one: nothing more
    assert origin.measuring._left == 0.0
    assert clock.begun.wait(10)
    assert measured.forget(who) == 3
    assert origin.measuring._left == 20.0
    clock.proceed.set()
    assert until(lambda: idle(measured))
    assert clock.made == [40.0]
    assert origin.measuring._left == pytest.approx(20.0)


def test_what_several_asked_for_is_paid_by_all(tmp_path: Path, clock: Clock) -> None:
    model, measured = affine(tmp_path), profiler(Gate())
    one, other = Origin("10.0.0.1", 1), Origin("10.0.0.2", 1)
    clock.proceed.clear()
    for origin in (one, other):
        measured.ask(model, 40.0, lambda made: None, object(), origin)
    assert [one.measuring._left, other.measuring._left] == [20.0, 20.0]
    clock.proceed.set()
    assert until(lambda: idle(measured))
    assert clock.made == [40.0]
    assert [one.measuring._left, other.measuring._left] == [40.0, 40.0]


def test_a_run_of_a_profile_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    model, answers = endless(tmp_path), list[object]()
    watch = watching(0.05)
    thread = threading.Thread(target=lambda: [None for _ in iter(watch.look, False)])
    thread.start()
    measured = profiler(open_engine(threads=1), watch)
    try:
        measured.ask(model, 60.0, answers.append, object(), Origin("10.0.0.1", 1))
        assert until(lambda: idle(measured), 20.0)
    finally:
        watch.close()
        thread.join()
    [said] = answers
    assert isinstance(said, EngineError)
    assert str(said) == "endless is not profiled: a run of it took more than 0.05 s (serve --max-run)"
    assert not watch._guarded


def test_runs_of_a_profile_that_end_are_not_given_up() -> None:
    """However many there are, and however long all of them take."""
    run, guarded = Running(), GuardedRun()
    for now_s in range(10):
        underway.noted[guarded.thread] = run = Running()
        try:
            guarded.look(float(now_s), 1.5)
            guarded.look(now_s + 0.9, 1.5)
        finally:
            del underway.noted[guarded.thread]
    assert not guarded.given_up
    assert not run.terminate
    guarded.look(100.0, 1.5)
    guarded.look(200.0, 1.5)
    assert not guarded.given_up, "nothing ran"


class Running:
    terminate = False


def endless(folder: Path) -> Model:
    """A loop of 2^62 turns, whose shapes are known: else it would be run to find them."""
    value = helper.make_tensor_value_info
    state = [value(name, TensorProto.FLOAT, [1, 4]) for name in ("s", "s2", "x", "y")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Mul", ["s", "s"], ["s2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), state[0]],
        [value("c2", TensorProto.BOOL, []), state[1]],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        "endless",
        [state[2]],
        [state[3]],
        [numpy_helper.from_array(np.array(3), "n")],
    )
    path = folder / "endless.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = load(path)
    [turns] = model.skeleton.graph.initializer
    turns.CopyFrom(numpy_helper.from_array(np.array(2**62), "n"))
    return model


# --- batches --------------------------------------------------------------------------------------------------------


def test_odd_shapes_of_one_client_do_not_end_the_batches_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    for module in (tails_module, batching):
        monkeypatch.setattr(module, "monotonic", lambda: now_s[0])
    tail = Tail(affine(tmp_path).whole(), most=8)

    def gain(rows: int, owner: str) -> Gain | None:
        return tail.gain(["float32"], [(rows, 1024)], owner)

    odd = [gain(rows, "attacker") for rows in (3, 5, 7, 9, 11, 13)]
    assert [found is not None for found in odd] == [True] * 4 + [False] * 2
    honest = gain(1, "honest")
    assert honest is not None
    assert gain(1, "attacker") is honest, "whoever asks for it"
    assert gain(3, "honest") is odd[0]
    now_s[0] += 61.0
    for found in (odd[0], odd[2], odd[3]):
        assert found is not None
        found.add(1, 0.1)
    assert gain(11, "attacker") is not None, "one of its own that nobody has used for a minute makes room"
    assert gain(13, "attacker") is None
    assert gain(1, "honest") is honest
    assert len(tail._gains) == 5


def test_shapes_of_many_clients_are_bounded_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    for module in (tails_module, batching):
        monkeypatch.setattr(module, "monotonic", lambda: now_s[0])
    tail = Tail(affine(tmp_path).whole(), most=8)
    made = [tail.gain(["float32"], [(rows, 1024)], f"10.0.0.{rows}") for rows in range(1, 100)]
    assert len([found for found in made if found is not None]) == len(tail._gains) == 64
    now_s[0] += 61.0
    assert tail.gain(["float32"], [(200, 1024)], "honest") is not None
    assert len(tail._gains) == 64


# --- open segments --------------------------------------------------------------------------------------------------

OTHER = "127.0.0.2"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with under_attack(tmp_path) as made:
        yield made


def opened(attacker: Attacker, target: Target, name: str) -> tuple[int, dict[str, object]]:
    attacker.send(20, 7, {"fingerprint": target.model.fingerprint, "inputs": [name], "outputs": ["y3"]})
    kind, _, header, _ = attacker.receive()
    return kind, header


def test_open_segments_of_an_address_are_bounded_together(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_OPEN_BYTES", 3 * origins._SEGMENT_BYTES + (origins._SEGMENT_BYTES - 1))
    one, two, other = target.attacker(), target.attacker(), target.attacker(source=OTHER)
    assert opened(one, target, "y0")[0] == Kind.OPENED
    kind, header = opened(two, target, "y0")
    assert kind == Kind.OPENED
    assert opened(two, target, "y1")[0] == Kind.OPENED
    before = len(target.gate.compiled)
    for attacker in (one, two):
        kind, refused = opened(attacker, target, "y2")
        assert (kind, refused["code"]) == (Kind.ERROR, "busy")
        assert "too many segments are open for this address" in str(refused["message"])
    assert len(target.gate.compiled) == before, "nothing is compiled for it"
    assert opened(other, target, "y2")[0] == Kind.OPENED
    two.send(22, 0, {"segment": header["segment"]})
    two.send(Kind.PING, 9, [0.0])
    assert two.receive()[0] == Kind.PONG, "so the server has heard what was said before it"
    assert opened(one, target, "y2")[0] == Kind.OPENED


def test_what_is_open_is_counted_until_it_is_given_back(target: Target) -> None:
    attacker = target.attacker()
    account = target.server.ledger.origins._known["127.0.0.1"]
    numbers = [opened(attacker, target, name)[1]["segment"] for name in ("y0", "y0", "y1")]
    graphs = {tail.graph_nbytes for tail in target.server.services.runner.tails._known.values()}
    assert min(graphs) > 2048
    whole = 3 * origins._SEGMENT_BYTES + sum(
        t.graph_nbytes for t in target.server.services.runner.tails._known.values()
    )
    assert account.open_nbytes == whole, "a graph that is open twice is there once"
    # What cannot be compiled is not counted, and what left memory is.
    monkey = target.gate.compile
    target.gate.compile = broken  # type: ignore[method-assign]
    assert opened(attacker, target, "y2")[0] == Kind.ERROR
    target.gate.compile = monkey  # type: ignore[method-assign]
    target.server.services.runner.tails.close()
    assert account.open_nbytes == whole
    attacker.send(22, 0, {"segment": numbers[0]})
    attacker.send(5, 9, [1.5])
    assert attacker.receive()[:2] == (Kind.PONG, 9)
    assert account.open_nbytes == whole - origins._SEGMENT_BYTES
    attacker.close()
    assert until(lambda: account.open_nbytes == 0)
    assert not account._open
    assert until(lambda: not target.server._peers)


def broken(segment: Segment) -> None:
    raise EngineError("this engine has no such operator")


def test_one_segment_is_always_served() -> None:
    account = Origin("10.0.0.1", 1)
    assert account.opens("large", 1 << 40)
    assert not account.opens("small", 1)
    account.closes("large", 1 << 40)
    assert account.opens("small", 1)


# --- a cache that others write to -----------------------------------------------------------------------------------


def test_a_weight_in_the_cache_of_another_size_is_fetched_again_before_memory_is_taken(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a terabyte that is all holes costs its maker nothing."""
    cache = target.cache
    with Edge(target.server.address, at="y1", cache=cache, engine=Gate()) as edge:
        edge.pull()
    files = [path for path in (cache / "blobs").rglob("*") if path.is_file()]
    for path in files:
        os.truncate(path, 1 << 40)
    taken: list[int] = []
    read = Part.read
    monkeypatch.setattr(Part, "read", lambda part, hash: taken.append(part.nbytes) or read(part, hash))
    told: list[Event] = []
    with Edge(target.server.address, at="y1", cache=cache, engine=Gate(), on_event=told.append) as edge:
        for hash in edge.model.blobs:
            assert edge.model.blob(hash).nbytes == 4096
    assert set(taken) == {4096}
    assert len([event for event in told if "has rotted" in event.sentence]) == len(files) == 8
    assert all(path.stat().st_size == 4096 for path in files)


def test_a_weight_that_is_here_and_larger_than_memory_is_not_read(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Edge(target.server.address, at="y1", cache=target.cache, engine=Gate()) as edge:
        edge.pull()
    monkeypatch.setattr(holding, "usable_memory", lambda: 1000)
    with Edge(target.server.address, at="x", cache=target.cache, engine=Gate()) as edge:
        hash = next(iter(edge.model.blobs))
        with pytest.raises(StorageError, match=r"4\.1 kB, more than this machine's memory"):
            edge.model.blob(hash)
