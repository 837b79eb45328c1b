"""Whether the rows of a batch stay apart: what the analysis says, against what ONNX Runtime does with batches."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T

import nets
from nets import node, value, weight
from splitpoint.engines import open_engine
from splitpoint.errors import SplitpointError
from splitpoint.models import load, rows
from splitpoint.models.model import Model, Segment
from splitpoint.models.rows import computing, mixing, moving, numbering
from splitpoint.tensors import Array

RNG = np.random.default_rng(0)
#: A batch of two as large as the constants below are long: what only fits by chance would pass with another number.
ROWS = (3, 2, 5)
BIG = 2**62


def f32(name: str, *shape: int) -> Any:
    return weight(name, RNG.standard_normal(shape).astype("f4"))


def i64(name: str, *numbers: int) -> Any:
    return weight(name, np.array(numbers, np.int64))


def scalar(name: str, number: float, dtype: str = "f4") -> Any:
    return weight(name, np.array(number, dtype))


def u8(name: str, number: int) -> Any:
    return scalar(name, number, "u1")


def model(nodes: Sequence[Any], shape: Sequence[int | str], weights: Sequence[Any] = (), **more: Any) -> Model:
    """x → y, with the free dimension N and what else `shape` says."""
    x = value("x", shape, more.pop("dtype", T.FLOAT))
    more.setdefault("domains", {"com.microsoft": 1, "ai.onnx.ml": 2})
    return nets.load(nets.proto(nodes, [x], [value("y", None)], weights, **more))


def rows_of(shape: Sequence[int | str], dtype: str, count: int) -> Array:
    """Rows of very different sizes, so that whatever mixes them shows."""
    rest = [d if isinstance(d, int) else 4 for d in shape[1:]]
    if dtype[0] in "iu":
        return RNG.integers(0, 4, (count, *rest)).astype(dtype)
    scale = 10.0 ** RNG.permutation(np.linspace(-2, 2, count)).reshape(-1, *[1] * len(rest))
    return (RNG.standard_normal((count, *rest)) * scale).astype(dtype)


def apart(made: Model, shape: Sequence[int | str]) -> bool:
    """Whether a batch gives each row what the row gives by itself."""
    session = open_engine(threads=1).compile(made.whole())
    try:
        for count in ROWS:
            x = rows_of(shape, made.inputs[0].dtype, count)
            try:
                y = session.run({"x": x})["y"]
            except SplitpointError:
                return False
            for k in range(count):
                alone = session.run({"x": x[k : k + 1]})["y"]
                part = y[k : k + 1]
                if part.shape != alone.shape or len(y) != count or not np.allclose(part, alone, 1e-4, 1e-5):
                    return False
        return True
    finally:
        session.close()


def shaped(*entries: object) -> list[Any]:
    """Nodes that make `s` of the entries: numbers, ``"N"`` for the rows, ``"2N"`` and the like."""
    made = [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "i0"], ["n"], axis=0)]
    parts = []
    for k, entry in enumerate(entries):
        if isinstance(entry, int):
            made.append(node("Constant", [], [f"c{k}"], value_ints=[entry]))
            parts.append(f"c{k}")
        elif entry == "N":
            parts.append("n")
        else:
            made.append(node("Constant", [], [f"f{k}"], value_ints=[int(str(entry)[:-1])]))
            made.append(node("Mul", ["n", f"f{k}"], [f"m{k}"]))
            parts.append(f"m{k}")
    return [*made, node("Concat", parts, ["s"], axis=0)]


#: Nodes that number the rows, `r`, and then places in `f`, all of a batch in a row: `size` · row number + `p`.
ROW_NUMBERS = [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "o"], ["n"]), node("Range", ["o", "n", "i"], ["r"])]
OWN = [*ROW_NUMBERS, node("Mul", ["r", "size"], ["m"]), node("Unsqueeze", ["m", "one"], ["u"]),
       node("Add", ["u", "p"], ["k"]), node("Reshape", ["x", "flat"], ["f"])]  # fmt: skip
#: The number of each row, `a`, and places in it, `b`, as the parts of indices.
PAIRS = [*ROW_NUMBERS, node("Unsqueeze", ["r", "ones"], ["u"]), node("Unsqueeze", ["n", "zero"], ["n1"]),
         node("Concat", ["n1", "two"], ["s"], axis=0), node("Expand", ["u", "s"], ["a"]),
         node("Expand", ["places", "s"], ["b"])]  # fmt: skip


def own(size: int, first: int = 0) -> list[Any]:
    """The weights of `OWN`."""
    made = [scalar("o", 0, "i8"), scalar("i", 1, "i8"), i64("flat", -1), i64("one", 1), scalar("size", size, "i8")]
    return [*made, i64("p", *range(first, first + size))]


def pairs(*places: int) -> list[Any]:
    made = [i64("ones", 1, 2), i64("zero", 0), i64("two", len(places), 1), weight("places", [[[p] for p in places]])]
    return [*own(1), *made]


MS = {"domain": "com.microsoft"}
#: A scale and a zero point, and the nodes that make `q` of x with them and y of `p`.
SCALE = [scalar("s", 0.1), u8("z", 128)]
QUANTISED = [node("QuantizeLinear", ["x", "s", "z"], ["q"])], [node("DequantizeLinear", ["p", "s", "z"], ["y"])]


def quantised(*nodes: Any) -> list[Any]:
    return [*QUANTISED[0], *nodes, *QUANTISED[1]]


I0 = i64("i0", 0)
IMAGE = ("N", 4, 6, 6)
TOKENS = ("N", 5, 8)

#: What keeps the rows apart and must be known to: name → nodes, shape of x, weights, and what else.
APART: dict[str, tuple[Any, ...]] = {
    "Relu": ([node("Relu", ["x"], ["y"])], IMAGE),
    "Add, a constant for each channel": ([node("Add", ["x", "c"], ["y"])], IMAGE, [f32("c", 4, 1, 1)]),
    "Add, a constant with the axis of the batch": ([node("Add", ["c", "x"], ["y"])], IMAGE, [f32("c", 1, 4, 1, 1)]),
    "Add to itself": ([node("Exp", ["x"], ["e"]), node("Add", ["x", "e"], ["y"])], ("N", 3)),
    "Clip": ([node("Clip", ["x", "a", "b"], ["y"])], IMAGE, [scalar("a", 0), scalar("b", 6)]),
    "Where": (
        [node("Greater", ["x", "z"], ["c"]), node("Where", ["c", "x", "z"], ["y"])], ("N", 3), [scalar("z", 0)],
    ),
    "Conv": ([node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)], IMAGE, [f32("w", 8, 4, 3, 3), f32("b", 8)]),
    "Conv, grouped": ([node("Conv", ["x", "w"], ["y"], group=4)], IMAGE, [f32("w", 4, 1, 3, 3)]),
    "ConvTranspose": ([node("ConvTranspose", ["x", "w"], ["y"])], IMAGE, [f32("w", 4, 2, 3, 3)]),
    "BatchNormalization": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])], IMAGE,
        [f32("s", 4), f32("b", 4), f32("m", 4), weight("v", np.ones(4, "f4"))],
    ),
    "InstanceNormalization": (
        [node("InstanceNormalization", ["x", "s", "b"], ["y"])], IMAGE, [f32("s", 4), f32("b", 4)],
    ),
    "MaxPool": ([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], IMAGE),
    "GlobalAveragePool": ([node("GlobalAveragePool", ["x"], ["y"])], IMAGE),
    "LRN": ([node("LRN", ["x"], ["y"], size=3)], IMAGE),
    "DepthToSpace": ([node("DepthToSpace", ["x"], ["y"], blocksize=2)], IMAGE),
    "Gemm": ([node("Gemm", ["x", "w", "b"], ["y"])], ("N", 8), [f32("w", 8, 3), f32("b", 3)]),
    "Gemm, turned round": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Gemm", ["t", "w"], ["y"], transA=1)], ("N", 8),
        [f32("w", 8, 3)],
    ),
    "MatMul with a weight": ([node("MatMul", ["x", "w"], ["y"])], TOKENS, [f32("w", 8, 3)]),
    "MatMul from the left": ([node("MatMul", ["w", "x"], ["y"])], TOKENS, [f32("w", 3, 5)]),
    "MatMul of rows": (
        [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("MatMul", ["x", "t"], ["y"])], TOKENS,
    ),
    "Softmax": ([node("Softmax", ["x"], ["y"])], TOKENS),
    "Softmax of old": ([node("Softmax", ["x"], ["y"], axis=1)], TOKENS, [], {"opset": 11}),
    "LayerNormalization": ([node("LayerNormalization", ["x", "s", "b"], ["y"])], TOKENS, [f32("s", 8), f32("b", 8)]),
    "ReduceMean over the rest": ([node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], IMAGE),
    "ReduceMean, axes as an input": ([node("ReduceMean", ["x", "a"], ["y"])], IMAGE, [i64("a", -1)], {"opset": 18}),
    "ArgMax": ([node("ArgMax", ["x"], ["i"], axis=1, keepdims=0), node("Cast", ["i"], ["y"], to=T.FLOAT)], ("N", 7)),
    "TopK": ([node("TopK", ["x", "k"], ["y", "i"])], ("N", 7), [i64("k", 2)]),
    "CumSum": ([node("CumSum", ["x", "a"], ["y"])], TOKENS, [scalar("a", 1, "i8")]),
    "Flatten": ([node("Flatten", ["x"], ["y"])], IMAGE),
    "Reshape by 0": ([node("Reshape", ["x", "s"], ["y"])], IMAGE, [i64("s", 0, -1)]),
    "Reshape by -1": ([node("Reshape", ["x", "s"], ["y"])], IMAGE, [i64("s", -1, 144)]),
    "Reshape by what Shape says": ([*shaped("N", 4, 36), node("Reshape", ["x", "s"], ["y"])], IMAGE, [I0]),
    "Reshape to more rows and back": (
        [*shaped("4N", 36), node("Reshape", ["x", "s"], ["t"]), node("Softmax", ["t"], ["u"]),
         node("Reshape", ["u", "b"], ["y"])],
        IMAGE, [I0, i64("b", -1, 4, 36)],
    ),
    "Attention": (
        [*shaped("N", 5, 2, 4), node("Reshape", ["x", "s"], ["h"]), node("Transpose", ["h"], ["q"], perm=[0, 2, 1, 3]),
         node("Transpose", ["q"], ["k"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "k"], ["a"]),
         node("Softmax", ["a"], ["p"]), node("MatMul", ["p", "q"], ["o"]),
         node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]), node("Reshape", ["t", "b"], ["y"])],
        TOKENS, [I0, i64("b", 0, 5, 8)],
    ),
    "a class token for every row": (
        [*shaped("N", 1, 8), node("Expand", ["c", "s"], ["e"]), node("Concat", ["e", "x"], ["y"], axis=1)], TOKENS,
        [I0, f32("c", 1, 1, 8)],
    ),
    "a class token, as PyTorch writes it": (
        [*shaped("N", -1, -1), node("ConstantOfShape", ["three"], ["ones"], value=i64("v", 1)),
         node("Constant", [], ["neg"], value_ints=[-1]), node("Equal", ["s", "neg"], ["eq"]),
         node("Where", ["eq", "ones", "s"], ["w"]), node("Expand", ["c", "w"], ["e"]),
         node("Concat", ["e", "x"], ["y"], axis=1)],
        TOKENS, [I0, i64("three", 3), f32("c", 1, 1, 8)],
    ),
    "Transpose and back": (
        [node("Transpose", ["x"], ["t"], perm=[1, 2, 3, 0]), node("Softmax", ["t"], ["u"], axis=0),
         node("Transpose", ["u"], ["y"], perm=[3, 0, 1, 2])],
        IMAGE,
    ),
    "Squeeze": (
        [node("Unsqueeze", ["x", "a"], ["u"]), node("Squeeze", ["u", "a"], ["y"])], TOKENS, [i64("a", 0)],
    ),
    "Concat": ([node("Concat", ["x", "x"], ["y"], axis=1)], TOKENS),
    "Split": ([node("Split", ["x"], ["y", "z"], axis=1)], IMAGE),
    "Slice": ([node("Slice", ["x", "a", "b", "c"], ["y"])], TOKENS, [i64("a", 1), i64("b", BIG), i64("c", 1)]),
    "Slice of all of the batch": (
        [node("Slice", ["x", "a", "b"], ["y"])], TOKENS, [i64("a", 0, 1), i64("b", BIG, 3)],
    ),
    "Pad": ([node("Pad", ["x", "p"], ["y"])], IMAGE, [i64("p", 0, 0, 1, 1, 0, 0, 1, 1)]),
    "Gather from rows": ([node("Gather", ["x", "i"], ["y"], axis=1)], TOKENS, [scalar("i", 0, "i8")]),
    "Gather, an embedding": (
        [node("Gather", ["w", "x"], ["y"])], ("N", 5), [f32("w", 4, 3)], {"dtype": T.INT64},
    ),
    "Expand": ([node("Expand", ["x", "s"], ["y"])], ("N", 1, 3), [i64("s", 4, 3)]),
    "Tile": ([node("Tile", ["x", "r"], ["y"])], TOKENS, [i64("r", 1, 2, 1)]),
    "Resize by scales": (
        [node("Resize", ["x", "", "s"], ["y"])], IMAGE, [weight("s", np.array([1, 1, 2, 2], "f4"))],
    ),
    "Resize to sizes": ([*shaped("N", 4, 9, 9), node("Resize", ["x", "", "", "s"], ["y"])], IMAGE, [I0]),
    "QuantizeLinear": (
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])], IMAGE,
        [scalar("s", 0.1), u8("z", 128)],
    ),
    "DequantizeLinear for each channel": (
        [node("Cast", ["x"], ["q"], to=T.INT8), node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1)], IMAGE,
        [weight("s", np.arange(1, 5).astype("f4")), weight("z", np.zeros(4, "i1"))],
    ),
    "MatMulInteger": (
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("MatMulInteger", ["q", "w", "z"], ["i"]),
         node("Cast", ["i"], ["y"], to=T.FLOAT)], ("N", 8),
        [scalar("s", 0.1), u8("z", 128), weight("w", RNG.integers(-9, 9, (8, 3)).astype("i1"))],
    ),
    "Einsum": ([node("Einsum", ["x", "w"], ["y"], equation="nij,jk->nik")], TOKENS, [f32("w", 8, 3)]),
    "LSTM": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("LSTM", ["t", "w", "r"], ["all", "h"], hidden_size=3),
         node("Transpose", ["h"], ["y"], perm=[1, 0, 2])],
        TOKENS, [f32("w", 1, 12, 8), f32("r", 1, 12, 3)],
    ),
    "GRU that begins with nothing": (
        [*shaped(1, "N", 3), node("ConstantOfShape", ["s"], ["z"]), node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
         node("GRU", ["t", "w", "r", "", "", "z"], ["all", "h"], hidden_size=3),
         node("Transpose", ["h"], ["y"], perm=[1, 0, 2])],
        TOKENS, [I0, f32("w", 1, 9, 8), f32("r", 1, 9, 3)],
    ),
    "Gelu": ([node("Gelu", ["x"], ["y"], domain="com.microsoft")], TOKENS),
    "Trilu": ([node("Trilu", ["x"], ["y"])], ("N", 4, 4)),
    "OneHot": (
        [node("OneHot", ["x", "d", "v"], ["y"])], ("N", 3), [scalar("d", 4, "i8"), weight("v", np.array([0, 1], "f4"))],
        {"dtype": T.INT64},
    ),
    "GatherElements": (
        [node("ArgMax", ["x"], ["i"], axis=1), node("GatherElements", ["x", "i"], ["y"], axis=1)], ("N", 7),
    ),
    "PRelu": ([node("PRelu", ["x", "a"], ["y"])], IMAGE, [f32("a", 4, 1, 1)]),
    "RMS of the last axis": ([node("SimplifiedLayerNormalization", ["x", "s"], ["y"])], TOKENS, [f32("s", 8)]),
    "ScatterElements": (
        [node("ArgMax", ["x"], ["i"], axis=1), node("Gather", ["x", "i0"], ["u"], axis=1),
         node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)],
        ("N", 7), [I0],
    ),
    "GatherND, from a table": (
        [node("Unsqueeze", ["x", "a"], ["i"]), node("GatherND", ["w", "i"], ["y"])], ("N", 5),
        [f32("w", 4, 3), i64("a", -1)], {"dtype": T.INT64},
    ),
    "GatherND, each row's own": (
        [node("ArgMax", ["x"], ["i"], axis=1), node("GatherND", ["x", "i"], ["y"], batch_dims=1)], ("N", 7),
    ),
    "a row that takes from itself": ([*OWN, node("Gather", ["f", "k"], ["y"])], ("N", 12), own(12)),
    "places in a row of one's own": (
        [*PAIRS, node("Concat", ["a", "b"], ["k"], axis=-1), node("GatherND", ["x", "k"], ["y"])], ("N", 4, 3),
        pairs(2, 0),
    ),
    "Attention, fused": (
        [node("Attention", ["x", "w", "b"], ["y"], num_heads=2, **MS)], TOKENS, [f32("w", 8, 24), f32("b", 24)],
    ),
    "Attention of three": ([node("MultiHeadAttention", ["x", "x", "x"], ["y"], num_heads=2, **MS)], TOKENS),
    "FusedMatMul": ([node("FusedMatMul", ["x", "x"], ["y"], transB=1, **MS)], TOKENS),
    "FusedMatMul, turned": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("FusedMatMul", ["t", "w"], ["y"], transA=1, **MS)],
        ("N", 8), [f32("w", 8, 3)],
    ),
    "FusedGemm": ([node("FusedGemm", ["x", "w"], ["y"], activation="Relu", **MS)], ("N", 8), [f32("w", 8, 3)]),
    "FusedConv": (
        [node("FusedConv", ["x", "w"], ["y"], activation="Relu", **MS)], IMAGE, [f32("w", 8, 4, 3, 3)],
    ),
    "a skip, then a norm": (
        [node("Neg", ["x"], ["m"]), node("SkipSimplifiedLayerNormalization", ["x", "m", "g"], ["y"], **MS)], TOKENS,
        [f32("g", 8)],
    ),
    "QGemm": (
        quantised(node("QGemm", ["q", "s", "z", "w", "s", "z", "", "s", "z"], ["p"], **MS)), ("N", 8),
        [*SCALE, weight("w", RNG.integers(0, 255, (8, 3)).astype("u1"))],
    ),
    "QLinearAdd": (quantised(node("QLinearAdd", ["q", "s", "z", "q", "s", "z", "s", "z"], ["p"], **MS)), IMAGE, SCALE),
    "QLinearSigmoid": (quantised(node("QLinearSigmoid", ["q", "s", "z", "s", "z"], ["p"], **MS)), IMAGE, SCALE),
    "QLinearConcat": (
        quantised(node("QLinearConcat", ["s", "z", "q", "s", "z", "q", "s", "z"], ["p"], axis=1, **MS)), IMAGE, SCALE,
    ),
    "QLinearSoftmax": (
        quantised(node("QLinearSoftmax", ["q", "s", "z", "s", "z"], ["p"], axis=-1, opset=13, **MS)), TOKENS, SCALE,
    ),
    "QLinearGlobalAveragePool": (
        quantised(node("QLinearGlobalAveragePool", ["q", "s", "z", "s", "z"], ["p"], **MS)), IMAGE, SCALE,
    ),
    "a table": (
        [node("Normalizer", ["x"], ["t"], norm="L2", domain="ai.onnx.ml"),
         node("LinearRegressor", ["t"], ["y"], coefficients=[0.5] * 4, intercepts=[1.0], domain="ai.onnx.ml")],
        ("N", 4),
    ),
}  # fmt: skip

#: What mixes the rows, or may.
MIXED: dict[str, tuple[Any, ...]] = {
    "a scale found at run time": (
        [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        ("N", 8),
    ),
    "a mean over the batch": (
        [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])], ("N", 8),
    ),
    "a maximum of all": ([node("ReduceMax", ["x"], ["m"], keepdims=0), node("Div", ["x", "m"], ["y"])], ("N", 8)),
    "softmax over the batch": ([node("Softmax", ["x"], ["y"], axis=0)], ("N", 8)),
    "softmax of old, over the batch": ([node("Softmax", ["x"], ["y"], axis=0)], ("N", 8), [], {"opset": 11}),
    "softmax of old, over the batch in the middle": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("Softmax", ["t"], ["u"], axis=1),
         node("Transpose", ["u"], ["y"], perm=[1, 0, 2])],
        TOKENS, [], {"opset": 11},
    ),
    "a product of rows with rows": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["p"]),
         node("MatMul", ["p", "x"], ["y"])],
        ("N", 8),
    ),
    "a sum along the batch": ([node("CumSum", ["x", "a"], ["y"])], ("N", 8), [scalar("a", 0, "i8")]),
    "the size of the batch as a number": (
        [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "i0"], ["n"]), node("Cast", ["n"], ["f"], to=T.FLOAT),
         node("Div", ["x", "f"], ["y"])],
        ("N", 8), [I0],
    ),
    "the size of the batch, for each row": (
        [*shaped("N", 2), node("Expand", ["sh", "s"], ["e"]), node("Cast", ["e"], ["f"], to=T.FLOAT),
         node("Div", ["x", "f"], ["y"])],
        ("N", 2), [I0],
    ),
    "the size of the batch, repeated": (
        [*shaped("N"), node("Mul", ["n", "n"], ["m"]), node("Tile", ["m", "n"], ["e"]),
         node("Unsqueeze", ["e", "one"], ["u"]), node("Cast", ["u"], ["f"], to=T.FLOAT),
         node("Div", ["x", "f"], ["y"])],
        ("N", 2), [I0, i64("one", 1)],
    ),
    "a choice by the size of the batch": (
        [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "i0"], ["n"]), node("Greater", ["n", "two"], ["c"]),
         node("Neg", ["x"], ["m"]), node("Where", ["c", "x", "m"], ["y"])],
        ("N", 8), [I0, i64("two", 2)],
    ),
    "a reshape that swaps": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Reshape", ["t", "s"], ["y"])], ("N", 8),
        [i64("s", -1, 8)],
    ),
    "a reshape that folds and a norm": (
        [node("Reshape", ["x", "s"], ["t"]), node("Softmax", ["t"], ["u"], axis=1), node("Reshape", ["u", "b"], ["y"])],
        ("N", 8), [i64("s", 1, -1), i64("b", -1, 8)],
    ),
    "rows in turn": (
        [node("Reshape", ["x", "s"], ["t"]), node("Transpose", ["t"], ["u"], perm=[1, 0]),
         node("Reshape", ["u", "b"], ["v"]), node("Softmax", ["v"], ["y"])],
        ("N", 8), [i64("s", -1, 4), i64("b", -1, 8)],
    ),
    "some of the batch": (
        [node("Slice", ["x", "a", "b"], ["f"]), node("Add", ["x", "f"], ["y"])], ("N", 8), [i64("a", 0), i64("b", 1)],
    ),
    "the batch backwards": (
        [node("Slice", ["x", "a", "b", "c", "d"], ["y"])], ("N", 8),
        [i64("a", -1), i64("b", -BIG), i64("c", 0), i64("d", -1)],
    ),
    "the first of the batch": ([node("Gather", ["x", "i0"], ["f"]), node("Add", ["x", "f"], ["y"])], ("N", 8), [I0]),
    "a constant along the batch": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Add", ["t", "c"], ["u"]),
         node("Transpose", ["u"], ["y"], perm=[1, 0])],
        ("N", 8), [f32("c", 3)],
    ),
    "places in the whole batch": ([node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2]),
         node("Cast", ["i"], ["y"], to=T.FLOAT)], IMAGE),
    "sorted along the batch": ([node("TopK", ["x", "k"], ["y", "i"], axis=0)], ("N", 8), [i64("k", 1)]),
    "random numbers": ([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], ("N", 8)),
    "training": ([node("Dropout", ["x", "r", "t"], ["y"])], ("N", 800), [scalar("r", 0.5), scalar("t", 1, "?")]),
    "an LSTM that steps along the batch": (
        [node("LSTM", ["x", "w", "r"], ["all"], hidden_size=3), node("Squeeze", ["all", "a"], ["y"])], TOKENS,
        [f32("w", 1, 12, 8), f32("r", 1, 12, 3), i64("a", 1)],
    ),
    "counts": (
        [node("NonZero", ["x"], ["nz"]), node("Shape", ["nz"], ["c"]), node("Cast", ["c"], ["f"], to=T.FLOAT),
         node("ReduceMax", ["f"], ["m"], keepdims=0), node("Add", ["x", "m"], ["y"])],
        ("N", 8),
    ),
    "a number for each row": (
        [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "zero"], ["n"]),
         node("Range", ["zero", "n", "one"], ["r"]),
         node("Cast", ["r"], ["f"], to=T.FLOAT), node("Unsqueeze", ["f", "a"], ["c"]), node("Add", ["x", "c"], ["y"])],
        ("N", 8), [scalar("zero", 0, "i8"), scalar("one", 1, "i8"), i64("a", 1)],
    ),
    "an axis of one is dropped": ([node("Squeeze", ["x"], ["y"])], ("N", 8)),
    "einsum over the batch": (
        [node("Einsum", ["x", "x"], ["g"], equation="ni,nj->ij"), node("MatMul", ["x", "g"], ["y"])], ("N", 8),
    ),
    "normalised over the batch": (
        [node("LayerNormalization", ["x", "s"], ["y"], axis=0)], ("N", 8), [f32("s", 8)],
    ),
    "padded along the batch": (
        [node("Pad", ["x", "p"], ["w"], mode="edge"), node("Slice", ["w", "a", "b"], ["y"])], ("N", 8),
        [i64("p", 1, 0, 0, 0), i64("a", 0), i64("b", -1)],
    ),
    "resized along the batch": (
        [node("Resize", ["x", "", "s"], ["w"], mode="linear"),
         node("Slice", ["w", "a", "b", "c", "d"], ["y"])], ("N", 8),
        [weight("s", np.array([2, 1], "f4")), i64("a", 0), i64("b", BIG), i64("c", 0), i64("d", 2)],
    ),
    # Numbers that are other ones by the time they are used.
    "an end that a cast makes one": (
        [node("Cast", ["big"], ["e"], to=T.INT32), node("Cast", ["i0"], ["b"], to=T.INT32),
         node("Slice", ["x", "b", "e"], ["f"]), node("Add", ["x", "f"], ["y"])],
        ("N", 8), [I0, i64("big", 2**32 + 1)],
    ),
    "an end that a product makes one": (
        [node("Mul", ["big", "big"], ["m"]), node("Add", ["m", "one"], ["e"]), node("Slice", ["x", "i0", "e"], ["f"]),
         node("Add", ["x", "f"], ["y"])],
        ("N", 8), [I0, i64("big", 2**32), i64("one", 1)],
    ),
    "a number that is below zero after all": (
        [*shaped("N", 8), node("Cast", ["f"], ["m"], to=T.INT64), node("Equal", ["m", "neg"], ["e"]),
         node("Where", ["e", "one", "n"], ["k"]), node("Concat", ["k", "neg"], ["t"], axis=0),
         node("Reshape", ["x", "t"], ["r"]), node("Softmax", ["r"], ["q"], axis=1), node("Reshape", ["q", "s"], ["y"])],
        ("N", 8), [I0, weight("f", np.array([-1], "f4")), i64("neg", -1), i64("one", 1)],
    ),
    "a scale along the batch": (
        [node("Reshape", ["x", "a"], ["r"]), node("LayerNormalization", ["r", "s"], ["q"]),
         node("Reshape", ["q", "b"], ["y"])],
        TOKENS, [f32("s", 5, 8), i64("a", -1, 8), i64("b", -1, 5, 8)],
    ),
    "a zero point for each row": (
        [node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0), node("Cast", ["q"], ["y"], to=T.FLOAT)], ("N", 8),
        [scalar("s", 0.1), weight("z", np.array([0, 50, 9], "u1"))],
    ),
    # Rows that take by their number what is not their own.
    "too short a step": ([*OWN, node("Gather", ["f", "k"], ["y"])], ("N", 12), own(6)),
    "a place before the row's": ([*OWN, node("Gather", ["f", "k"], ["y"])], ("N", 12), own(12, -1)),
    "a place behind the row's": (
        [*OWN, node("Concat", ["f", "f"], ["g"], axis=0), node("Gather", ["g", "k"], ["y"])], ("N", 12), own(12, 1),
    ),
    "the number of a row, as a value": (
        [*OWN, node("Cast", ["k"], ["c"], to=T.FLOAT), node("Add", ["x", "c"], ["y"])], ("N", 4), own(4),
    ),
    "the number of a row, from a table": (
        [*OWN, node("Gather", ["w", "k"], ["c"]), node("Add", ["x", "c"], ["y"])], ("N", 4), [*own(1), f32("w", 9)],
    ),
    "every row from the first": (
        [*OWN, node("Min", ["k", "p"], ["l"]), node("Gather", ["f", "l"], ["y"])], ("N", 4), own(4),
    ),
    "numbers of rows in the wrong place": (
        [*PAIRS, node("Concat", ["b", "a"], ["k"], axis=-1), node("GatherND", ["x", "k"], ["y"])], ("N", 4, 3),
        pairs(0, 0),
    ),
    "places that rows share": (
        [*PAIRS, node("Concat", ["b", "b"], ["k"], axis=-1), node("GatherND", ["x", "k"], ["y"])], ("N", 4, 3),
        pairs(0, 0),
    ),
    "scattered across the batch": (
        [node("ArgMax", ["x"], ["i"], axis=0), node("ReduceMin", ["x"], ["u"], axes=[0]),
         node("ScatterElements", ["x", "i", "u"], ["y"], axis=0)],
        ("N", 7),
    ),
    "the first row for all": (
        [node("ArgMax", ["x"], ["t"], axis=1), node("Mul", ["t", "o"], ["i"]), node("GatherND", ["x", "i"], ["y"])],
        ("N", 4), [scalar("o", 0, "i8")],
    ),
    "FusedMatMul over the batch": (
        [node("FusedMatMul", ["x", "x"], ["g"], transA=1, **MS), node("MatMul", ["x", "g"], ["y"])], ("N", 8),
    ),
    "attention along the batch": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
         node("MultiHeadAttention", ["t", "t", "t"], ["u"], num_heads=2, **MS),
         node("Transpose", ["u"], ["y"], perm=[1, 0, 2])],
        TOKENS,
    ),
    "a table turned round": (
        [node("Transpose", ["x"], ["t"]), node("Normalizer", ["t"], ["u"], norm="L2", domain="ai.onnx.ml"),
         node("Transpose", ["u"], ["y"])],
        ("N", 4),
    ),
    "attention over the batch": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["p"]), node("Softmax", ["p"], ["q"]),
         node("MatMul", ["q", "x"], ["y"])],
        ("N", 8),
    ),
    "a mean over the batch, turned round": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MeanVarianceNormalization", ["t"], ["u"], axes=[1]),
         node("Transpose", ["u"], ["y"], perm=[1, 0])],
        ("N", 8),
    ),
    "a picture for every channel": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]), node("LRN", ["t"], ["u"], size=3),
         node("Transpose", ["u"], ["y"], perm=[1, 0, 2, 3])],
        IMAGE,
    ),
    "a triangle through the batch": ([node("Trilu", ["x"], ["y"])], ("N", 4)),
    "the largest of the batch": (
        [*shaped("N", 1), node("ReduceMax", ["x"], ["m"], axes=[0]), node("Expand", ["m", "s"], ["e"]),
         node("Mul", ["e", "x"], ["y"])],
        ("N", 8), [I0],
    ),
    "the batch joined to itself": (
        [*shaped("N"), node("Concat", ["x", "x"], ["c"], axis=0), node("CumSum", ["c", "o"], ["t"]),
         node("Slice", ["t", "n", "e"], ["y"])],
        ("N", 8), [I0, scalar("o", 0, "i8"), i64("e", BIG)],
    ),
    "each row by places of another": (
        [node("ArgMax", ["x"], ["i"], axis=0), node("GatherElements", ["x", "i"], ["e"], axis=0),
         node("Add", ["x", "e"], ["y"])],
        ("N", 8),
    ),
    "a product with what the batch makes": (
        [node("Gemm", ["x", "x"], ["g"], transA=1),
         node("MatMul", ["x", "g"], ["y"])],
        ("N", 8),
    ),
    "quantised, along the batch": (
        quantised(node("Transpose", ["q"], ["t"], perm=[1, 0]),
                  node("QLinearSoftmax", ["t", "s", "z", "s", "z"], ["u"], axis=-1, opset=13, **MS),
                  node("Transpose", ["u"], ["p"], perm=[1, 0])),
        ("N", 4), SCALE,
    ),
}  # fmt: skip


def made_of(nodes: Any, shape: Any, weights: Any = (), more: Any = None) -> tuple[Model, Sequence[int | str]]:
    return model(nodes, shape, weights, **(more or {})), shape


@pytest.mark.parametrize("name", APART)
def test_what_keeps_rows_apart_is_known_to(name: str) -> None:
    made, shape = made_of(*APART[name])
    assert mixing(made.whole()) == ""
    assert apart(made, shape)


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_rows_is_refused(name: str) -> None:
    made, shape = made_of(*MIXED[name])
    assert mixing(made.whole())
    assert not apart(made, shape)


class LeftOut(ast.NodeTransformer):
    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node)


def without_refusals(function: Any) -> Any:
    """The code of a rule that never says no."""
    module = ast.parse(inspect.getsource(inspect.getmodule(function) or function))
    codes = compile(LeftOut().visit(module), function.__code__.co_filename, "exec").co_consts
    return next(c for c in codes if inspect.iscode(c) and c.co_name == function.__name__)


@cache
def mixed_segments() -> list[Segment]:
    return [made_of(*MIXED[name])[0].whole() for name in MIXED]


@pytest.mark.parametrize(
    "rule",
    [
        computing.along_the_last, computing.broadcast, computing.cumulative, computing.items,
        computing.layer_normalization, computing.mean_variance, computing.quantised_softmax, computing.reduced,
        computing.scaled, computing.softmax, computing.table, computing.triangle, moving.gather, moving.gather_nd,
        moving.sliced, numbering.taken,
    ],
)  # fmt: skip
def test_a_rule_that_never_says_no_is_caught(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is known to mix rows. Without the rules not listed, what mixes them is refused by another."""
    monkeypatch.setattr(rule, "__code__", without_refusals(rule))
    monkeypatch.setattr(rows, "_compare", lambda *_: None)  # the shapes that were found are another guard
    assert any(not mixing(segment) for segment in mixed_segments())


