"""An edge and a server, over real sockets: right answers at every cut, and where the time went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from profile_asking import Asking, askers
from serving import Gate, affine, evaluate, until

import nets
from splitpoint.engines import open_engine
from splitpoint.errors import (
    BusyError,
    InputError,
    ModelError,
    ServerError,
    UsageError,
)
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client import edge as asking_module
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.trace import Span

STAGES = ["head", "encode", "up", "decode", "queue", "tail", "reply", "down"]


pytestmark = pytest.mark.usefixtures("no_leaks")


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
            on_event=told.append, patience=Patience(open_s=60, first_s=60, least_s=60),
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


def test_an_address_must_be_given() -> None:
    for address in ("", " ", "tcp://"):
        with pytest.raises(UsageError, match=r"address is empty: --cloud HOST\[:PORT\]"):
            Edge(address)


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


@pytest.mark.usefixtures("budgets")
def test_a_device_asks_a_busy_server_again(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    gate, told = Gate(is_open=False), []
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 0.3)
        assert until(lambda: askers(server) == 1)
        second = Asking(server, models[1], 10.0, told.append)
        assert until(lambda: bool(told)), "its user is told that it waits"
        assert "making another profile" in told[0].sentence
        gate.open.set()
        assert isinstance(first.end(), Profile)
        profile = second.end()
    assert isinstance(profile, Profile)
    assert profile.fingerprint == models[1].fingerprint
    assert len(told) == 1


@pytest.mark.usefixtures("budgets")
def test_a_server_that_stays_busy_is_an_error(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    monkeypatch.setattr(asking_module, "_BUSY_S", 0.0)
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 20.0)
        assert until(lambda: askers(server) == 1)
        refused = Asking(server, models[1], 0.01).end()
        gate.open.set()
        first.end()
    assert isinstance(refused, BusyError)
    assert refused.retry_after_s > 1


@pytest.mark.usefixtures("budgets")
def test_closing_the_device_ends_its_waiting(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    gate, told = Gate(is_open=False), []
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 20.0)
        assert until(lambda: askers(server) == 1)
        second = Asking(server, models[1], 60.0, told.append)
        assert until(lambda: bool(told))
        second.edge.close()
        assert "closed" in str(second.end())
        gate.open.set()
        first.end()
