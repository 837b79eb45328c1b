"""Whether the rows of a batch stay apart in a graph: what a row is answered then follows from that row alone. Pure.

A server runs requests of several clients as one batch. That is right only if no operator mixes what is in a batch, and
a trial cannot show it: data can be chosen for which a scale over the whole batch, or a branch that it decides, comes
out the same. So it is read from the graph, operator by operator, from a list of those that are known. What is not on
the list, or is used in a way that is not understood, mixes. What a tensor can be, `step.Value` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from splitpoint.errors import SplitpointError
from splitpoint.graph import SHAPE_ROOTS
from splitpoint.models.dataflow import Proto, bodies, drawing, onnx, reads
from splitpoint.models.model import Segment
from splitpoint.models.operators import PAIRWISE, REDUCTIONS, UNARY
from splitpoint.models.rows import computing, moving, numbering, shaping
from splitpoint.models.rows.step import (
    MOST_ENTRIES,
    ONE,
    SAME,
    Mixes,
    Numbers,
    RowAxis,
    Rule,
    Size,
    Step,
    Value,
    Vector,
    numbers_of,
)
from splitpoint.models.soundness import blob_hash
from splitpoint.tensors import ANY_RANK, Array

#: Places in larger tables of places are not looked at.
_MOST_PLACES = 1 << 16


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
        step = Step(node, known, shapes, constants, opset, partial(_limits, segment))
        try:
            values = _outputs(step)
            _compare(node.output, values, shapes)
        except Mixes as exc:
            return f"{node.name or node.output[0]} ({node.op_type}) {exc}"
        known.update(zip(node.output, values, strict=False))
    for out in segment.outputs:
        if known.get(out.name) != RowAxis(0, ONE):
            return f"output {out.name} is not a row for a row"
    return ""


def _constant(tensor: Proto, constants: dict[str, Array]) -> Value:
    """What the weight `tensor` is; its numbers too, if they are few and in the graph."""
    count = int(np.prod(tensor.dims))
    text, outside = tensor.data_type == onnx.TensorProto.STRING, tensor.data_location == onnx.TensorProto.EXTERNAL
    if text or outside or count > MOST_ENTRIES:
        return SAME
    array = constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return numbers_of(array)


def _limits(segment: Segment, name: str) -> tuple[int, int] | None:
    tensor = next((t for t in segment.proto.graph.initializer if t.name == name), None)
    if tensor is None or tensor.data_type != onnx.TensorProto.INT64 or not 0 < np.prod(tensor.dims) <= _MOST_PLACES:
        return None
    digest = blob_hash(tensor)
    try:
        places = np.frombuffer(segment.weights.open(digest) if digest else tensor.raw_data, "<i8")
        return int(places.min()), int(places.max())
    except (SplitpointError, ValueError):  # the weights are not here, or not in this form
        return None


def _outputs(step: Step) -> Sequence[Value]:
    """What the outputs of a node are."""
    node = step.node
    names = reads(node)
    if any(name not in step.known for name in names):
        raise Mixes("reads what nothing here makes")
    domain = "" if node.domain == "ai.onnx" else node.domain
    sizes = None if domain else _SIZES.get(node.op_type)
    given = [step.known[name] for name in names]
    if any(isinstance(v, RowAxis | Numbers) or (isinstance(v, Vector) and not v.free) for v in given):
        if next(bodies(node), None) is not None:
            raise Mixes("runs a body of its own on the batch")
        rule = _RULES.get((domain, node.op_type))
        if sizes is not None and (rule is None or not any(isinstance(step.value(i), RowAxis) for i in step.inputs)):
            rule = sizes
        if node.op_type not in SHAPE_ROOTS and any(isinstance(v, Numbers) for v in given):
            rule = None if domain else numbering.RULES.get(node.op_type, numbering.refused)
        if rule is None:
            raise Mixes("is not known to keep the rows of a batch apart")
        try:
            return rule(step)
        except (IndexError, TypeError, ValueError) as exc:  # attributes and numbers of any kind may be in a file
            raise Mixes("is used in a way that is not understood") from exc
    if sizes is not None:
        # It is the same for every batch even where its numbers are not known.
        with suppress(Mixes, IndexError, TypeError, ValueError):
            return sizes(step)
    return [SAME] * len(node.output)


def _compare(names: Sequence[str], values: Sequence[Value], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    """Mixes if a tensor was found to have as many rows for every batch: a rule is wrong, or what is used in it."""
    for name, value in zip(names, values, strict=False):
        rows, sizes = value.rows if isinstance(value, Numbers) else value, dict(enumerate(shapes.get(name, ())))
        if isinstance(rows, RowAxis) and name in shapes and not isinstance(sizes.get(rows.axis), str):
            raise Mixes("makes another shape than was found for it")


#: How sizes are computed. Where they are the same for every batch, these find their numbers.
_SIZES: Mapping[str, Rule] = {
    "Add": shaping.arithmetic(shaping.summed(1)),
    "Cast": shaping.cast,
    "Concat": shaping.joined,
    "Constant": shaping.constant,
    "Div": shaping.arithmetic(Size.over),
    "Equal": shaping.arithmetic(shaping.same_size),
    "Gather": shaping.lookup,
    "Identity": shaping.identity,
    "Mul": shaping.arithmetic(Size.times),
    "ReduceProd": shaping.multiplied,
    "Reshape": shaping.reshaped,
    "Shape": shaping.shape,
    "Size": shaping.size_of,
    "Slice": shaping.cut,
    "Squeeze": shaping.squeezed,
    "Sub": shaping.arithmetic(shaping.summed(-1)),
    "Unsqueeze": shaping.unsqueezed,
    "Where": shaping.chosen,
}

#: Rules for rows: of each domain's other operators, by name.
_TABLE: Sequence[tuple[str, Rule, str]] = (
    ("", computing.items, """
        AveragePool Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearConv STFT SpaceToDepth"""),
    ("", computing.along_the_last, "LpNormalization TopK"),
    ("", computing.arg, "ArgMax ArgMin"),
    ("", computing.batch_normalization, "BatchNormalization"),
    ("", computing.cumulative, "CumSum"),
    ("", computing.einsum, "Einsum"),
    ("", computing.examples(0, 1), "GridSample"),
    ("", computing.examples(0, 1, 2), "Attention"),
    ("", computing.gemm, "Gemm"),
    ("", computing.layer_normalization, "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
    ("", computing.matmul, "MatMul"),
    ("", computing.matmul_integer, "MatMulInteger"),
    ("", computing.mean_variance, "MeanVarianceNormalization"),
    ("", computing.one_hot, "OneHot"),
    ("", computing.prelu, "PRelu"),
    ("", computing.qlinear_matmul, "QLinearMatMul"),
    ("", computing.recurrent, "GRU LSTM RNN"),
    ("", computing.scaled, "DequantizeLinear QuantizeLinear"),
    ("", computing.softmax, "Hardmax LogSoftmax Softmax"),
    ("", computing.triangle, "Trilu"),
    ("", moving.by_elements, "GatherElements ScatterElements"),
    ("", moving.concat, "Concat"),
    ("", moving.constant_of_shape, "ConstantOfShape"),
    ("", moving.expand, "Expand"),
    ("", moving.flatten, "Flatten"),
    ("", moving.gather, "Gather"),
    ("", moving.gather_nd, "GatherND"),
    ("", moving.pad, "Pad"),
    ("", moving.reshape, "Reshape"),
    ("", moving.resize, "Resize Upsample"),
    ("", moving.sliced, "Slice"),
    ("", moving.split, "Split"),
    ("", moving.squeeze, "Squeeze"),
    ("", moving.tile, "Tile"),
    ("", moving.transpose, "Transpose"),
    ("", moving.unsqueeze, "Unsqueeze"),
    ("", numbering.numbered, "Range"),
    ("ai.onnx.ml", computing.table, """
        LinearClassifier LinearRegressor Normalizer SVMClassifier SVMRegressor Scaler TreeEnsembleClassifier
        TreeEnsembleRegressor"""),
    ("com.microsoft", computing.elementwise, "BiasGelu FastGelu"),
    ("com.microsoft", computing.examples(0, 1, 2, 4, same=(3,)), "MultiHeadAttention"),
    ("com.microsoft", computing.examples(0, 3, same=(1, 2)), "Attention FusedConv"),
    ("com.microsoft", computing.fused_matmul, "FusedMatMul TransposeMatMul"),
    ("com.microsoft", computing.gemm, "FusedGemm"),
    ("com.microsoft", computing.items, "NhwcMaxPool QLinearAveragePool QLinearConv QLinearGlobalAveragePool"),
    ("com.microsoft", computing.matmul_nbits, "MatMulNBits"),
    ("com.microsoft", computing.quantised(0), "QLinearLeakyRelu QLinearSigmoid"),
    ("com.microsoft", computing.quantised(0, 1, 4), "QLinearWhere"),
    ("com.microsoft", computing.quantised(0, 3), "QLinearAdd QLinearMul"),
    ("com.microsoft", computing.quantised_gemm, "QGemm"),
    ("com.microsoft", computing.quantised_softmax, "QLinearSoftmax"),
    ("com.microsoft", computing.scaled, "DequantizeLinear QuantizeLinear"),
    ("com.microsoft", computing.skip_layer_normalization, "SkipLayerNormalization SkipSimplifiedLayerNormalization"),
    ("com.microsoft", computing.unary, "Gelu QuickGelu"),
    ("com.microsoft", moving.quantised_concat, "QLinearConcat"),
)  # fmt: skip
_RULES: dict[tuple[str, str], Rule] = {
    **{("", name): computing.unary for name in UNARY},
    **{("", name): computing.elementwise for name in PAIRWISE},
    **{("", name): computing.reduction for name in REDUCTIONS},
    **{(domain, name): rule for domain, rule, names in _TABLE for name in names.split()},
}
