"""Floating-point operations of a node: a multiply-add counts as two, as in the papers this project compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from splitpoint.models.dataflow import Proto

Shape = Sequence[int]


def flops(node: Proto, shapes: Mapping[str, Shape]) -> int:
    """FLOPs of `node` for these shapes; 0 for data movement and for what has no known shape."""
    out = next((shapes.get(o) for o in node.output if o), None)
    if out is None:
        return 0
    ins = [shapes.get(name, ()) for name in node.input]
    attributes = {a.name: a for a in node.attribute}
    count = _COUNTS.get(node.op_type)
    if count is not None:
        return count(ins, out, attributes)
    return _PER_ELEMENT.get(node.op_type, 0) * prod(out)


Count = Callable[[Sequence[Shape], Shape, Mapping[str, Proto]], int]


def _conv(weight: int) -> Count:
    def count(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
        # Weight [Cout, Cin / groups, *kernel]: each output element is a dot product over the rest.
        return 2 * prod(out) * prod(ins[weight][1:]) if len(ins) > weight and ins[weight] else 0

    return count


def _conv_transpose(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    # Weight [Cin, Cout / groups, *kernel]: each input element is spread over the rest.
    return 2 * prod(ins[0]) * prod(ins[1][1:]) if len(ins) > 1 and ins[1] else 0


def _matmul(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    return 2 * prod(out) * (ins[0][-1] if ins and ins[0] else 1)


def _gemm(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    transposed = "transA" in attributes and attributes["transA"].i
    return 2 * prod(out) * (ins[0][0 if transposed else 1] if ins and len(ins[0]) == 2 else 1)


def _pool(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    return prod(out) * prod(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else 0


def _reduce(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    return prod(ins[0]) if ins else 0


def _attention(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    # Q·Kᵀ and scores·V: [B, H, Q, D] × [B, H, K, D].
    if len(ins) < 2 or len(ins[0]) != 4 or len(ins[1]) != 4:
        return 0
    b, h, q, d = ins[0]
    return 4 * b * h * q * ins[1][2] * d


def _recurrent(gates: int) -> Count:
    def count(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
        # X [seq, batch, input] (or batch first), W [directions, gates * hidden, input], R […, gates * hidden, hidden].
        if len(ins) < 3 or len(ins[0]) != 3 or len(ins[1]) != 3 or len(ins[2]) != 3:
            return 0
        hidden = ins[2][2]
        return 2 * ins[0][0] * ins[0][1] * ins[1][0] * gates * hidden * (ins[1][2] + hidden)

    return count


def _einsum(ins: Sequence[Shape], out: Shape, attributes: Mapping[str, Proto]) -> int:
    equation = attributes["equation"].s.decode() if "equation" in attributes else ""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].replace(" ", "").split(","), ins, strict=False):
        if "." not in term:
            sizes.update(zip(term, shape, strict=False))
    return 2 * prod(sizes.values()) if sizes else 2 * prod(out)


_COUNTS: Mapping[str, Count] = {
    "Conv": _conv(1), "ConvInteger": _conv(1), "QLinearConv": _conv(3), "FusedConv": _conv(1),
    "ConvTranspose": _conv_transpose, "MatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul,
    "FusedMatMul": _matmul, "Gemm": _gemm, "MaxPool": _pool, "AveragePool": _pool, "LpPool": _pool,
    "GlobalAveragePool": _reduce, "GlobalMaxPool": _reduce, "ReduceMean": _reduce, "ReduceSum": _reduce,
    "ReduceMax": _reduce, "ReduceMin": _reduce, "ReduceL2": _reduce, "ReduceProd": _reduce,
    "Attention": _attention, "Einsum": _einsum, "LSTM": _recurrent(4), "GRU": _recurrent(3), "RNN": _recurrent(1),
}  # fmt: skip

#: Operations an output element costs; what is not listed moves data only.
_PER_ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "PRelu", "Clip", "Neg", "Abs", "Max", "Min",
                     "Sqrt", "Reciprocal", "Sum", "Mean", "Equal", "Less", "Greater", "And", "Or", "Not", "Where",
                     "Floor", "Ceil", "Round", "QuantizeLinear", "DequantizeLinear"), 1),
    **dict.fromkeys(("BatchNormalization", "Pow", "HardSigmoid", "HardSwish"), 2),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Log", "Erf", "Elu", "Softplus", "Sin", "Cos"), 4),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Gelu", "Mish", "Swish"), 5),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
                     "RMSNormalization", "SimplifiedLayerNormalization"), 7),
}  # fmt: skip
