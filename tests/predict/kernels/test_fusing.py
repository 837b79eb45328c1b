"""What an engine runs as one kernel; ONNX Runtime is the oracle."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from kernel_models import IMAGE, conv, made

import nets
from nets import node, normal, proto, value, weight
from splitpoint import load
from splitpoint.models.model import Model
from splitpoint.predict.kernels.kernel_kinds import op_index
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.profile.kernel_times import marked, node_times
from splitpoint.segments import samples_for


def ops(model: Model) -> list[tuple[str, list[str]]]:
    """The kind of each kernel and the operators in it."""
    return [(k.kind, [model.graph.nodes[i].op for i in k.nodes]) for k in kernels_of(model)]


def number(name: str, x: float) -> Any:
    return weight(name, np.float32(x))


def test_kernels_run_as_onnx_runtime_fuses_them() -> None:
    """Of what its profiler names, none belongs to two of our kernels, and each of ours has a time of its own."""
    model = load("zoo:efficientnet_lite0")
    times = nets.ENGINE.kernel_times(marked(model), samples_for(model, 1)[0], 2, 1)
    shared = node_times(model, times)
    taken = [float(shared[list(k.nodes)].sum()) for k in kernels_of(model)]
    assert sum(taken) == pytest.approx(sum(ms for _, ms in times))
    assert min(taken) > 0
    assert abs(len(times) - len(taken)) <= 4  # changes of layout


# --- what fuses ---------------------------------------------------------------------------------------------------


def test_convolution_takes_in_norm_sum_and_activation() -> None:
    norm = [weight(n, np.ones(16, np.float32)) for n in ("s", "b", "m", "v")]
    model = made(
        [
            conv("x", "c", strides=[2, 2]),
            node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Add", ["n", "p"], ["a"]),
            node("Relu", ["a"], ["y"]),
        ],
        [normal("w", 16, 16, 3, 3), *norm],
    )
    pool, fused = kernels_of(model)
    assert pool.kind == "maxpool"
    assert [model.graph.nodes[i].op for i in fused.nodes] == ["Conv", "BatchNormalization", "Add", "Relu"]
    assert fused.kind == "conv"
    assert fused.config["FLOPs"] == fused.flops
    wanted = {
        "HW": math.sqrt(20 * 12), "kernel": 3.0, "stride": 2.0, "Cin": 16.0, "Cout": 16.0,
        "out": math.sqrt(10 * 6), "fused": 2.0, "added": 16.0 * 60, "batch": 1.0, "reorder": 16.0 * 60,
    }  # fmt: skip
    assert {name: fused.config[name] for name in wanted} == pytest.approx(wanted)
    assert (fused.in_nbytes, fused.out_nbytes) == (4 * 16 * (240 + 60), 4 * 16 * 60)
    assert fused.weight_nbytes == 4 * (16 * 16 * 9 + 4 * 16)


@pytest.mark.parametrize("add", ["Add", "Sum"])
def test_of_two_convolutions_that_are_added_one_takes_the_sum(add: str) -> None:
    model = made(
        [conv("x", "a", "w"), conv("x", "b", "v"), node(add, ["a", "b"], ["s"]), node("Relu", ["s"], ["y"])],
        [normal("w", 16, 16, 3, 3), normal("v", 16, 16, 3, 3)],
    )
    assert ops(model) == [("conv", ["Conv"]), ("conv", ["Conv", add, "Relu"])]


def test_a_sum_of_three_is_a_kernel_of_its_own() -> None:
    model = made([conv("x", "c"), node("Sum", ["c", "x", "x"], ["y"])], [normal("w", 16, 16, 3, 3)])
    assert ops(model) == [("conv", ["Conv"]), ("elementwise", ["Sum"])]


def test_what_two_read_or_the_model_gives_away_is_not_fused() -> None:
    twice = made(
        [conv("x", "c"), node("Relu", ["c"], ["r"]), node("Mul", ["c", "r"], ["y"])], [normal("w", 16, 16, 3, 3)]
    )
    assert [kind for kind, _ in ops(twice)] == ["conv", "activation", "elementwise"]
    given_away = nets.load(
        proto(
            [conv("x", "c"), node("Relu", ["c"], ["y"])],
            [value("x", IMAGE)], [value("c", None), value("y", None)], [normal("w", 16, 16, 3, 3)],
        )
    )  # fmt: skip
    assert [kind for kind, _ in ops(given_away)] == ["conv", "activation"]


def test_products_take_in_bias_and_activation() -> None:
    rank3 = made(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]), node("Gelu", ["a"], ["y"])],
        [normal("w", 32, 64), normal("b", 64)], [1, 10, 32],
    )  # fmt: skip
    [kernel] = kernels_of(rank3)
    assert (kernel.kind, len(kernel.nodes)) == ("linear", 3)
    assert [kernel.config[c] for c in ("in_features", "out_features", "rows", "fused")] == [32, 64, 10, 4]
    gemm = made(
        [node("Gemm", ["x", "w", "b"], ["g"], transB=1), node("Relu", ["g"], ["y"])],
        [normal("w", 64, 32), normal("b", 64)], [3, 32],
    )  # fmt: skip
    [kernel] = kernels_of(gemm)
    assert [kernel.config[c] for c in ("in_features", "out_features", "rows", "fused")] == [32, 64, 3, 1]


def test_old_gelu_is_one_activation_and_goes_with_the_product_before_it() -> None:
    def gelu(x: str) -> list[Any]:
        return [
            node("Div", [x, "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["f"]),
            node("Mul", [x, "f"], ["g"]), node("Mul", ["g", "half"], ["y"]),
        ]  # fmt: skip

    numbers = [number("root", 2**0.5), number("one", 1.0), number("half", 0.5)]
    alone = made(gelu("x"), numbers, [4, 8])
    [kernel] = kernels_of(alone)
    assert (kernel.kind, kernel.config["op"]) == ("activation", op_index("activation", "Gelu"))
    assert kernel.config["elements"] == 32
    behind = made([node("MatMul", ["x", "w"], ["m"]), *gelu("m")], [*numbers, normal("w", 8, 8)], [4, 8])
    [kernel] = kernels_of(behind)
    assert (kernel.kind, len(kernel.nodes), kernel.config["fused"]) == ("linear", 6, 3)


@pytest.mark.parametrize(("gate", "name"), [("Sigmoid", "Silu"), ("HardSigmoid", "HardSwish")])
def test_gated_activations_are_one(gate: str, name: str) -> None:
    model = made([node(gate, ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])])
    [kernel] = kernels_of(model)
    assert (kernel.kind, kernel.config["op"]) == ("activation", op_index("activation", name))


def test_old_layer_norm_is_one() -> None:
    model = made(
        [
            node("ReduceMean", ["x", "axes"], ["m"]), node("Sub", ["x", "m"], ["d"]), node("Pow", ["d", "two"], ["q"]),
            node("ReduceMean", ["q", "axes"], ["v"]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["s"]),
            node("Div", ["d", "s"], ["n"]), node("Mul", ["n", "g"], ["h"]), node("Add", ["h", "b"], ["y"]),
        ],
        [weight("axes", [-1], np.int64), number("two", 2.0), number("eps", 1e-5), normal("g", 32), normal("b", 32)],
        [1, 10, 32],
    )  # fmt: skip
    [kernel] = kernels_of(model)
    assert (kernel.kind, len(kernel.nodes)) == ("layernorm", 9)
    assert (kernel.config["rows"], kernel.config["width"]) == (10, 32)


@pytest.mark.parametrize("mask", [False, True])
def test_attention_is_one(mask: bool) -> None:
    scores = [node("Add", ["s", "mask"], ["a"])] if mask else []
    model = made(
        [
            node("Mul", ["x", "scale"], ["q"]), node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
            node("MatMul", ["q", "t"], ["s"]), *scores, node("Softmax", ["a" if mask else "s"], ["p"], axis=-1),
            node("MatMul", ["p", "x"], ["y"]),
        ],
        [number("scale", 0.3), normal("mask", 1, 1, 10, 10)],
        [1, 4, 10, 16],
    )  # fmt: skip
    move, attention = kernels_of(model)
    assert move.kind == "move"
    assert attention.kind == "attention"
    assert [attention.config[c] for c in ("batch", "rows", "columns", "width")] == [4, 10, 10, 16]
    assert {model.graph.nodes[i].op for i in attention.nodes} >= {"Mul", "MatMul", "Softmax"}
    assert attention.config["FLOPs"] >= 4 * 4 * 10 * 10 * 16


def test_what_costs_nothing_belongs_to_who_made_it() -> None:
    model = made(
        [conv("x", "c"), node("Reshape", ["c", "to"], ["r"]), node("Softmax", ["r"], ["y"])],
        [normal("w", 16, 16, 3, 3), weight("to", [1, -1], np.int64)],
    )
    first, second = kernels_of(model)
    assert [model.graph.nodes[i].op for i in first.nodes] == ["Conv", "Reshape"]
    assert (second.kind, second.config["rows"], second.config["width"]) == ("softmax", 1, 16 * 240)
    alone = made([node("Reshape", ["x", "to"], ["r"]), node("Relu", ["r"], ["y"])], [weight("to", [1, -1], np.int64)])
    assert [kind for kind, _ in ops(alone)] == ["move", "activation"]


def test_pieces_of_one_tensor_are_taken_at_once() -> None:
    nodes = [node("Gather", ["x", f"i{k}"], [f"p{k}"], axis=0) for k in range(3)]
    model = made(
        [*nodes, node("Add", ["p0", "p1"], ["s"]), node("Add", ["s", "p2"], ["y"])],
        [weight(f"i{k}", k, np.int64) for k in range(3)], [3, 8],
    )  # fmt: skip
    assert Counter(kind for kind, _ in ops(model)) == {"move": 1, "elementwise": 2}
    assert kernels_of(model)[0].config["elements"] == 24
