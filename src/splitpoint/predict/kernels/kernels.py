"""A model → the kernels an engine will run, each with its kind and the columns that price it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from splitpoint.models.dataflow import Proto
from splitpoint.models.model import Model
from splitpoint.predict.kernels.fusing import Group, Wiring, groups_of
from splitpoint.predict.kernels.kernel_kinds import KINDS, OPS, op_index
from splitpoint.profile.costs import Floats
from splitpoint.tensors import ITEM_SIZES

#: Channels in a block (with AVX2; with AVX-512), and what a number of channels must be divisible by to be blocked.
_BLOCK, _WIDE_BLOCK, _ALIGNED = 8, 16, 4
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
#: Work on blocks where they get them.
_EITHER = frozenset(
    {"BatchNormalization", "Relu", "Clip", "Sigmoid",
     "HardSigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Erf", "Sqrt", "Neg", "Exp", "Identity", "Dropout"}
)  # fmt: skip
_RENAMES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
#: What tables price: other element types run other code, which is not measured.
_MEASURED = "float32"

Config = dict[str, float]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What an engine runs as one.

    `nodes` are indices into ``graph.nodes``, the one that names it first; `config` has a number for every column of its
    kind. Bytes are those it reads and writes outside itself and of its weights; `flops` counts a multiply-add as two.
    """

    kind: str
    nodes: tuple[int, ...]
    config: Mapping[str, float]
    in_nbytes: int
    out_nbytes: int
    weight_nbytes: int
    flops: int


def kernels_of(model: Model) -> tuple[Kernel, ...]:
    """The kernels of `model`, in the order of their last nodes; every placed node is in just one.

    >>> [k.kind for k in kernels_of(load("zoo:lenet5"))][-3:]
    ['linear', 'linear', 'linear']
    """
    wiring = Wiring(model)
    weights_mb = model.nbytes / 1e6
    groups = groups_of(wiring)
    narrow, wide = (_blocks(wiring, groups, block) for block in (_BLOCK, _WIDE_BLOCK))
    moved = _reordered(wiring, groups, *narrow)
    sides = [_WIDE_BLOCK if w else _BLOCK if n else 0 for n, w in zip(narrow[1], wide[1], strict=True)]
    return tuple(
        _kernel(wiring, group, {"weights_mb": weights_mb, "reorder": elements, "blocked": side})
        for group, elements, side in zip(groups, moved, sides, strict=True)
    )


def by_kind(kernels: Sequence[Kernel]) -> Iterator[tuple[str, list[int], dict[str, Floats]]]:
    """Each kind among `kernels`: its name, the places of its kernels, and one array a column."""
    places: dict[str, list[int]] = defaultdict(list)
    for k, kernel in enumerate(kernels):
        places[kernel.kind].append(k)
    for kind, at in places.items():
        yield kind, at, {c: np.array([kernels[k].config[c] for k in at], np.float64) for c in KINDS[kind].columns}


def _kernel(w: Wiring, group: Group, context: Config) -> Kernel:
    nodes = [w.graph.nodes[i] for i in group.nodes]
    inside = {t for n in nodes for t in n.outputs}
    read = dict.fromkeys(t for n in nodes for t in n.inputs if t not in inside and w.is_data(t))
    flops = sum(n.flops for n in nodes)
    kind, config = _described(w, group)
    return Kernel(
        kind,
        tuple(group.nodes),
        KINDS[kind].complete(config | context | {"FLOPs": flops}),
        sum(w.nbytes(t) for t in read),
        sum(w.nbytes(t) for t in w.leaving(group.nodes)),
        sum(n.params for n in nodes) * min(4, ITEM_SIZES.get(w.dtype(w.out(group.nodes[0])), 4)),
        flops,
    )


def _described(w: Wiring, group: Group) -> tuple[str, Config]:
    """Kind and columns of a group; what no table can price is `other`."""
    first = group.nodes[0]
    describe = _DESCRIBED.get(group.pattern or w.ops[first])
    if describe is not None and _plain(w, first, w.ops[first]) and (described := describe(w, group, first)):
        return described
    return "other", {"elements": _elements(w, group)}


def _plain(w: Wiring, i: int, op: str) -> bool:
    """Whether a node computes with ordinary floats, as what was measured did. What moves data may move any."""
    if op in OPS["move"] or op in ("Cast", "Concat"):
        return True
    if any(w.ops[m] == "DequantizeLinear" for t in w.reads[i] if (m := w.graph.producer.get(t, -1)) >= 0):
        return False
    return w.dtype(w.out(i)) in (_MEASURED, "bool")


def _elements(w: Wiring, group: Group) -> float:
    """How many numbers a group gives away, or makes."""
    return float(sum(w.elements(t) for t in w.leaving(group.nodes)) or w.elements(w.out(group.nodes[0])))


def _side(shape: tuple[int, ...]) -> float:
    """√(height · width) of a shape [batch, channels, …]."""
    return sqrt(prod(shape[2:]))


