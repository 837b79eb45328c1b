"""FLOPs against counts done by hand and against the numbers the papers give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nets
from nets import node, value, weight
from splitpoint.models.flops import flops


def count(op: str, shapes: dict[str, tuple[int, ...]], inputs: str, **attributes: Any) -> int:
    return flops(node(op, inputs.split(), ["y"], **attributes), shapes)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "expected"),
    [
        ("Conv", {"a": (1, 3, 8, 8), "b": (16, 3, 3, 3), "y": (1, 16, 8, 8)}, {}, 2 * 16 * 64 * 27),
        ("Conv", {"a": (1, 16, 8, 8), "b": (16, 1, 3, 3), "y": (1, 16, 8, 8)}, {"group": 16}, 2 * 16 * 64 * 9),
        ("ConvTranspose", {"a": (1, 4, 5, 5), "b": (4, 2, 3, 3), "y": (1, 2, 7, 7)}, {}, 2 * 100 * 18),
        ("MatMul", {"a": (2, 5, 7), "b": (7, 3), "y": (2, 5, 3)}, {}, 2 * 30 * 7),
        ("Gemm", {"a": (5, 7), "b": (3, 7), "y": (5, 3)}, {"transB": 1}, 2 * 15 * 7),
        ("Gemm", {"a": (7, 5), "b": (7, 3), "y": (5, 3)}, {"transA": 1}, 2 * 15 * 7),
        ("MaxPool", {"a": (1, 2, 8, 8), "y": (1, 2, 4, 4)}, {"kernel_shape": [2, 2]}, 2 * 16 * 4),
        ("GlobalAveragePool", {"a": (1, 2, 8, 8), "y": (1, 2, 1, 1)}, {}, 128),
        ("Relu", {"a": (2, 9), "y": (2, 9)}, {}, 18),
        ("Softmax", {"a": (2, 9), "y": (2, 9)}, {}, 90),
        ("Reshape", {"a": (2, 9), "y": (18,)}, {}, 0),
        ("Einsum", {"a": (2, 3), "b": (3, 4), "y": (2, 4)}, {"equation": "ij, jk -> ik"}, 2 * 24),
        ("NoSuchOperator", {"a": (2, 9), "y": (18,)}, {}, 0),
        ("Relu", {"a": (2, 9)}, {}, 0),
        ("Conv", {"a": (1, 3, 8, 8), "y": (1, 16, 8, 8)}, {}, 0),
    ],
)
def test_by_hand(op: str, shapes: Any, attributes: Any, expected: int) -> None:
    assert count(op, shapes, "a b", **attributes) == expected


def test_recurrent_layers() -> None:
    shapes = {"x": (7, 2, 5), "w": (2, 12, 5), "r": (2, 12, 3), "y": (7, 2, 2, 3)}
    assert count("LSTM", shapes, "x w r", hidden_size=3) == 2 * 14 * 2 * 4 * 3 * (5 + 3)
    shapes |= {"w": (1, 9, 5), "r": (1, 9, 3)}
    assert count("GRU", shapes, "x w r", hidden_size=3) == 2 * 14 * 3 * 3 * (5 + 3)


@pytest.mark.parametrize(
    ("name", "giga_macs", "million_params"),
    # He et al. 2015 give 3.8 (their stride is in the 1×1); torchvision's tables give the others.
    [("resnet50", 3.9, 25.6), ("densenet121", 2.8, 8.0), ("squeezenet", 0.35, 1.24)],
)
def test_published_networks(name: str, giga_macs: float, million_params: float) -> None:
    graph = nets.load(nets.light(name)).graph
    convolutions = sum(n.flops for n in graph.nodes if n.op in ("Conv", "Gemm", "MatMul"))
    assert convolutions / 2e9 == pytest.approx(giga_macs, rel=0.1)
    assert sum(n.params for n in graph.nodes if n.placed) / 1e6 == pytest.approx(million_params, rel=0.1)
    total = sum(n.flops for n in graph.nodes)
    assert convolutions < total < 1.2 * convolutions


def test_copied_nodes_cost_nothing() -> None:
    graph = nets.load(nets.wide_shapes()).graph
    assert all(n.flops == 0 for n in graph.nodes if not n.placed)
    assert sum(n.flops for n in graph.nodes) > 0


def test_quantised_operators_count_like_the_others() -> None:
    proto = nets.proto(
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("MatMulInteger", ["q", "w", "z"], ["m"], name="matmul"),
            node("Cast", ["m"], ["f"], to=1),
            node("Mul", ["f", "s"], ["y"]),
        ],
        [value("x", [3, 64])],
        [value("y", None)],
        [weight("w", np.ones((64, 8), np.int8))],
    )
    graph = nets.load(proto).graph
    assert {n.name: n.flops for n in graph.nodes}["matmul"] == 2 * 24 * 64
