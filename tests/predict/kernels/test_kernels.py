"""Which nodes run as one kernel, and the columns that describe it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from kernel_models import conv, made

import nets
from nets import node, normal, proto, value, weight
from splitpoint import load
from splitpoint.models.model import Model
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernels import Kernel, kernels_of
from splitpoint.profile.kernel_times import marked
from splitpoint.segments import samples_for


def covered(model: Model, kernels: Sequence[Kernel]) -> None:
    """Every placed node is in just one kernel, and every column is a number."""
    assert sorted(i for k in kernels for i in k.nodes) == sorted(model.graph.placed)
    for k in kernels:
        assert tuple(k.config) == KINDS[k.kind].columns
        assert all(math.isfinite(v) and v >= -1 for v in k.config.values())
        assert min(k.in_nbytes, k.out_nbytes, k.weight_nbytes, k.flops) >= 0


# --- whole networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0"])
def test_real_networks_are_covered(name: str) -> None:
    model = load(name)
    kernels = kernels_of(model)
    covered(model, kernels)
    assert "other" not in {k.kind for k in kernels}


@given(nets.random_dags())
@settings(max_examples=25, deadline=None)
def test_any_graph_is_covered(model: Any) -> None:
    loaded = nets.load(model)
    covered(loaded, kernels_of(loaded))


@pytest.mark.parametrize("net", [nets.branching, nets.looping, nets.sequences, nets.measured, nets.wide_shapes])
def test_odd_graphs_are_covered(net: Any) -> None:
    model = nets.load(net())
    covered(model, kernels_of(model))


def test_a_thousand_nodes_take_milliseconds() -> None:
    model = nets.load(nets.stacked(900))
    kernels_of(model)
    began = time.process_time()
    assert len(kernels_of(model)) == 900
    assert time.process_time() - began < 0.5  # 10 ms on a quiet machine


@pytest.mark.parametrize(
    ("groups", "kind"), [(1, "conv"), (16, "dw_conv"), (4, "group_conv")]
)  # fmt: skip
def test_groups_make_the_kind(groups: int, kind: str) -> None:
    model = made([conv("x", "y", group=groups)], [normal("w", 16, 16 // groups, 3, 3)])
    [kernel] = kernels_of(model)
    assert kernel.kind == kind
    assert kernel.flops == 2 * 20 * 12 * 16 * 16 // groups * 9
    assert kernel.config.get("groups", groups) == groups


def test_a_product_of_two_tensors_is_no_linear_layer() -> None:
    model = made([node("MatMul", ["x", "x"], ["y"])], [], [2, 8, 8])
    [kernel] = kernels_of(model)
    assert kernel.kind == "matmul"
    assert [kernel.config[c] for c in ("batch", "rows", "in_features", "out_features")] == [2, 8, 8, 8]


def test_other_numbers_are_not_priced_as_floats() -> None:
    half = nets.load(
        proto(
            [node("MatMul", ["x", "w"], ["y"])], [value("x", [4, 8], nets.TensorProto.FLOAT16)],
            [value("y", None, nets.TensorProto.FLOAT16)], [weight("w", np.ones((8, 8), np.float16))],
        )
    )  # fmt: skip
    [kernel] = kernels_of(half)
    assert (kernel.kind, kernel.config["FLOPs"]) == ("other", 2 * 4 * 8 * 8)
    assert kernel.weight_nbytes == 2 * 64


def test_means_pools_and_sums() -> None:
    model = made(
        [
            node("AveragePool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Mul", ["a", "each"], ["m"]),
            node("ReduceMean", ["m", "axes"], ["y"], keepdims=1),
        ],
        [normal("each", 16, 1, 1), weight("axes", [2, 3], np.int64)],
    )
    pool, product, mean = kernels_of(model)
    assert (pool.kind, pool.config["output"], pool.config["kernel"]) == ("avgpool", math.sqrt(60), 2)
    assert (product.kind, product.config["broadcast"]) == ("elementwise", 60)
    assert (mean.kind, mean.config["HW"], mean.config["Cin"]) == ("global_pool", math.sqrt(60), 16)


# --- layouts ------------------------------------------------------------------------------------------------------


def test_changes_of_layout_are_counted_where_onnx_runtime_makes_them() -> None:
    """Convolution in blocks → Resize of rows → convolution in blocks: one change each way."""
    model = made(
        [
            conv("x", "a"),
            node("Tile", ["a", "times"], ["t"]),
            conv("t", "b"),
            node("Relu", ["b"], ["r"]),
            conv("r", "y"),
        ],
        [normal("w", 16, 16, 3, 3), weight("times", [1, 1, 2, 1], np.int64)],
    )
    assert [k.config["reorder"] for k in kernels_of(model)] == [16 * 240, 16 * 480, 0, 16 * 480]
    times = nets.ENGINE.kernel_times(marked(model), samples_for(model, 1)[0], 1, 0)
    assert sum("ReorderOutput" in name for name, _ in times) in (0, 2)  # other processors have no blocks


@pytest.mark.parametrize(("channels", "blocks"), [(16, True), (12, True), (18, False), (3, True)])
def test_which_convolutions_work_on_blocks(channels: int, blocks: bool) -> None:
    model = made([conv("x", "y")], [normal("w", 16, channels, 3, 3)], [1, channels, 8, 8])
    [kernel] = kernels_of(model)
    assert kernel.config["reorder"] == (16 * 64 if blocks else 0)


@pytest.mark.parametrize(("wide", "other", "pooled", "joined"), [(32, 16, 16, 16), (24, 16, 8, 8), (32, 20, 16, 0)])
def test_a_pool_and_a_concatenation_say_in_which_blocks_they_work(
    wide: int, other: int, pooled: int, joined: int
) -> None:
    """A pool has what it reads laid out for it; parts are joined in blocks where all of them are whole blocks."""
    model = made(
        [
            conv("x", "a", "w"), conv("x", "b", "v"), node("Concat", ["a", "b"], ["c"], axis=1),
            node("AveragePool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("ReduceMean", ["c"], ["m"], axes=[2, 3]), node("ReduceMean", ["p"], ["n"], axes=[2, 3]),
            node("Concat", ["m", "n"], ["y"], axis=1),
        ],
        [normal("w", wide, 16, 3, 3), normal("v", other, 16, 3, 3)],
    )  # fmt: skip
    blocks = {model.graph.nodes[k.nodes[0]].outputs[0]: k.config.get("blocked") for k in kernels_of(model)}
    assert (blocks["p"], blocks["c"], blocks["y"]) == (pooled, joined, 0)