def _ints(node: Proto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == name), default)


# --- columns of each kind, by the first node of a group -------------------------------------------------------------

Described = tuple[str, Config] | None


def _conv(w: Wiring, group: Group, first: int) -> Described:
    node = w.protos[first]
    x, weight, y = (w.shape(t) for t in (node.input[0], node.input[1], w.out(first)))
    if len(x) not in (3, 4) or len(weight) != len(x) or not prod(y):
        return None
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    flat = len(x) - 2
    config: Config = {
        "HW": _side(x), "kernel": _side(weight), "stride": prod(_ints(node, "strides", (1,) * flat)) ** (1 / flat),
        "Cin": x[1], "Cout": y[1], "groups": groups, "out": _side(y), "fused": group.fused,
        "added": group.added, "batch": x[0], "act": 0 if not group.act else 1 if group.act == "Relu" else 2,
    }  # fmt: skip
    if groups == 1:
        return "conv", config
    return "dw_conv" if groups == x[1] == y[1] else "group_conv", config


def _product(w: Wiring, group: Group, first: int) -> Described:
    a, b = (w.shape(t) for t in w.reads[first][:2])
    y = w.shape(w.out(first))
    if not a or not b or not y:
        return None
    width = max(1, round(w.graph.nodes[first].flops / 2 / max(1, prod(y))))
    config: Config = {"in_features": width, "out_features": y[-1]}
    if len(w.data(first)) < 2:
        return "linear", config | {"rows": prod(y[:-1]), "fused": group.fused}
    return "matmul", config | {"rows": y[-2] if len(y) > 1 else 1, "batch": prod(y[:-2])}


def _pool(w: Wiring, group: Group, first: int) -> Described:
    node, x, y = w.protos[first], w.shape(w.reads[first][0]), w.shape(w.out(first))
    window = _ints(node, "kernel_shape", ())
    if len(x) not in (3, 4) or not window:
        return None
    flat = len(window)
    return "maxpool" if w.ops[first] == "MaxPool" else "avgpool", {
        "HW": _side(x), "kernel": sqrt(prod(window)), "Cin": x[1], "out": _side(y), "output": _side(y), "batch": x[0],
        "stride": prod(_ints(node, "strides", (1,) * flat)) ** (1 / flat),
    }  # fmt: skip


def _reduced(w: Wiring, group: Group, first: int) -> Described:
    """A mean over positions: of [batch, channels, height, width] over the last two, of tokens over their number."""
    x, y, op = w.shape(w.reads[first][0]), w.shape(w.out(first)), op_index("global_pool", w.ops[first])
    if len(x) == 4 and prod(y) == x[0] * x[1]:
        return "global_pool", {"HW": _side(x), "Cin": x[1], "batch": x[0], "op": op}
    if len(x) in (3, 4) and prod(y) == x[0] * x[-1]:
        return "global_pool", {"HW": sqrt(prod(x[1:-1])), "Cin": x[-1], "batch": x[0], "op": op}
    return None


def _batchnorm(w: Wiring, group: Group, first: int) -> Described:
    x = w.shape(w.reads[first][0])
    if len(x) < 2:
        return None
    return "batchnorm", {"HW": _side(x), "Cin": x[1], "batch": x[0], "fused": group.fused}


def _unary(w: Wiring, group: Group, first: int) -> Described:
    op = op_index("activation", group.pattern or w.ops[first])
    return "activation", {"elements": _elements(w, group), "op": op, "fused": group.fused}


def _elementwise(w: Wiring, group: Group, first: int) -> Described:
    elements = w.elements(w.out(first))
    sizes = [w.elements(t) for t in w.reads[first] if t]
    least = min((s for s in sizes if s > 1), default=elements)
    return "elementwise", {
        "elements": elements, "op": op_index("elementwise", w.ops[first]), "inputs": len(sizes),
        "broadcast": elements / least if least < elements else 0,
    }  # fmt: skip


def _concat(w: Wiring, group: Group, first: int) -> Described:
    return "concat", {"elements": w.elements(w.out(first)), "inputs": len([t for t in w.reads[first] if t])}


def _lrn(w: Wiring, group: Group, first: int) -> Described:
    return "lrn", {"elements": w.elements(w.out(first))}


def _softmax(w: Wiring, group: Group, first: int) -> Described:
    y = w.shape(w.out(first)) or (1,)
    return "softmax", {"rows": prod(y[:-1]), "width": y[-1]}


def _layernorm(w: Wiring, group: Group, first: int) -> Described:
    x = max((w.shape(t) for i in group.nodes for t in w.data(i)), key=prod, default=w.shape(w.out(first))) or (1,)
    return "layernorm", {"rows": prod(x[:-1]), "width": x[-1]}


