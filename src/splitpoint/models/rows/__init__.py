"""Whether the rows of a batch stay apart in a graph: what a row is answered then follows from that row alone. Pure.

A server runs requests of several clients as one batch. That is right only if no operator mixes what is in a batch, and
a trial cannot show it: data can be chosen for which a scale over the whole batch, or a branch that it decides, comes
out the same. So it is read from the graph, operator by operator, from a list of those that are known. What is not on
the list, or is used in a way that is not understood, mixes.

Every tensor is one of these:

* the same for every batch (weights, and what is made of them and of sizes other than the batch's);
* `RowAxis`: along one axis lie the rows of the batch, one after the other, `each` entries a row, and no other dimension
  depends on how many rows there are;
* a `Vector` of sizes, in which the number of rows may occur: it may shape tensors, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from splitpoint.models.dataflow import Proto, bodies, drawing, reads
from splitpoint.models.model import Segment
from splitpoint.models.rows import computing, moving, shaping
from splitpoint.models.rows.sizes import Size, Vector
from splitpoint.models.rows.step import MOST_ENTRIES, ONE, SAME, Mixes, RowAxis, Rule, Step, Value, numbers_of
from splitpoint.tensors import ANY_RANK, Array


def mixing(segment: Segment) -> str:
    """``""`` if the rows along the first axis of all inputs stay apart up to all outputs; else which node may mix them.

    >>> mixing(load("zoo:lenet5").whole())
    ''
    """
    graph = segment.proto.graph
    known: dict[str, Value] = {i.name: RowAxis(0, ONE) for i in segment.inputs}
    shapes: dict[str, tuple[int | str, ...]] = {n: t.shape for n, t in segment.specs.items() if t.shape != ANY_RANK}
    shapes |= {t.name: t.shape for t in (*segment.inputs, *segment.outputs) if t.shape != ANY_RANK}
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        known[tensor.name] = _constant(tensor, constants)
    opset = next((o.version for o in segment.proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if drawn := drawing(graph):
        return f"{drawn[0]} draws random numbers"
    for node in graph.node:
        step = Step(node, known, shapes, constants, opset)
        try:
            values = _outputs(step)
        except Mixes as exc:
            return f"{node.name or node.output[0]} ({node.op_type}) {exc}"
        known.update(zip(node.output, values, strict=False))
    for out in segment.outputs:
        if known.get(out.name) != RowAxis(0, ONE):
            return f"output {out.name} is not a row for a row"
    return ""


def _constant(tensor: Proto, constants: dict[str, Array]) -> Value:
    """What the weight `tensor` is; its numbers too, if they are few and in the graph."""
    from onnx import TensorProto, numpy_helper

    count = int(np.prod(tensor.dims))
    if tensor.data_location == TensorProto.EXTERNAL or count > MOST_ENTRIES or tensor.data_type == TensorProto.STRING:
        return SAME
    array = constants[tensor.name] = numpy_helper.to_array(tensor)
    return numbers_of(array)


def _outputs(step: Step) -> Sequence[Value]:
    """What the outputs of a node are."""
    node = step.node
    names = reads(node)
    if any(name not in step.known for name in names):
        raise Mixes("reads what nothing here makes")
    domain = "" if node.domain == "ai.onnx" else node.domain
    if any(_depends(step.known[name]) for name in names):
        if next(bodies(node), None) is not None:
            raise Mixes("runs a body of its own on the batch")
        rule = _RULES.get((domain, node.op_type))
        if rule is None:
            raise Mixes("is not known to keep the rows of a batch apart")
        try:
            return rule(step)
        except (IndexError, TypeError, ValueError) as exc:  # attributes and numbers of any kind may be in a file
            raise Mixes("is used in a way that is not understood") from exc
    if not domain and (rule := _SHAPING.get(node.op_type)) is not None:
        # It is the same for every batch even where its numbers are not known.
        with suppress(Mixes, IndexError, TypeError, ValueError):
            return rule(step)
    return [SAME] * len(node.output)


def _depends(value: Value) -> bool:
    return isinstance(value, RowAxis) or (isinstance(value, Vector) and not value.free)


_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
_PAIRWISE = """
    And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Or
    PRelu Pow Sum Xor
