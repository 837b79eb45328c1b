"""Server and Edge together, over real sockets: right answers, right errors, nothing lost, nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from places import SUPPORT
from serving import Gate, affine, evaluate, nothing_leaks, until

import nets
from splitpoint import wire
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import (
    BusyError,
    CutError,
    EngineError,
    InputError,
    ModelError,
    ProtocolError,
    RefusedError,
    ServerError,
    StorageError,
    UsageError,
)
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client.blob_cache import BlobCache, clear, usage
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.probe.server_clock import ServerClock
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.runtime.server.catalogue import Catalogue
from splitpoint.runtime.server.compiled_tails import Tails
from splitpoint.runtime.server.fair_queue import Client, WaitingJob
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.security import ServerSecurity
from splitpoint.tensors import Array
from splitpoint.trace import Span
from splitpoint.transports import connect
from splitpoint.wire import Kind, Limits

STAGES = ["head", "encode", "up", "decode", "queue", "tail", "reply", "down"]


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def ort() -> object:
    return open_engine(threads=1)


# --- the main job ---------------------------------------------------------------------------------------------------


def test_every_cut_of_a_real_model_gives_the_whole_models_answer(cache: Path) -> None:
    model = load("zoo:lenet5")
    engine = open_engine(threads=1)
    rng = np.random.default_rng(0)
    digits = [rng.integers(0, 255, (1, 32, 32, 1), np.uint8) for _ in range(2)]
    whole = engine.compile(model.whole())
    expected = [whole.run({"image": d})["logits"] for d in digits]
    assert np.abs(expected[0] - expected[1]).max() > 0.1, "the two inputs must be told apart"
    with (
        Server([model], engine=engine, port=0) as server,
        Edge(server.address, cache=cache, at=0, engine=engine) as edge,
    ):
        for cut in model.graph.chain():
            edge.switch(cut)
            for digit, want in zip(digits, expected, strict=True):
                result = edge.infer(digit)
                np.testing.assert_allclose(result.outputs["logits"], want, rtol=0, atol=1e-4)
                assert list(result.trace.stages()) == (["head"] if cut.name == "output" else STAGES)


def test_only_the_heads_weights_are_fetched_and_only_once(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            head = model.head(edge.cut)
            store = BlobCache(cache)
            assert [h for h in model.blobs if h in store] == [h for h in model.blobs if h in set(head.blobs)]
            assert 0 < len(head.blobs) < len(model.blobs)
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            x = inputs()[0]
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            assert edge.pull() > 0
            assert edge.pull() == 0
        assert [e.kind for e in told] == ["fetched", "fetched", "fetched"]


def test_all_on_the_server_needs_neither_weights_nor_engine_here(model: Model, cache: Path) -> None:
    gate = Gate()
    with (
        Server([model], engine=ort(), port=0) as server,
        Edge(server.address, at="input", cache=cache, engine=gate) as edge,
    ):
        x = inputs()[0]
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
    assert not gate.compiled
    assert not list((cache / "blobs").rglob("*")) if (cache / "blobs").exists() else True


def test_all_on_the_device_asks_the_server_nothing(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    with Server([model], engine=gate, port=0) as server, Edge(server.address, at="output", cache=cache) as edge:
        x = inputs()[0]
        result = edge.infer(x)
        np.testing.assert_allclose(result.outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert (result.up_nbytes, result.clock_error_ms, list(result.trace.stages())) == (0, None, ["head"])
    assert not gate.compiled


def windowed() -> Model:
    """A window as long as an input says, beside what has the size of its input."""
    nodes = [
        nets.node("HannWindow", ["n"], ["w"], name="window"),
        nets.node("Tanh", ["x"], ["t"], name="tanh"),
        nets.node("ReduceSum", ["t"], ["s"], name="sum"),
        nets.node("Mul", ["s", "w"], ["y"], name="mul"),
    ]
    given = [nets.value("x", [4]), nets.value("n", [], TensorProto.INT64)]
    return nets.load(nets.proto(nodes, given, [nets.value("y", None)]))


def squeezed() -> Model:
    """An If that takes a dimension away or leaves it."""
    branches = [
        helper.make_graph([nets.node(op, ["t", *axis], [out])], out, [], [nets.value(out, None)])
        for op, axis, out in (("Squeeze", ["one"], "less"), ("Identity", [], "same"))
    ]
    nodes = [
        nets.node("Tanh", ["x"], ["t"], name="tanh"),
        nets.node("ReduceSum", ["t"], ["s"], name="sum", keepdims=0),
        nets.node("Greater", ["s", "zero"], ["c"], name="greater"),
        nets.node("If", ["c"], ["q"], name="if", then_branch=branches[0], else_branch=branches[1]),
        nets.node("Exp", ["q"], ["y"], name="exp"),
    ]
    constants = [nets.weight("one", [1], np.int64), nets.weight("zero", 0, np.float32)]
    return nets.load(nets.proto(nodes, [nets.value("x", ["N", 1, 4])], [nets.value("y", None)], constants))


@pytest.mark.parametrize("fallback", ["error", "local"])
@pytest.mark.parametrize("net", [windowed, squeezed])
def test_answers_whose_size_or_rank_values_decide_are_right(
    net: Callable[[], Model], fallback: str, cache: Path
) -> None:
    model = net()
    x = np.full(4, 0.5, np.float32)
    samples = [{"x": s * x, "n": np.array(8 + s)} for s in (1, -1)] if net is windowed else []
    samples = samples or [{"x": np.full((2, 1, 4), s, np.float32)} for s in (1, -1)]
    whole = open_engine(threads=1).compile(model.whole())
    expected = [whole.run(sample)["y"] for sample in samples]
    assert expected[0].shape != expected[1].shape
    told: list[Event] = []
    with (
        Server([model], engine=open_engine(threads=1), port=0) as server,
        Edge(
            server.address, model, at=0, cache=cache, engine=open_engine(threads=1), fallback=fallback,
            on_event=told.append,
        ) as edge,
    ):  # fmt: skip
        for cut in model.graph.prefixes():
            edge.switch(cut)
            for sample, want in zip(samples, expected, strict=True):
                result = edge.infer(sample)
                np.testing.assert_allclose(result.outputs["y"], want, rtol=1e-5, atol=1e-7)
                assert "local" not in result.trace.stages()
    assert not [e for e in told if "wrong" in str(e)]


def test_a_local_model_needs_no_cache_and_must_be_served(model: Model, tmp_path: Path) -> None:
    other = affine(tmp_path, name="other", seed=5)
    with Server([model], engine=ort(), port=0, share="none") as server:
        with Edge(server.address, model, at="add1", cache=tmp_path / "none") as edge:
            x = inputs()[0]
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert not (tmp_path / "none").exists()
        with pytest.raises(ModelError, match=f"does not have this other.*it has affine {model.fingerprint[:12]}"):
            Edge(server.address, other)
        with pytest.raises(ServerError, match=r"hands out no models: give the model's own file"):
            Edge(server.address, cache=tmp_path / "none")


def test_batches_and_several_clients_at_once(model: Model, cache: Path) -> None:
    wrong: list[int] = []

    def client(seed: int) -> None:
        with Edge(server.address, at=["add0", "add1", "add2", "input"][seed % 4], cache=cache) as edge:
            for k in range(20):
                x = np.random.default_rng(seed * 100 + k).normal(size=(1 + k % 3, 1024)).astype(np.float32)
                if not np.allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-4, atol=1e-5):
                    wrong.append(seed)

    with Server([model], engine=ort(), port=0) as server:
        threads = [threading.Thread(target=client, args=(s,)) for s in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_threads_may_share_an_edge(model: Model, cache: Path) -> None:
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for x in inputs(30, seed=seed):
            if not np.allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        threads = [threading.Thread(target=ask, args=(s,)) for s in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert edge._channel.in_flight == 0
    assert not wrong


# --- models and versions --------------------------------------------------------------------------------------------


def test_several_models_and_versions_are_told_apart(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "v2").mkdir()
    one, two = affine(tmp_path, name="net"), affine(tmp_path / "v2", name="net", seed=1)
    other = affine(tmp_path, name="other", seed=2)
    x = inputs()[0]
    with Server([one, two, other], engine=ort(), port=0) as server:
        address = server.address
        with pytest.raises(UsageError, match=r"several models.*net.*other"):
            Edge(address, cache=cache)
        for given, pinned, want in (
            ("net", one.fingerprint[:10], one),
            ("net", two.fingerprint[:10], two),
            (two.fingerprint, None, two),
            ("other", None, other),
            (two.fingerprint[:8], None, two),
            (None, other.fingerprint, other),
            (two, None, two),
        ):
            with Edge(address, given, cache=cache, at="add1", models=ModelPolicy(pinned=pinned)) as edge:
                assert edge.info.fingerprint == want.fingerprint
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(want, x), rtol=1e-5)
        with pytest.raises(ModelError, match=r"no model nett; did you mean net\?.*it has net"):
            Edge(address, "nett", cache=cache)
        with pytest.raises(ModelError, match="not the pinned one"):
            Edge(address, "net", cache=cache, models=ModelPolicy(pinned=other.fingerprint))


def test_a_name_of_several_versions_is_never_a_guess(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "v2").mkdir()
    one, two = affine(tmp_path, name="br"), affine(tmp_path / "v2", name="br", seed=1)
    with Server([one, two, one], engine=ort(), port=0) as server:
        assert [i.fingerprint for i in server.catalogue.infos] == [one.fingerprint, two.fingerprint]
        for name in ("br", None):
            with pytest.raises(UsageError) as caught:
                Edge(server.address, name, cache=cache)
            assert str(caught.value) == (
                f"the server has 2 models called br: br {one.fingerprint[:12]}, br {two.fingerprint[:12]}; "
                "name one by its fingerprint or pin it with --model-hash"
            )
        for given, pinned in ((two.fingerprint[:12], None), (None, two.fingerprint[:12]), ("br", two.fingerprint)):
            with Edge(server.address, given, cache=cache, at="input", models=ModelPolicy(pinned=pinned)) as edge:
                assert edge.info.fingerprint == two.fingerprint


def test_a_model_served_under_two_names_has_both(model: Model, cache: Path) -> None:
    """Two files of the same network: what was printed when it began to serve can be asked for."""
    twin, x = replace(model, name="twin"), inputs()[0]
    with Server([model, twin, model], engine=ort(), port=0) as server:
        assert [i.name for i in server.catalogue.infos] == [model.name, "twin"]
        for given in (model.name, "twin", None, twin, model.fingerprint):
            with Edge(server.address, given, cache=cache, at="add1") as edge:
                assert edge.info.name == ("twin" if given in ("twin", twin) else model.name)
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_an_address_must_be_given() -> None:
    for address in ("", " ", "tcp://"):
        with pytest.raises(UsageError, match=r"address is empty: --cloud HOST\[:PORT\]"):
            Edge(address)


def test_an_input_spec_given_to_the_server_reaches_the_device(cache: Path) -> None:
    model = load("zoo:lenet5")
    assert model.input_spec is not None
    import msgspec

    mine = model.with_input_spec(msgspec.structs.replace(model.input_spec, labels=tuple("abcdefghij")))
    for served in (model, mine):
        with Server([served], engine=ort(), port=0) as server, Edge(server.address, cache=cache, at="input") as edge:
            assert edge.input_spec == served.input_spec


# --- where the time went --------------------------------------------------------------------------------------------


def test_stages_sum_to_the_total_and_none_is_negative(model: Model, cache: Path) -> None:
    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        for x in inputs(50):
            began = time.perf_counter()
            result = edge.infer(x)
            wall = (time.perf_counter() - began) * 1e3
            trace = result.trace
            assert list(trace.stages()) == STAGES
            assert all(s.ms >= 0 for s in trace.spans)
            assert sum(trace.stages().values()) == pytest.approx(result.total_ms, abs=1e-9)
            assert result.total_ms <= wall
            for before, after in zip(trace.spans, trace.spans[1:], strict=False):
                assert after.start == pytest.approx(before.end)
            # Both clocks are this machine's: the offset is 0, and must be found within the error it is given.
            assert result.clock_error_ms is not None
            assert result.offset is not None
            assert abs(result.offset.offset_s) <= result.offset.error_at(result.marks.ended)
            assert result.up_nbytes > 4096 < result.down_nbytes


def test_what_was_prepared_before_is_part_of_the_trace(model: Model, cache: Path) -> None:
    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        result = edge.infer(Request(inputs()[0], (Span("prepare", 1.0, 1.5),), tag="photo.jpg"))
        assert result.tag == "photo.jpg"
        assert next(iter(result.trace.stages().items())) == ("prepare", pytest.approx(500.0))
        assert sum(result.trace.stages().values()) == pytest.approx(result.total_ms)


def test_a_server_that_lies_about_time_cannot_make_stages_negative() -> None:
    from splitpoint.runtime.probe.server_clock import Offset

    packer = wire.Packer(Kind.RESULT, wire.ResultData)
    for times in (wire.Times(1e9, 0, 5, 5, 5, 5), wire.Times(-1e9), wire.Times(10.4, 0, 0, 0, 0.2, 0)):
        head = bytes(packer.pack(1, [np.zeros(1, np.uint8)], (), times).buffers[0])  # type: ignore[arg-type]
        result = Result({}, "c", Marks(10.0, 10.1, 10.2, 10.9), raw_times=head[-64:], offset=Offset(0.0, 0.01, 10.0))
        assert all(s.ms >= -1e-9 for s in result.trace.spans)
        assert sum(result.trace.stages().values()) == pytest.approx(900.0)
    assert result.trace.ms("up") == pytest.approx(200.0)
    assert result.trace.ms("tail") == pytest.approx(200.0)
    assert result.trace.ms("down") == pytest.approx(300.0)


def test_queueing_is_told_from_computing(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    results: dict[int, Result] = {}
    with Server([model], engine=gate, port=0) as server:
        edges = [Edge(server.address, at="input", cache=cache) for _ in range(2)]
        x = inputs()[0]
        threads = [
            threading.Thread(target=lambda k=k, e=e: results.update({k: e.infer(x)})) for k, e in enumerate(edges)
        ]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)  # one runs, and holds the only worker's place
        threads[1].start()
        assert until(lambda: server.runner.compute.waiting == 1)
        time.sleep(0.05)  # the time that the second is to be seen waiting
        gate.open.set()
        for t in threads:
            t.join()
        for e in edges:
            e.close()
    first, second = results[0], results[1]
    assert first.trace.ms("tail") > max(50, first.trace.ms("queue"))
    assert second.trace.ms("queue") > max(50, second.trace.ms("tail"))
    assert second.times.load_queue_s > 0


def test_the_clock_is_that_of_the_shortest_ping() -> None:
    clock = ServerClock()
    assert clock.error_s(0.0) == float("inf")
    clock.add(0.0, 100.5, 100.5, 1.0)
    assert (clock.offset_s, clock.error_s(1.0)) == (100.0, 0.5)
    clock.add(2.0, 102.01, 102.02, 2.05)  # 40 ms there and back, 10 ms at the server
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05) == pytest.approx(0.02)
    clock.add(3.0, 103.9, 103.9, 4.0)
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05 + 1000) == pytest.approx(0.02 + 0.03)  # quartz drifts
    clock.add(1002.0, 1102.1, 1102.1, 1002.1)  # better than an old one by now
    assert clock.error_s(1002.1) == pytest.approx(0.05)


# --- switching ------------------------------------------------------------------------------------------------------


def test_switching_to_a_warm_cut_asks_nobody_and_compiles_nothing(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Server([model], engine=gate, port=0) as server, Edge(server.address, at="add0", cache=cache) as edge:
        edge.warm("add1")
        compiled = len(gate.compiled)
        with monkeypatch.context() as patched:
            patched.setattr(edge._channel, "send", lambda *_: pytest.fail("it asked the server"))
            for name in ("add1", "add0") * 2:
                edge.switch(name)
                assert edge.cut.name == name
        assert len(gate.compiled) == compiled == 2
        with pytest.raises(CutError, match="add7"):
            edge.switch("add7")
        assert edge.cut.name == "add0"


def test_forgetting_frees_both_halves(model: Model, cache: Path) -> None:
    there, here = Gate(), Gate()
    with Server([model], engine=there, port=0) as server:
        with Edge(server.address, at="add0", cache=cache, engine=here) as edge:
            edge.switch("add1")
            edge.forget()
            assert until(lambda: len(there.closed) == 1)
            assert len(here.closed) == 1
            assert edge.infer(inputs()[0]).cut == "add1"
            with pytest.raises(UsageError, match="in use"):
                edge.forget("add1")
            edge.switch("add0")
            assert len(there.compiled) == 3
        assert len(there.closed) == 1


def test_a_tail_is_compiled_once_for_all_who_ask(model: Model, cache: Path) -> None:
    gate = Gate()
    gate.compile_gate.clear()
    edges: list[Edge] = []
    with Server([model], engine=gate, port=0) as server:
        threads = [
            threading.Thread(target=lambda: edges.append(Edge(server.address, at="input", cache=cache)))
            for _ in range(4)
        ]
        for t in threads:
            t.start()
        assert until(lambda: sum(p.opening.waiting for p in server._peers) == 4)
        gate.compile_gate.set()
        for t in threads:
            t.join()
        assert len(gate.compiled) == 1
        for e in edges:
            e.close()


def test_the_tail_cache_is_bounded_and_spares_what_runs(model: Model, cache: Path) -> None:
    gate = Gate(nbytes=400)
    cuts = ["input", "add0", "add1", "add2"]
    with (
        Server([model], engine=gate, port=0, tail_cache_bytes=1000) as server,
        Edge(server.address, at="input", cache=cache) as edge,
    ):
        for at in cuts:
            edge.switch(at)
            assert server.runner.tails.nbytes <= 1000
        assert len(gate.closed) == 2
        edge.switch("input")  # left memory: compiled again, without the device noticing more than the time
        edge.infer(inputs()[0])
        assert len(gate.compiled) == 5
        gate.open.clear()
        thread = threading.Thread(target=edge.infer, args=(inputs()[0],))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        assert gate.entered.acquire(timeout=5)
        running = model.segment(("x",), ("y3",)).key
        with Edge(server.address, at="add0", cache=cache) as second:
            for at in cuts[1:]:
                second.warm(at)
        assert running not in gate.closed[3:]
        gate.open.set()
        thread.join()
        assert until(lambda: server.runner.tails.nbytes <= 1000)


def test_a_cache_smaller_than_one_tail_keeps_the_one_used_last(model: Model) -> None:
    """Else it would be compiled for every request."""
    gate = Gate(nbytes=400)
    tails = Tails(gate, budget=100)
    one, other = (tails.tail(model.segment((name,), ("y3",))) for name in ("x", "y0"))
    for tail in (one, one, other, other):
        session = tails.build(tail, owner=None)
        assert tails.acquire(tail) is session
        tails.release(tail)
        tails.release(tail)
        assert tails.nbytes == 400
    assert len(gate.compiled) == 2
    assert gate.closed == gate.compiled[:1]
    assert tails.acquire(one) is None, "whoever runs it does not compile it"
    tails.close()


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_keeps_order_and_gives_every_answer(model: Model, cache: Path) -> None:
    xs = inputs(100)
    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        for window in (1, 2, 8, 1000):
            results = list(edge.stream((Request(x, tag=k) for k, x in enumerate(xs)), window=window))
            assert [r.tag for r in results] == list(range(100))
            for x, r in zip(xs, results, strict=True):
                np.testing.assert_allclose(r.outputs["y3"], evaluate(model, x), rtol=1e-5)
        edge.switch("output")
        assert [r.tag for r in edge.stream(Request(x, tag=k) for k, x in enumerate(xs[:5]))] == list(range(5))
        assert list(edge.stream([])) == []
        with pytest.raises(UsageError):
            edge.stream(xs, window=0)


def test_a_stream_overlaps_and_is_bounded_by_its_window(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    taken: list[int] = []

    def items() -> Iterator[Array]:
        for k, x in enumerate(inputs(20)):
            taken.append(k)
            yield x

    with Server([model], engine=gate, port=0) as server, Edge(server.address, at="add0", cache=cache) as edge:
        results = edge.stream(items(), window=4)
        first: list[Result] = []
        thread = threading.Thread(target=lambda: first.append(next(results)))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        assert until(lambda: len(taken) == 4)
        assert not until(lambda: len(taken) > 4, 0.1)  # the fifth is not taken before there is room
        gate.open.set()
        thread.join()
        assert len(first) == 1
        assert len(list(results)) == 19
        assert len(taken) == 20


def test_a_bad_item_ends_a_stream_in_its_place(model: Model, cache: Path) -> None:
    good = inputs(3)
    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        results = edge.stream([*good, np.zeros(3, np.float32), *good])
        assert [next(results).cut for _ in good] == ["add1"] * 3
        with pytest.raises(InputError, match="input x must be"):
            next(results)

        def broken() -> Iterator[Array]:
            yield from good
            raise OSError("camera unplugged")

        results = edge.stream(broken())
        for _ in good:
            next(results)
        with pytest.raises(OSError, match="camera"):
            next(results)
        assert edge.infer(good[0]).outputs["y3"].shape == (1, 1024)
        assert until(lambda: edge._channel.in_flight == 0)


def test_leaving_a_stream_early_ends_it_cleanly(model: Model, cache: Path) -> None:
    def endless() -> Iterator[Array]:
        while True:
            yield from inputs(10)

    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        for k, _ in enumerate(edge.stream(endless())):
            if k == 5:
                break
        x = inputs(seed=9)[0]
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_the_pipeline_delivers_before_it_fails() -> None:
    def finish(n: int) -> int:
        if n == 3:
            raise ServerError("gone")
        return n

    abandoned: list[int] = []
    results = stream(range(10), (lambda n: n, finish), abandoned.append, 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ServerError, match="gone"):
        next(results)
    assert set(abandoned) <= set(range(4, 10))


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((1, 3), np.float32), r"input x must be float32\[batch,1024\], but float32\[1,3\] came"),
        (np.zeros((1, 1024), np.float64), "float64"),
        ({"z": np.zeros((1, 1024), np.float32)}, "no input z"),
        ({}, "needs the input x"),
        ({"x": [1, 2]}, "numpy array"),
    ],
)
def test_wrong_inputs_are_refused_on_the_device(model: Model, cache: Path, given: object, words: str) -> None:
    with Server([model], engine=ort(), port=0) as server, Edge(server.address, at="add1", cache=cache) as edge:
        edge.infer(inputs()[0])
        with pytest.raises(InputError, match=words):
            edge.infer(given)  # type: ignore[arg-type]
        edge.infer(inputs()[0])


def test_an_engine_that_fails_fails_one_request(model: Model, cache: Path) -> None:
    told: list[Event] = []
    gate = Gate(fails=ValueError("secret path /etc"))
    with (
        Server([model], engine=gate, port=0, on_event=told.append) as server,
        Edge(server.address, at="input", cache=cache) as edge,
    ):
        with pytest.raises(EngineError, match="the engine failed") as caught:
            edge.infer(inputs()[0])
        assert "secret" not in str(caught.value)
        assert any("secret" in str(e) for e in told if e.kind == "failed")
        gate.fails = EngineError("out of memory")
        with pytest.raises(EngineError, match="out of memory"):
            edge.infer(inputs()[0])
        gate.fails = None
        edge.infer(inputs()[0])


def test_a_full_queue_says_busy_and_when_to_come_back(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    outcomes: list[object] = []

    def ask(edge: Edge) -> None:
        try:
            outcomes.append(edge.infer(inputs()[0]))
        except BusyError as exc:
            outcomes.append(exc)

    with Server([model], engine=gate, port=0, limits=Limits(queue=2)) as server:
        edges = [Edge(server.address, at="input", cache=cache) for _ in range(5)]
        threads = [threading.Thread(target=ask, args=(e,)) for e in edges]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)
        for t in threads[1:]:
            t.start()
        assert until(lambda: len(outcomes) == 2)  # one runs, two wait, two are turned away
        assert all(isinstance(o, BusyError) and o.retry_after_s > 0 for o in outcomes)
        gate.open.set()
        for t in threads:
            t.join()
        assert sum(isinstance(o, Result) for o in outcomes) == 3
        edges[-1].infer(inputs()[0])
        for e in edges:
            e.close()


def test_a_deadline_that_has_passed_is_not_computed(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    with Server([model], engine=gate, port=0) as server:
        one, two = (Edge(server.address, at="input", cache=cache) for _ in range(2))
        thread = threading.Thread(target=one.infer, args=(inputs()[0],))
        thread.start()
        assert gate.entered.acquire(timeout=5)
        late: list[Exception] = []

        def ask() -> None:
            try:
                two.infer(inputs()[0], deadline_s=0.01)
            except ServerError as exc:
                late.append(exc)

        second = threading.Thread(target=ask)
        second.start()
        assert until(lambda: server.runner.compute.waiting == 1)
        time.sleep(0.02)  # the deadline passes
        gate.open.set()
        second.join()
        thread.join()
        assert "deadline" in str(late[0])
        assert not gate.entered.acquire(blocking=False)
        one.close()
        two.close()


def test_an_answer_that_does_not_come_is_given_up_and_its_late_arrival_ignored(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    with (
        Server([model], engine=gate, port=0) as server,
        Edge(server.address, at="input", cache=cache, patience=Patience(answer_s=0.1)) as edge,
    ):
        with pytest.raises(ServerError, match="did not answer in time"):
            edge.infer(inputs()[0])
        gate.open.set()
        x = inputs(seed=3)[0]
        for _ in range(3):
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)


def test_the_server_ending_mid_request_loses_no_answer(model: Model, cache: Path) -> None:
    gate = Gate()
    server = Server([model], engine=gate, port=0)
    server.start()
    edge = Edge(server.address, at="input", cache=cache)
    results = edge.stream(iter(inputs(50)), window=2)
    done = [next(results) for _ in range(10)]
    gate.open.clear()
    closer = threading.Thread(target=server.close)
    closer.start()
    with pytest.raises(ServerError, match=r"after \d+ answers$|the server is ending"):
        done.extend(results)
    gate.open.set()
    closer.join()
    assert len(done) >= 10
    with pytest.raises(ServerError):
        edge.infer(inputs()[0])
    edge.close()


def test_closing_answers_what_is_in_flight(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    server = Server([model], engine=gate, port=0)
    server.start()
    edges = [Edge(server.address, at="input", cache=cache) for _ in range(3)]
    answers: list[Result] = []
    threads = [threading.Thread(target=lambda e=e: answers.append(e.infer(inputs()[0]))) for e in edges]
    for t in threads:
        t.start()
    assert until(lambda: sum(len(p.requests.in_flight) for p in server._peers) == 3)
    closer = threading.Thread(target=server.close, kwargs={"drain_s": 10.0})
    closer.start()
    assert until(lambda: server.draining)
    gate.open.set()
    closer.join()
    for t in threads:
        t.join()
    assert len(answers) == 3
    for e in edges:
        with pytest.raises(ServerError):
            e.infer(inputs()[0])
        e.close()


def test_closing_twice_and_never_starting_are_fine(model: Model) -> None:
    server = Server([model], engine=Gate(), port=0)
    server.close()
    with pytest.raises(UsageError, match="not started"):
        _ = server.address
    with Server([model], engine=Gate(), port=0) as server:
        server.close()
        server.close()


def test_ctrl_c_answers_what_is_in_flight_and_ends(tmp_path: Path, cache: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import signal\n"
        "from splitpoint.engines import open_engine\n"
        "from splitpoint.models import load\n"
        "from splitpoint.runtime.server.server import Server\n"
        "with Server([load('zoo:lenet5')], engine=open_engine(threads=1), port=0) as server:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: server.stop())\n"
        "    print(server.address, flush=True)\n"
        "    server.serve_forever()\n"
        "    server.close(drain_s=5)\n"
        "print('ended')\n"
    )
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        address = child.stdout.readline().strip()
        with Edge(address, cache=cache, at="pool1") as edge:
            edge.infer(np.zeros((1, 32, 32, 1), np.uint8))
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
            with pytest.raises(ServerError, match="after 1 answer"):
                edge.infer(np.zeros((1, 32, 32, 1), np.uint8))
        assert child.stdout.read() == "ended\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_killed_server_is_noticed_at_once(tmp_path: Path, cache: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from pathlib import Path\n"
        "from serving import Gate, affine\n"
        "from splitpoint.runtime.server.server import Server\n"
        f"with Server([affine(Path({str(tmp_path)!r}))], engine=Gate(is_open=False), port=0) as server:\n"
        "    print(server.address, flush=True)\n"
        "    server.serve_forever()\n"
    )
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        edge = Edge(child.stdout.readline().strip(), cache=cache, at="input")
        threading.Timer(0.2, child.kill).start()
        with pytest.raises(ServerError, match=r"127\.0\.0\.1"):
            edge.infer(inputs()[0])
        edge.close()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


# --- sharing --------------------------------------------------------------------------------------------------------


def test_sharing_a_head_gives_its_weights_only(model: Model, cache: Path) -> None:
    with (
        Server([model], engine=ort(), port=0, share="head:add2") as server,
        Edge(server.address, at="add1", cache=cache) as edge,
    ):
        x = inputs()[0]
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert {h for h in model.blobs if h in BlobCache(cache)} == set(model.head(edge.cut).blobs)
        deepest = model.head(model.graph.cut("add2")).blobs
        assert edge.pull("add2") > 0
        assert edge.pull("add2") == 0
        with pytest.raises(RefusedError, match=r"head up to add2, and output is deeper"):
            edge.switch("output")
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert {h for h in model.blobs if h in BlobCache(cache)} == set(deepest)


def test_ctrl_c_while_sending_ends_the_connection_at_once(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with Server([model], engine=ort(), port=0) as server:
        edge = Edge(server.address, at="add1", cache=cache)
        monkeypatch.setattr(edge._channel._connection, "_sendmsg", interrupted)
        with pytest.raises(KeyboardInterrupt):
            edge.infer(inputs()[0])
        began = time.perf_counter()
        edge.close()
        assert time.perf_counter() - began < 2


def test_a_servers_words_are_cleaned_on_the_device(model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server([model], engine=ort(), port=0) as server:

        def no(catalogue: Catalogue, fingerprint: str) -> Model:
            raise ModelError("\x1b[2J\x1b]0;title\x07gone\nserving on 6.6.6.6")

        monkeypatch.setattr(Catalogue, "__getitem__", no)
        with pytest.raises(ModelError) as caught:
            Edge(server.address, cache=cache)
        assert str(caught.value) == "[2J ]0;title gone serving on 6.6.6.6"


# --- the cache on disk ----------------------------------------------------------------------------------------------


def test_a_rotted_blob_is_fetched_again_and_said(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache):
            pass
        victim = next(p for p in (cache / "blobs").rglob("*") if p.is_file())
        data = bytearray(victim.read_bytes())
        data[100] ^= 1
        victim.write_bytes(data)
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            x = inputs()[0]
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert any(e.kind == "notice" and "rotted" in e.sentence for e in told)
        data[100] ^= 1
        assert victim.read_bytes() == bytes(data)


def test_a_rotted_graph_is_fetched_again_and_said(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache):
            pass
        path = cache / "graphs" / model.fingerprint
        for rotten in (b"not onnx", path.read_bytes().replace(b"Mul", b"Div")):
            path.write_bytes(rotten)
            with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
                edge.infer(inputs()[0])
        assert sum(e.kind == "notice" for e in told) == 2


def test_the_cache_refuses_what_is_not_what_it_is_called(tmp_path: Path) -> None:
    store = BlobCache(tmp_path)
    with pytest.raises(StorageError, match="refused"):
        store.put("0" * 64, [b"something"])
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(StorageError, match="not in the cache"):
        store.open("0" * 64)
    for name in ("../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(StorageError, match="no SHA-256"):
            store.open(name)


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "cannot be written")])
def test_what_cannot_be_kept_is_used_all_the_same_and_said_once(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int,
    words: str,
) -> None:  # fmt: skip
    real, told = Path.replace, list[Event]()

    def full(self: Path, target: Path) -> Path:
        if "blobs" in self.parts or "graphs" in self.parts:
            raise OSError(code, os.strerror(code))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    x = inputs()[0]
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            edge.switch("output")
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            assert words in str(edge.cache.unkept)
        # What is fetched for nothing but the next time is another matter.
        assert main(["pull", "affine", "--cloud", server.address, "--cache", str(cache)]) == 7
    assert sum("not kept for the next time" in e.sentence for e in told) == 1
    assert words in capsys.readouterr().err
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_cache_that_cannot_even_be_made_ends_no_run(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    x = inputs()[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        Edge(server.address, at="add1", cache=tmp_path / "file" / "cache") as edge,
    ):
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_a_weight_that_rotted_on_a_disk_that_cannot_be_written_is_fetched_again(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs()[0]
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache) as edge:
            head = tuple(model.head(edge.cut).blobs)
        for hash in head:
            path = BlobCache(cache).path(hash)
            path.write_bytes(b"x" * path.stat().st_size)

        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "unlink", read_only)
        monkeypatch.setattr(Path, "replace", read_only)
        with Edge(server.address, at="add1", cache=cache) as edge:
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


_FULL = """
import hashlib, resource, sys
from dataclasses import replace
from pathlib import Path
from splitpoint.runtime.client.blob_cache import BlobCache
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
data, told = bytes(range(256)) * 4096, []
hash = hashlib.sha256(data).hexdigest()
store = BlobCache(Path(sys.argv[1]), told.append)
store.put(hash, (data[k : k + 65_536] for k in range(0, len(data), 65_536)))
assert hash in store and store.open(hash) == data
print(told)
"""


def test_a_blob_that_a_disk_had_room_for_half_of_is_whole_in_memory(tmp_path: Path) -> None:
    """The system's own limit of a file's size: a write fails after 300,000 bytes, which are taken back."""
    ran = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("StorageError") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_clearing_takes_our_own_files_and_nothing_else(tmp_path: Path) -> None:
    import hashlib

    folder, outside = tmp_path / "cache", tmp_path / "outside"
    assert (usage(folder), clear(folder)) == ({}, 0)
    store = BlobCache(folder)
    for data in (b"one", b"three"):
        store.put(hashlib.sha256(data).hexdigest(), [data])
    store.put_graph("a" * 64, b"graph")
    export = folder / "exports" / ("0" * 24)
    half = export / ".export-x1_y"
    half.mkdir(parents=True)
    for path in (
        export / "net.onnx",
        export / "net.onnx.data",
        half / "net.onnx",
        folder / "graphs" / ".".join(("", "b" * 16, "c" * 12)),
    ):
        path.write_bytes(b"1234")
    assert usage(folder) == {"blobs": (2, 8), "graphs": (2, 9), "exports": (3, 12)}

    blob = "d" * 64
    (outside / "dd").mkdir(parents=True)
    foreign = [
        folder / "thesis.txt",
        folder / "blobs" / "thesis.txt",
        folder / "blobs" / "ee" / blob,  # ours would be in dd
        folder / "blobs" / "ab" / "sub" / blob,
        folder / "graphs" / "notes",
        folder / "exports" / "mine.onnx",
        export / "thesis.txt",
        outside / "dd" / blob,
        outside / "net.onnx",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"keep")
    links = [folder / "blobs" / "dd", folder / "graphs" / ("e" * 64), folder / "exports" / ("f" * 24)]
    for link, target in zip(links, (outside / "dd", outside / "net.onnx", outside), strict=True):
        link.symlink_to(target)
    (folder / "blobs" / "empty").mkdir()

    assert usage(folder) == {"blobs": (2, 8), "graphs": (2, 9), "exports": (3, 12)}
    assert clear(folder) == 7
    assert {k: n for k, (n, _) in usage(folder).items()} == {"blobs": 0, "graphs": 0, "exports": 0}
    assert all(p.read_bytes() == b"keep" for p in foreign)
    assert all(p.is_symlink() for p in links)
    assert (folder / "blobs" / "empty").is_dir()
    assert not half.exists()
    assert not (folder / "blobs" / hashlib.sha256(b"one").hexdigest()[:2]).exists()


def test_a_cache_of_ours_alone_is_cleared_to_the_last_folder_and_a_linked_one_is_not(tmp_path: Path) -> None:
    store = BlobCache(tmp_path / "cache")
    store.put_graph("a" * 64, b"graph")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "graphs").symlink_to(tmp_path / "cache" / "graphs")
    assert (usage(tmp_path / "linked"), clear(tmp_path / "linked")) == ({}, 0)
    assert clear(tmp_path / "cache") == 1
    assert list((tmp_path / "cache").iterdir()) == []


# --- greeting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"does not speak splitpoint \(it answered 'HTTP/1\.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"it answered 'SSH-2\.0-OpenSSH_9\.6'"),
        (b"", "closed the connection"),
        (None, "did not answer in 0.2 s"),
    ],
)
def test_something_else_on_the_port_is_recognised(says: bytes | None, words: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def stranger() -> None:
            sock, _ = listener.accept()
            with sock:
                if says is None:
                    stop.wait(5)
                else:
                    sock.recv(1000)
                    sock.sendall(says)

        stop = threading.Event()
        thread = threading.Thread(target=stranger)
        thread.start()
        with pytest.raises(ServerError, match=words):
            Edge(f"127.0.0.1:{listener.getsockname()[1]}", patience=Patience(connect_s=0.2))
        stop.set()
        thread.join()


def test_a_server_of_another_major_version_is_a_clear_error() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def newer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                head = bytearray(wire.encode(Kind.WELCOME, 0, wire.Welcome()).buffers[0])  # type: ignore[arg-type]
                head[4] = 2
                sock.sendall(head)

        thread = threading.Thread(target=newer)
        thread.start()
        with pytest.raises(ProtocolError, match=r"speaks version 2 .* this side version 1"):
            Edge(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_off_loopback_it_warns_and_a_used_port_is_an_error(model: Model) -> None:
    told: list[Event] = []
    insecure = ServerSecurity(insecure=True)
    with Server([model], engine=Gate(), host="0.0.0.0", port=0, security=insecure, on_event=told.append) as server:
        assert [e.kind for e in told] == ["listening", "warning"]
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ServerError, match=f"port {port} .*in use"):
            Server([model], engine=Gate(), host="0.0.0.0", port=port).start()
    told.clear()
    with Server([model], engine=Gate(), port=0, on_event=told.append):
        assert [e.kind for e in told] == ["listening"]


def test_a_connection_is_reported_when_it_comes_and_goes(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        with Edge(server.address, at="input", cache=cache) as edge:
            edge.infer(inputs()[0])
        assert until(lambda: told[-1].kind == "left")
    assert [e.kind for e in told] == ["listening", "connected", "opened", "left"]
    assert "left: 1 request, " in str(told[-1])


# --- parts ----------------------------------------------------------------------------------------------------------


def test_pings_keep_the_clock_fresh_without_a_round_trip_of_their_own(model: Model, cache: Path) -> None:
    now = [1000.0]
    with Server([model], engine=Gate(), port=0) as server:
        channel = Channel(connect(server.address), software="test", timeout_s=5, clock=lambda: now[0])
        channel.measure_clock()
        before = len(channel.clock._samples)
        assert before >= 1
        for step in (0.1, 2.0, 0.1, 2.0):
            now[0] += step
            with pytest.raises(ModelError):
                channel.ask(Kind.GRAPH, wire.GraphRequest("nope"), wire.GraphData)
        assert len(channel.clock._samples) == before + 2
        channel.close()


def test_the_pool_runs_what_it_takes_and_measures_itself() -> None:
    pool = Compute(2, queue=3)
    gate, done = threading.Event(), threading.Semaphore(0)

    def job(waited: float) -> None:
        assert waited >= 0
        gate.wait(5)
        done.release()

    one = Client()
    assert pool.begin(one)
    assert pool.begin(one)
    assert not pool.begin(one)
    assert [pool.submit(WaitingJob(Client(), job)) for _ in range(4)] == [True, True, True, False]
    assert pool.full()
    pool.end(one, 0.5)
    pool.end(one, 0.5)
    gate.set()
    for _ in range(3):
        assert done.acquire(timeout=5)
    assert until(lambda: pool.begin(one))
    pool.end(one, 0.0)
    assert pool.retry_after_s(one) > 0
    pool.close()
    assert not pool.begin(one)
    assert not pool.submit(WaitingJob(one, job))
