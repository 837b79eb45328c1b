"""Whether requests may run as one batch, and whether that helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from serving import affine, nothing_leaks

import nets
from splitpoint.engines import open_engine
from splitpoint.errors import EngineError
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.server.batching import Gain, alike, run_stacked, stackable, tried
from splitpoint.runtime.server.compiled_tails import Tail
from splitpoint.tensors import Array, TensorSpec


def filled(gain: Gain, times: Mapping[int, float], runs: int = 4) -> Gain:
    for size, seconds in times.items():
        for _ in range(runs):
            gain.add(size, seconds)
    return gain


def test_a_batch_is_used_where_it_gains_a_tenth() -> None:
    gain = Gain(8)
    gain.judge("equal", "")
    assert gain.size(8) == 1, "how long one takes is not known yet"
    filled(gain, {1: 1.0})
    assert [gain.size(8) for _ in range(3)] == [2, 2, 2], "tried, the smallest first"
    filled(gain, {2: 1.7, 4: 3.7, 8: 7.9})
    assert [gain.size(n) for n in (1, 2, 3, 4, 8, 100)] == [1, 2, 2, 2, 2, 2]
    assert gain.wanted() == 2
    slow = filled(Gain(8), {1: 1.0, 2: 1.85, 4: 3.7, 8: 7.3})
    slow.judge("equal", "")
    assert slow.size(8) == 1
    assert slow.wanted() == 1


def test_the_first_run_of_a_size_and_single_outliers_do_not_count() -> None:
    gain = Gain(2)
    gain.judge("equal", "")
    filled(gain, {1: 1.0}, runs=9)
    for seconds in (50.0, 1.2, 1.2, 9.0, 1.2):
        gain.add(2, seconds)
    assert gain.size(2) == 2


def test_what_does_not_help_now_is_tried_again_later() -> None:
    gain = filled(Gain(4), {1: 1.0, 2: 2.0, 4: 4.0})
    gain.judge("equal", "")
    sizes = Counter(gain.size(4) for _ in range(1000))
    assert 0 < sizes[2] + sizes[4] < 20
    for _ in range(9):
        gain.add(4, 1.5)
    assert gain.size(4) == 4


def test_a_tail_that_mixes_requests_is_never_run_together() -> None:
    gain = Gain(8)
    assert gain.size(8) == 2, "to be tried"
    gain.judge("inconclusive", "a reason")
    assert gain.verdict == "", "a trial can only add doubt"
    gain.judge("different", "another")
    gain.judge("equal", "")
    assert gain.verdict == "another"
    assert (gain.size(8), gain.wanted()) == (1, 1)


def test_a_row_is_computed_again_now_and_then() -> None:
    gain = Gain(8)
    again = [k + 1 for k in range(1024) if gain.look_again()]
    assert again == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]


def one_op(tmp_path: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[object], out: Sequence[object]) -> Model:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out))],
        [onnx.numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return load(path)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def segment(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Segment:
    return Segment("f", tuple(inputs), tuple(outputs), ModelProto(), None)  # type: ignore[arg-type]


def batchable(segment: Segment) -> bool:
    return Tail(segment, most=2).most > 1


def test_only_tails_with_one_free_first_dimension_everywhere_are_batchable() -> None:
    x, y = spec("x", "batch", 3, 8), spec("y", "batch", 10)
    assert alike(segment([x], [y]))
    assert alike(segment([spec("x", "batch", "n"), spec("m", "batch", "n")], [spec("y", "batch", "n", 4)]))
    for inputs, outputs in (
        ([spec("x", 1, 3)], [spec("y", 1, 10)]),
        ([x], [spec("y", 1, 10)]),
        ([x], [spec("y", "batch", "y.1")]),
        ([x], [spec("y", "y.0", 10)]),
        ([x, spec("m", 3)], [y]),
        ([x, spec("m")], [y]),
        ([spec("x", 3, "batch")], [spec("y", 10, "batch")]),
        ([spec("x", "batch", "batch")], [y]),
        ([x], []),
        ([], [y]),
    ):
        assert not alike(segment(inputs, outputs)), (inputs, outputs)


def test_what_the_zoo_has_is_batchable_at_every_cut() -> None:
    for name in ("zoo:lenet5", "zoo:efficientnet_lite0"):
        model = load(name)
        tails = [model.tail(cut) for cut in model.graph.chain()]
        assert all(batchable(t) for t in tails if t.outputs), name


def test_requests_are_copied_together_only_if_they_are_small_and_alike() -> None:
    assert stackable(["float32"], [(1, 100)])
    assert not stackable(["float32"], [(1, 100, 1 << 20)])
    assert not stackable(["float32", "float32"], [(1, 100), (2, 100)])
    assert not stackable(["float32"], [(0, 100)])


def test_a_batch_of_a_real_tail_gives_what_single_runs_give() -> None:
    model = load("zoo:lenet5")
    tail = model.tail(model.graph.cut("pool1"))
    session = open_engine(threads=1).compile(tail)
    rng = np.random.default_rng(0)
    name = tail.inputs[0].name
    shape = tail.inputs[0].bind({"batch": 1}).shape
    feeds = [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(5)]
    for feed, got in zip(feeds, run_stacked(session.run, feeds), strict=True):
        want = session.run(feed)["logits"]
        np.testing.assert_allclose(got["logits"], want, atol=1e-4)
        assert got["logits"].base is None
    assert tried(session.run, [TensorSpec(name, "float32", shape)]) == ("equal", "")


MIXING = {
    "a mean over the batch": [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ],
    "a scale found at run time": [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ],
    "a softmax over the batch": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
}


@pytest.mark.parametrize("kind", MIXING)
def test_operators_that_mix_what_is_in_a_batch_are_found_out(tmp_path: Path, kind: str) -> None:
    model = one_op(tmp_path, MIXING[kind], ["batch", 64], ["batch", 64])
    assert alike(model.whole())
    assert not batchable(model.whole())
    session = open_engine(threads=1).compile(model.whole())
    verdict, why = tried(session.run, [spec("x", 1, 64)])
    assert verdict in ("different", "inconclusive")
    assert "y" in why


def branch(op: str) -> Any:
    return helper.make_graph([helper.make_node(op, ["t"], [op])], op, [], [nets.value(op, None)])


DECIDING = {
    "a branch": [
        helper.make_node("ReduceSum", ["t"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Exp")),
    ],
    "a count": [
        helper.make_node("NonZero", ["t"], ["found"]),
        helper.make_node("Size", ["found"], ["count"]),
        helper.make_node("Cast", ["count"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Where", ["c", "n", "t"], ["y"]),
    ],
    "a choice": [
        helper.make_node("ReduceMax", ["t"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Where", ["c", "n", "t"], ["y"]),
    ],
}


@pytest.mark.parametrize("kind", DECIDING)
def test_what_a_whole_batch_may_decide_never_runs_as_one(kind: str) -> None:
    """A trial would show nothing if both of it decided the same."""
    nodes = [helper.make_node("Tanh", ["x"], ["t"]), *DECIDING[kind]]
    nought = [nets.weight("nought", 0, np.float32)]
    model = nets.load(nets.proto(nodes, [nets.value("x", ["N", 64])], [nets.value("y", None)], nought))
    whole = model.whole()
    assert whole.outputs[0].shape == ("N", 64)
    tails = [model.tail(cut) for cut in model.graph.prefixes()]
    assert not any(batchable(t) for t in tails if {"t", "x"} & {i.name for i in t.inputs} and len(t.inputs) == 1)


def test_a_shape_that_is_fixed_inside_is_found_out(tmp_path: Path) -> None:
    class Fixed:
        inputs, outputs, nbytes = (spec("x", "batch", 4),), (spec("y", "batch", 4),), 0

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            if len(inputs["x"]) != 1:
                raise EngineError("cannot be reshaped to 1")
            return {"y": inputs["x"]}

        def close(self) -> None: ...

    verdict, why = tried(Fixed().run, [spec("x", 1, 4)])
    assert verdict == "different"
    assert "cannot be reshaped" in why


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)