"""
_IMAGES = """
    AveragePool Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
    GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearConv SpaceToDepth
"""
_REDUCE = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"

#: How sizes are computed. Where they are the same for every batch, these find their numbers.
_SHAPING: Mapping[str, Rule] = {
    "Add": shaping.arithmetic(shaping.summed(1)),
    "Cast": shaping.cast,
    "Concat": shaping.joined,
    "Constant": shaping.constant,
    "Div": shaping.arithmetic(shaping.quotient),
    "Equal": shaping.arithmetic(shaping.same_size),
    "Gather": shaping.lookup,
    "Identity": shaping.reformed(computing.unary, None),
    "Mul": shaping.arithmetic(Size.times),
    "ReduceProd": shaping.multiplied,
    "Reshape": shaping.reshaped,
    "Shape": shaping.shape,
    "Size": shaping.size_of,
    "Slice": shaping.cut,
    "Squeeze": shaping.reformed(moving.squeeze, True),
    "Sub": shaping.arithmetic(shaping.summed(-1)),
    "Unsqueeze": shaping.reformed(moving.unsqueeze, False),
    "Where": shaping.chosen,
}

_RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): computing.unary for name in _UNARY.split()},
    **{("", name): computing.elementwise for name in _PAIRWISE.split()},
    **{("", name): computing.items for name in _IMAGES.split()},
    **{("", name): computing.reduction for name in _REDUCE.split()},
    **{("", name): rule for name, rule in _SHAPING.items()},
    ("", "ArgMax"): computing.arg,
    ("", "ArgMin"): computing.arg,
    ("", "BatchNormalization"): computing.batch_normalization,
    ("", "CastLike"): computing.cast_like,
    ("", "ConstantOfShape"): moving.constant_of_shape,
    ("", "CumSum"): computing.cumulative,
    ("", "DequantizeLinear"): computing.scaled,
    ("", "Einsum"): computing.einsum,
    ("", "Expand"): moving.expand,
    ("", "Flatten"): moving.flatten,
    ("", "GRU"): computing.recurrent,
    ("", "GatherElements"): moving.gather_elements,
    ("", "Gemm"): computing.gemm,
    ("", "GridSample"): computing.grid_sample,
    ("", "Hardmax"): computing.softmax,
    ("", "LSTM"): computing.recurrent,
    ("", "LayerNormalization"): computing.layer_normalization,
    ("", "LogSoftmax"): computing.softmax,
    ("", "LpNormalization"): computing.along_the_last,
    ("", "MatMul"): computing.matmul,
    ("", "MatMulInteger"): computing.matmul_integer,
    ("", "MeanVarianceNormalization"): computing.mean_variance,
    ("", "OneHot"): computing.one_hot,
    ("", "Pad"): moving.pad,
    ("", "QLinearMatMul"): computing.qlinear_matmul,
    ("", "QuantizeLinear"): computing.scaled,
    ("", "RMSNormalization"): computing.layer_normalization,
    ("", "RNN"): computing.recurrent,
    ("", "Resize"): moving.resize,
    ("", "Softmax"): computing.softmax,
    ("", "Split"): moving.split,
    ("", "Tile"): moving.tile,
    ("", "TopK"): computing.along_the_last,
    ("", "Transpose"): moving.transpose,
    ("", "Trilu"): computing.triangle,
    ("", "Upsample"): moving.resize,
    ("com.microsoft", "BiasGelu"): computing.elementwise,
    ("com.microsoft", "FastGelu"): computing.elementwise,
    ("com.microsoft", "Gelu"): computing.unary,
    ("com.microsoft", "MatMulNBits"): computing.matmul_nbits,
    ("com.microsoft", "QLinearAdd"): computing.quantised_pair,
    ("com.microsoft", "QLinearLeakyRelu"): computing.quantised_one,
    ("com.microsoft", "QLinearMul"): computing.quantised_pair,
    ("com.microsoft", "QLinearSigmoid"): computing.quantised_one,
    ("com.microsoft", "QuickGelu"): computing.unary,
    ("com.microsoft", "SkipLayerNormalization"): computing.skip_layer_normalization,
}
