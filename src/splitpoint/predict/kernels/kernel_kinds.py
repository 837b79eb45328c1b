"""The kinds of kernel whose latency is learned, and the columns that say how large one is.

The first columns of a kind are those of the Neurosurgeon replica's tables, so that its data trains like ours; the
optional ones have the value that a table without them stands for. All are numbers. ``HW`` is √(height · width) of the
input and ``kernel`` √(its height · its width): the seed's tables are square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from splitpoint.profile.costs import Floats

Named = dict[str, Floats]

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


def tiles(a: Floats, b: Floats, side: int) -> Floats:
    """Blocks of so many rows and columns of a matrix: what cores, or the multiprocessors of a GPU, take turns with."""
    return np.asarray(np.ceil(a / side) * np.ceil(b / side))


def out_side(c: Named) -> Floats:
    """Height and width of a convolution's output: as given, or those of padding that keeps HW ÷ stride."""
    return np.where(c["out"] > 0, c["out"], np.ceil(c["HW"] / c["stride"]))


def _conv(c: Named) -> Named:
    """A matrix product of `pixels` × `depth` by `depth` × Cout, or what engines do instead of one.

    Sums of `depth` products take their time however few pixels there are, and pixels and channels are handed out in
    blocks: on a GPU most small convolutions cost just that.
    """
    groups = c.get("groups", np.ones_like(c["HW"]))
    out, wide = out_side(c), c["Cout"] / groups
    pixels, depth = out**2 * c["batch"], c["Cin"] / groups * c["kernel"] ** 2
    planes = c["Cin"] * wide * c["batch"]
    return {
        "macs": pixels * depth * c["Cout"],
        "read": c["HW"] ** 2 * c["batch"] * c["Cin"] + c["added"],
        "written": pixels * c["Cout"],
        "weights": depth * c["Cout"],
        "patches": pixels * depth * groups,
        "depth": depth,
        "depth128": tiles(pixels, wide, 128) * groups * depth,
        "depth32": tiles(pixels, wide, 32) * groups * depth,
        "depth16": pixels * np.ceil(wide / 16) * groups * depth,
        "winograd": np.ceil(out / 4) ** 2 * planes,
        "fourier": c["HW"] ** 2 * planes,
        "calls": groups * c["batch"],
        "passes": pixels * c["Cout"] * (c["act"] > 1),
    }


def _dw_conv(c: Named) -> Named:
    pixels = out_side(c) ** 2 * c["batch"]
    return {
        "macs": pixels * c["kernel"] ** 2 * c["Cin"],
        "read": c["HW"] ** 2 * c["batch"] * c["Cin"] + c["added"],
        "written": pixels * c["Cin"],
        # Engines without a kernel for these sizes call that of plain convolution once a channel.
        "calls": c["Cin"] * c["batch"],
        "passes": pixels * c["Cin"] * (c["act"] > 1),
    }


def _linear(c: Named) -> Named:
    return {
        "macs": c["rows"] * c["in_features"] * c["out_features"],
        "read": c["rows"] * c["in_features"],
        "written": c["rows"] * c["out_features"],
        "weights": c["in_features"] * c["out_features"],
    }


def _matmul(c: Named) -> Named:
    rows, width, columns = c["rows"], c["in_features"], c["out_features"]
    return {
        "macs": c["batch"] * rows * width * columns,
        "read": c["batch"] * (rows + columns) * width,
        "written": c["batch"] * rows * columns,
    }


def _maxpool(c: Named) -> Named:
    written = out_side(c) ** 2 * c["batch"] * c["Cin"]
    return {"macs": written * c["kernel"] ** 2, "read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": written}


def _avgpool(c: Named) -> Named:
    # The seed's are adaptive: an output pixel has HW ÷ output pixels in each direction, or one more.
    kernel = np.where(c["kernel"] > 0, c["kernel"], np.ceil(c["HW"] / np.maximum(c["output"], 1.0)))
    written = c["output"] ** 2 * c["batch"] * c["Cin"]
    return {"macs": written * kernel**2, "read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": written}


def _global_pool(c: Named) -> Named:
    return {"read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": c["batch"] * c["Cin"]}


def _batchnorm(c: Named) -> Named:
    return {"read": c["HW"] ** 2 * c["batch"] * c["Cin"], "weights": c["Cin"]}


def _elements(c: Named) -> Named:
    return {"read": c["elements"]}


def _rows(c: Named) -> Named:
    return {"read": c["rows"] * c["width"], "written": c["rows"]}


def _elementwise(c: Named) -> Named:
    return {"read": c["elements"] * np.where(c["broadcast"] > 0, 1.0, c["inputs"]), "written": c["elements"]}


