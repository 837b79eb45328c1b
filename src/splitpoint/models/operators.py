"""Which operators are run: those of ONNX's own domains, and of ONNX Runtime's those that only compute.

An engine's operators are C++ that a stranger's graph feeds. All of a domain is let in only where it is ONNX's own; of
``com.microsoft`` it is what exporters and quantisers write. Left out are operators that read files (EPContext), that
run Python, that decode text by regular expressions, and loops of the engine's own (BeamSearch). Who trusts the author
of a model may allow a domain, though never what reads files or runs code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from splitpoint.errors import ModelError
from splitpoint.models.dataflow import Proto, bodies, nodes_in, onnx

_OWN = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_CONTRIB = "com.microsoft"
#: Of com.microsoft, those whose time and memory follow from shapes (`memory_estimate`), as quantised and fused models
#: have them, …
CONTRIB_BY_SHAPE = frozenset({
    "BiasGelu", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EmbedLayerNormalization",
    "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "MatMulIntegerToFloat", "MatMulNBits", "NhwcMaxPool",
    "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
    "QuantizeLinear", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
#: … and all that only compute.
_COMPUTING = CONTRIB_BY_SHAPE | {
    "Attention", "BiasDropout", "BiasSoftmax", "CDist", "CausalConvWithState", "ConvTransposeWithDynamicPads",
    "CropAndResize", "DecoderMaskedMultiHeadAttention", "ExpandDims", "FusedMatMulActivation", "GatedDeltaNet",
    "GatherBlockQuantized", "GatherND", "GridSample", "GroupNorm", "GroupQueryAttention", "Inverse", "LinearAttention",
    "MRotaryEmbedding", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "MaxpoolWithMask", "MoE", "MultiHeadAttention",
    "Pad", "QAttention", "QEmbedLayerNormalization", "QMoE", "Range", "ReduceSumInteger", "RotaryEmbedding",
    "SkipGroupNorm", "SparseAttention", "SparseToDenseMatMul", "TransposeMatMul", "Trilu", "UnfoldTensor", "Unique",
}  # fmt: skip
#: Each element of the first input by itself.
UNARY = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
#: Elements of several inputs, broadcast to one shape.
PAIRWISE = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where",
    "Xor",
})  # fmt: skip
REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
#: Of ONNX's own, those whose sizes, time and memory follow from the shapes they read, and from numbers that are shapes;
#: onnx and ONNX Runtime reckon the sizes alike (`inference`). Windows are alike if nothing is rounded.
BY_SHAPE = UNARY | PAIRWISE | REDUCTIONS | frozenset({
    "ArgMax", "ArgMin", "BatchNormalization", "Concat", "Constant", "ConstantOfShape", "CumProd", "CumSum",
    "DepthToSpace", "DequantizeLinear", "DynamicQuantizeLinear", "Einsum", "Expand", "Flatten", "GRU", "Gather",
    "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization",
    "Hardmax", "InstanceNormalization", "LRN", "LSTM", "LayerNormalization", "LogSoftmax", "LpNormalization",
    "MatMul", "MatMulInteger", "PRelu", "Pad", "QLinearMatMul", "QuantizeLinear", "RMSNormalization", "RNN", "Range",
    "Reshape", "RotaryEmbedding", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Softmax", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip
WINDOWS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "AveragePool", "LpPool", "MaxPool"})

#: Whatever is allowed: they read a file or a blob of machine code, or call Python.
_NEVER = frozenset({"EPContext", "PythonOp", "PythonOpGrad"})
#: ONNX Runtime (1.32) writes to all outputs of these, those without a name too, and the process ends.
_NAMED = frozenset({"BatchNormalization", "Loop"})


def check_operators(skeleton: Proto, name: str, allowed: Collection[str] = ()) -> None:
    """ModelError for the first node of `skeleton` (called `name` in it), at any depth, that is not run.

    Of the domains `allowed` every operator is, but what reads files or runs code.
    """
    for node in nodes_in(skeleton.graph.node):
        domain, op = node.domain, node.op_type
        if op in _NEVER and domain not in _OWN:
            raise ModelError(
                f"{name} has the node {node.name} ({domain}.{op}), which reads files or runs code: it is never run"
            )
        if op in _NAMED and "" in node.output:
            raise ModelError(
                f"{name} has the node {node.name} ({op}) with an output without a name, which can make an engine end "
                "the process: name it"
            )
        if domain in _OWN or domain in allowed or (domain == _CONTRIB and op in _COMPUTING):
            continue
        raise ModelError(
            f"{name} has the node {node.name} ({domain}.{op}), and that operator of another domain is not run: allow "
            f"it if you trust who made the model, with --allow-domain {domain} (in Python: allow_domains=)"
        )


def check_frames(graph: Proto, name: str, known: Mapping[str, Proto] = MappingProxyType({})) -> None:
    """ModelError for an STFT whose frames may have no length: ONNX Runtime (1.32) divides by it, and the process ends.

    `known` are the constants around `graph`, which may be the body of a node.
    """
    inner = {i.name for i in graph.input} | {o for n in graph.node for o in n.output}
    known = {n: t for n, t in known.items() if n not in inner} | {t.name: t for t in graph.initializer}
    for node in graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None:
            known[node.output[0]] = value
    for node in graph.node:
        if node.op_type == "STFT":
            _, _, window, length = (*node.input, "", "")[:4]
            told = known.get(length or window)
            if told is None or not (_is_positive(told) if length else 0 not in told.dims):
                raise ModelError(
                    f"{name} has the node {node.name} (STFT) without a constant length of its frames, above zero: "
                    "without one, an engine can be made to end the process"
                )
        for body in bodies(node):
            check_frames(body, name, known)


def _is_positive(tensor: Proto) -> bool:
    """Of a tensor of one whole number."""
    try:
        return bool(int(onnx.numpy_helper.to_array(tensor).reshape(-1)[0]) > 0)
    except (TypeError, ValueError, IndexError, KeyError):
        return False
