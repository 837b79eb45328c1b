"""Where an engine lays a tensor out anew.

ONNX Runtime keeps what its convolutions work on in blocks of channels, and goes back to plain rows for operators that
want those. That costs as much as a small kernel, and is counted to the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitpoint.predict.kernels.fusing import Group, Wiring

#: Channels in a block (with AVX2; 16 with AVX-512), and what a number of channels must be divisible by to be blocked.
_BLOCK, _ALIGNED = 8, 4
#: Work on blocks where they get them.
_EITHER = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "Relu", "Clip", "Sigmoid",
     "HardSigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Erf", "Sqrt", "Neg", "Exp", "Identity", "Dropout"}
)  # fmt: skip
_RENAMES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def reordered(wiring: Wiring, groups: Sequence[Group]) -> list[int]:
    """How many elements are laid out anew behind each group."""
    of = {i: k for k, group in enumerate(groups) for i in group.nodes}
    blocked: set[str] = set()
    blocks: list[bool] = []
    for group in groups:
        works = _works_on_blocks(wiring, group, blocked)
        blocks.append(works)
        if works and not any(wiring.ops[i] in _RENAMES for i in group.nodes):
            blocked.update(t for i in group.nodes for t in wiring.graph.nodes[i].outputs)

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
    """Whether a convolution on blocks wants its input in blocks, too: with fewer channels than one it does not."""
    first = group.nodes[0]
    weight = w.shape(w.reads[first][1]) if w.ops[first] == "Conv" else ()
    return bool(weight) and (weight[1] >= _BLOCK or w.shape(w.reads[first][0])[1] >= _BLOCK)


def _works_on_blocks(w: Wiring, group: Group, blocked: set[str]) -> bool:
    first = group.nodes[0]
    op = w.ops[first]
    if op == "Conv":
        return _conv_blocks(w, first)
    data = w.data(first)
    if not data or not all(t in blocked for t in data):
        return False
    if op == "Concat":
        return all(w.shape(t)[1] % _BLOCK == 0 for t in data)
    if op in ("Add", "Mul"):
        return len(data) == 2 and w.shape(data[0]) == w.shape(data[1])
    return op in _EITHER


def _conv_blocks(w: Wiring, i: int) -> bool:
    """ONNX Runtime's own conditions (NchwcTransformerImpl::TransformConv)."""
    x, weight = w.shape(w.reads[i][0]), w.shape(w.reads[i][1])
    if len(x) != 4 or len(weight) != 4:
        return False
    depth, filters = weight[1], weight[0]
    groups = max(1, x[1] // max(1, depth))
    if groups == 1:
        return depth < _BLOCK or depth % _ALIGNED == 0
    if filters % _ALIGNED:
        return False
    return (depth == 1 and filters == groups) or (depth % _BLOCK == 0 and filters // groups % _BLOCK == 0)