def _attention(c: Named) -> Named:
    scores = c["batch"] * c["rows"] * c["columns"]
    return {
        "macs": 2 * scores * c["width"],
        "read": c["batch"] * (c["rows"] + 2 * c["columns"]) * c["width"],
        "written": scores,
    }


@dataclass(frozen=True)
class KernelKind:
    """One kind of kernel: how much work kernels with such columns do, the columns a table of it must have, and those it
    may have.

    `apart` are columns (or sizes) whose values are kernels of their own, each of which costs by sizes in its own way.
    """

    name: str
    work: Callable[[Named], Named]
    required: tuple[str, ...]
    optional: Mapping[str, float] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

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
# `reorder`: elements of its result that are laid out anew for who reads them. `act`: the activation fused
# in, 0 none, 1 Relu, 2 another: ONNX Runtime's kernels have Relu inside and go over the result once more for others.
# With Clip a depthwise convolution takes a quarter longer.
_FUSED = {"out": 0.0, "fused": 0.0, "added": 0.0, "batch": 1.0, "weights_mb": 0.0, "reorder": 0.0, "act": 0.0}

# `blocked`: 16 where ONNX Runtime works on blocks of 8 and of 16 channels, 8 where only on those of 8 (a machine with
# AVX-512 has 16 in a block, one with AVX2 has 8), 0 on neither. On plain rows a pool or a batch norm takes 5 to 40
# times as long.
_LAID, _BLOCKED = {"reorder": 0.0, "blocked": 0.0}, ("blocked",)

#: Every kind by name.
KINDS: Mapping[str, KernelKind] = {
    kind.name: kind
    for kind in (
        # All matrix products, for which a common base is nearer than one for each kernel and stride.
        KernelKind("conv", _conv, ("HW", "kernel", "stride", "Cin", "Cout", "FLOPs"), _FUSED),
        KernelKind("dw_conv", _dw_conv, ("HW", "kernel", "stride", "Cin", "FLOPs"), _FUSED, ("kernel", "stride")),
        KernelKind(
            "group_conv", _conv, ("HW", "kernel", "stride", "Cin", "Cout", "groups", "FLOPs"), _FUSED, ("block",)
        ),
        # `rows`: all leading dimensions of the input together.
        KernelKind(
            "linear", _linear, ("in_features", "out_features", "FLOPs"), {"rows": 1.0, "fused": 0.0, "weights_mb": 0.0}
        ),
        # Both operands are data; `batch`: products of one such pair each.
        KernelKind(
            "matmul", _matmul, ("rows", "in_features", "out_features", "FLOPs"), {"batch": 1.0, "weights_mb": 0.0}
        ),
        KernelKind(
            "maxpool", _maxpool, ("HW", "kernel", "stride", "Cin"), {"out": 0.0, "batch": 1.0, **_LAID}, _BLOCKED
        ),
        KernelKind(
            "avgpool",
            _avgpool,
            ("HW", "output", "Cin"),
            {"kernel": 0.0, "stride": 0.0, "batch": 1.0, **_LAID},
            _BLOCKED,
        ),
        KernelKind("global_pool", _global_pool, ("HW", "Cin"), {"op": 0.0, "batch": 1.0, **_LAID}, _BLOCKED),
        KernelKind("batchnorm", _batchnorm, ("HW", "Cin"), {"batch": 1.0, "fused": 0.0, **_LAID}, _BLOCKED),
        KernelKind("activation", _elements, ("elements", "op"), {"fused": 0.0, "reorder": 0.0}, ("op",)),
        # `elements`: of the result. `broadcast`: how many times the smaller operand is read over; 0: same shapes.
        KernelKind(
            "elementwise", _elementwise, ("elements", "op"), {"inputs": 2.0, "broadcast": 0.0, "reorder": 0.0}, ("op",)
        ),
        KernelKind("concat", _elements, ("elements", "inputs"), _LAID, _BLOCKED),
        # A power of a sum for each element: ten times an addition, whatever the window.
        KernelKind("lrn", _elements, ("elements",), {"reorder": 0.0}),
        KernelKind("softmax", _rows, ("rows", "width")),
        KernelKind("layernorm", _rows, ("rows", "width")),
        # batch: heads × batch; rows of the query, columns of keys and values, width of a head.
        KernelKind("attention", _attention, ("batch", "rows", "columns", "width", "FLOPs")),
        # Whatever costs by the bytes it moves.
        KernelKind("move", _elements, ("elements", "op"), {"reorder": 0.0}, ("op",)),
        # Anything else; never calibrated, so it is priced by FLOPs and bytes.
        KernelKind("other", _elements, ("elements", "FLOPs")),
    )
}


def op_index(kind: str, op: str) -> float:
    """The number that column ``op`` has for this ONNX operator in `kind`; −1 for one that is not in its list."""
    ops = OPS[kind]
    return float(ops.index(op)) if op in ops else -1.0
