"""The kinds of kernel whose latency is learned, and the columns that say how large one is.

The first columns of a kind are those of the Neurosurgeon replica's tables, so that its data trains like ours; the
optional ones have the value that a table without them stands for. All are numbers. ``HW`` is √(height · width) of the
input and ``kernel`` √(its height · its width): the seed's tables are square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What ``op`` counts in each kind that has it: files keep the index, so append, never reorder.
OPS: Mapping[str, tuple[str, ...]] = {
    "activation": (
        "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Silu", "Tanh",
        "Gelu", "Erf", "Clip", "Softplus", "Softsign", "Mish", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs",
        "Floor", "Ceil", "Round", "Sign", "Not", "Cast", "ThresholdedRelu", "Sin", "Cos",
    ),
    "elementwise": (
        "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Greater", "Less", "And", "Or", "Sum",
        "Mean", "Mod", "GreaterOrEqual", "LessOrEqual", "Xor",
    ),
    "global_pool": ("ReduceMean", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceSum"),
    "move": (
        "Reshape", "Transpose", "Slice", "Split", "Pad", "Gather", "Resize", "Expand", "Tile", "DepthToSpace",
        "SpaceToDepth", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout", "Upsample", "ScatterND",
        "GatherND", "GatherElements", "ScatterElements", "Shape", "ConstantOfShape", "Constant", "Shuffle",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class KernelKind:
    """One kind of kernel: the columns a table of it must have, those it may have, and what its CSV is called."""

    name: str
    required: tuple[str, ...]
    optional: Mapping[str, float] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its table, as the seed's are called."""
        return f"{self.name}_lat.csv"

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that describe a kernel, in the order a table has them."""
        return (*self.required, *self.optional)

    def complete(self, config: Mapping[str, float]) -> dict[str, float]:
        """`config` with every column, in order; KeyError names a required one that is missing."""
        return {c: float(config[c]) for c in self.required} | {
            c: float(config.get(c, default)) for c, default in self.optional.items()
        }


# `out`: √(height · width) of the output, 0 where HW and stride say it. `fused`: elementwise nodes fused in.
# `added`: elements of another tensor that a fused Add reads. `weights_mb`: 10⁶ bytes of weights in the whole session
# the kernel runs in, which decide whether its own are still in the cache when its turn comes; 0: it runs alone.
# `reorder`: elements of its result that are laid out anew for who reads them (`layout`). `act`: the activation fused
# in, 0 none, 1 Relu, 2 another: ONNX Runtime's kernels have Relu inside and go over the result once more for others.
# With Clip a depthwise convolution takes a quarter longer.
_FUSED = {"out": 0.0, "fused": 0.0, "added": 0.0, "batch": 1.0, "weights_mb": 0.0, "reorder": 0.0, "act": 0.0}

#: Every kind by name.
KINDS: Mapping[str, KernelKind] = {
    kind.name: kind
    for kind in (
        KernelKind("conv", ("HW", "kernel", "stride", "Cin", "Cout", "FLOPs"), _FUSED),
        KernelKind("dw_conv", ("HW", "kernel", "stride", "Cin", "FLOPs"), _FUSED),
        KernelKind("group_conv", ("HW", "kernel", "stride", "Cin", "Cout", "groups", "FLOPs"), _FUSED),
        # `rows`: all leading dimensions of the input together.
        KernelKind(
            "linear",
            ("in_features", "out_features", "FLOPs"),
            {"rows": 1.0, "fused": 0.0, "weights_mb": 0.0},
        ),
        # Both operands are data; `batch`: products of one such pair each.
        KernelKind("matmul", ("rows", "in_features", "out_features", "FLOPs"), {"batch": 1.0, "weights_mb": 0.0}),
        KernelKind("maxpool", ("HW", "kernel", "stride", "Cin"), {"out": 0.0, "batch": 1.0, "reorder": 0.0}),
        KernelKind("avgpool", ("HW", "output", "Cin"), {"kernel": 0.0, "stride": 0.0, "batch": 1.0, "reorder": 0.0}),
        KernelKind("global_pool", ("HW", "Cin"), {"op": 0.0, "batch": 1.0, "reorder": 0.0}),
        KernelKind("batchnorm", ("HW", "Cin"), {"batch": 1.0, "fused": 0.0, "reorder": 0.0}),
        KernelKind("activation", ("elements", "op"), {"fused": 0.0, "reorder": 0.0}),
        # `elements`: of the result. `broadcast`: how many times the smaller operand is read over; 0: same shapes.
        KernelKind("elementwise", ("elements", "op"), {"inputs": 2.0, "broadcast": 0.0, "reorder": 0.0}),
        KernelKind("concat", ("elements", "inputs"), {"reorder": 0.0}),
        KernelKind("softmax", ("rows", "width")),
        KernelKind("layernorm", ("rows", "width")),
        # batch: heads × batch; rows of the query, columns of keys and values, width of a head.
        KernelKind("attention", ("batch", "rows", "columns", "width", "FLOPs")),
        # Whatever costs by the bytes it moves.
        KernelKind("move", ("elements", "op"), {"reorder": 0.0}),
        # Anything else; never calibrated, so it is priced by FLOPs and bytes.
        KernelKind("other", ("elements", "FLOPs")),
    )
}


def op_index(kind: str, op: str) -> float:
    """The number that column ``op`` has for this ONNX operator in `kind`; −1 for one that is not in its list."""
    ops = OPS[kind]
    return float(ops.index(op)) if op in ops else -1.0