def test_a_claim_that_the_shapes_deny_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another guard: a tensor that has as many rows for every batch has no rows of it."""
    made = model([node("ReduceMax", ["x"], ["m"], axes=[0]), node("Add", ["x", "m"], ["y"])], ("N", 8))
    monkeypatch.setitem(rows._RULES, ("", "ReduceMax"), computing.unary)
    assert "another shape than was found" in mixing(made.whole())


def test_what_only_the_specification_lets_mix_is_refused() -> None:
    """ONNX Runtime leaves an axis alone whose scale is one; by the formula its entries move by half of one."""
    how = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "ceil"}
    scales = weight("s", np.array([1, 2], np.float32))
    made = model([node("Resize", ["x", "", "s"], ["y"], **how)], ("N", 8), [scales], opset=11)
    assert "can move the rows" in mixing(made.whole())


#: Steps that keep a tensor of [N, a, b] one, right or wrong: name → nodes from `i` to `o`.
STEPS = {
    "relu": lambda i, o: [node("Relu", [i], [o])],
    "turn": lambda i, o: [node("Transpose", [i], [o], perm=[0, 2, 1])],
    "swap": lambda i, o: [node("Transpose", [i], [o], perm=[1, 0, 2])],
    "round": lambda i, o: [node("Transpose", [i], [o], perm=[2, 0, 1])],
    "softmax": lambda i, o: [node("Softmax", [i], [o], axis=1)],
    "last": lambda i, o: [node("Softmax", [i], [o], axis=-1)],
    "first": lambda i, o: [node("Softmax", [i], [o], axis=0)],
    "centre": lambda i, o: [node("ReduceMean", [i], [f"{o}m"], axes=[1]), node("Sub", [i, f"{o}m"], [o])],
    "fold": lambda i, o: [node("Reshape", [i, "fold"], [o])],
    "split": lambda i, o: [node("Reshape", [i, "split"], [o])],
    "keep": lambda i, o: [node("Reshape", [i, "keep"], [o])],
    "self": lambda i, o: [node("Transpose", [i], [f"{o}t"], perm=[0, 2, 1]), node("MatMul", [i, f"{o}t"], [o])],
    "bias": lambda i, o: [node("Add", [i, "bias"], [o])],
    "cut": lambda i, o: [node("Slice", [i, "zero", "end", "zero"], [o])],
}
CONSTANTS = [i64("fold", 1, -1, 4), i64("split", -1, 2, 4), i64("keep", 0, -1, 2), f32("bias", 1, 1, 1),
             i64("zero", 0), i64("end", 2)]  # fmt: skip


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
def test_whatever_is_put_together(names: list[str]) -> None:
    """Where the analysis says that rows stay apart, they do."""
    nodes: list[Any] = []
    at = "x"
    for k, name in enumerate(names):
        nodes += STEPS[name](at, f"t{k}")
        at = f"t{k}"
    # Back to rows of whatever is left, so that what was mixed can look like rows.
    nodes += [node("Identity", [at], ["y"])]
    try:
        made = model(nodes, ("N", 4, 4), CONSTANTS, opset=13)
        said = mixing(made.whole())
    except SplitpointError:
        return
    assert said or apart(made, ("N", 4, 4)), names


def test_the_networks_of_the_zoo_stay_apart_at_every_cut() -> None:
    for name in ("zoo:lenet5", "zoo:efficientnet_lite0"):
        net = load(name)
        assert {mixing(net.tail(cut)) for cut in net.graph.chain() if net.tail(cut).outputs} == {""}