def _attention(w: Wiring, group: Group, first: int) -> Described:
    if group.pattern:
        scores = w.shape(w.out(first))
        if len(scores) < 2:
            return None
        batch, rows, columns = prod(scores[:-2]), scores[-2], scores[-1]
        width = max(1, round(w.graph.nodes[first].flops / 2 / max(1, prod(scores))))
    else:
        q, k = (w.shape(t) for t in w.reads[first][:2])
        if len(q) != 4 or len(k) != 4:
            return None
        batch, rows, columns, width = q[0] * q[1], q[2], k[2], q[3]
    return "attention", {"batch": batch, "rows": rows, "columns": columns, "width": width}


def _move(w: Wiring, group: Group, first: int) -> Described:
    return "move", {"elements": _elements(w, group), "op": op_index("move", w.ops[first])}


_DESCRIBED: Mapping[str, Callable[[Wiring, Group, int], Described]] = {
    **dict.fromkeys(OPS["move"], _move),
    **dict.fromkeys(OPS["activation"], _unary),
    **dict.fromkeys(OPS["elementwise"], _elementwise),
    **dict.fromkeys(OPS["global_pool"], _reduced),
    "Conv": _conv, "MatMul": _product, "Gemm": _product, "MaxPool": _pool, "AveragePool": _pool,
    "BatchNormalization": _batchnorm, "Concat": _concat, "LRN": _lrn, "Softmax": _softmax, "LogSoftmax": _softmax,
    "LayerNormalization": _layernorm, "layernorm": _layernorm, "Attention": _attention, "attention": _attention,
}  # fmt: skip


# --- where an engine lays a tensor out anew ---------------------------------------------------------------------------


def _blocks(wiring: Wiring, groups: Sequence[Group], block: int) -> tuple[set[str], list[bool]]:
    """Tensors that are kept in blocks of so many channels, and of each group whether it works on such."""
    blocked: set[str] = set()
    blocks: list[bool] = []
    for group in groups:
        works = _works_on_blocks(wiring, group, blocked, block)
        blocks.append(works)
        if works and not any(wiring.ops[i] in _RENAMES for i in group.nodes):
            blocked.update(t for i in group.nodes for t in wiring.graph.nodes[i].outputs)
    return blocked, blocks


def _reordered(wiring: Wiring, groups: Sequence[Group], blocked: set[str], blocks: Sequence[bool]) -> list[int]:
    """How many elements are laid out anew behind each group.

    ONNX Runtime keeps what its convolutions work on in blocks of channels, and goes back to plain rows for operators
    that want those. That costs as much as a small kernel, and is counted to the one before it.
    """
    of = {i: k for k, group in enumerate(groups) for i in group.nodes}

    def changes(tensor: str, maker: int) -> bool:
        """Whether who reads `tensor` wants it laid out as its maker does not leave it."""
        readers = {of[u] for u in wiring.readers(tensor)} - {maker}
        if tensor in blocked:
            return tensor in wiring.results or any(not blocks[k] for k in readers)
        if blocks[maker]:  # renamed inside: it was laid out for that
            return True
        return any(blocks[k] and _lays_out(wiring, groups[k]) for k in readers)

    return [
        sum(wiring.elements(t) for t in wiring.leaving(group.nodes) if changes(t, k)) for k, group in enumerate(groups)
    ]


def _lays_out(w: Wiring, group: Group) -> bool:
    """Whether a pool or a convolution on blocks wants its input in blocks, too: a convolution with fewer channels than
    one block does not.
    """
    first = group.nodes[0]
    if w.ops[first] in _POOLS:
        return True
    weight = w.shape(w.reads[first][1]) if w.ops[first] == "Conv" else ()
    return bool(weight) and (weight[1] >= _BLOCK or w.shape(w.reads[first][0])[1] >= _BLOCK)


def _works_on_blocks(w: Wiring, group: Group, blocked: set[str], block: int) -> bool:
    first = group.nodes[0]
    op = w.ops[first]
    if op == "Conv":
        return _conv_blocks(w, first, block)
    data = w.data(first)
    if op in _POOLS:  # what it reads is laid out for it
        x = w.shape(w.reads[first][0])
        return len(x) == 4 and x[1] % block == 0
    if not data or not all(t in blocked for t in data):
        return False
    if op == "Concat":
        return all(w.shape(t)[1] % block == 0 for t in data)
    if op in ("Add", "Sum", "Mul"):
        return len(data) == len(w.reads[first]) == 2 and w.shape(data[0]) == w.shape(data[1])
    return op in _EITHER


def _conv_blocks(w: Wiring, i: int, block: int) -> bool:
    """ONNX Runtime's own conditions (NchwcTransformerImpl::TransformConv)."""
    x, weight = w.shape(w.reads[i][0]), w.shape(w.reads[i][1])
    if len(x) != 4 or len(weight) != 4:
        return False
    depth, filters = weight[1], weight[0]
    groups = max(1, x[1] // max(1, depth))
    if groups == 1:
        return depth < block or depth % _ALIGNED == 0
    if filters % _ALIGNED:
        return False
    return (depth == 1 and filters == groups) or (depth % block == 0 and filters // groups % block == 0)
