"""How much memory a segment takes for inputs of given sizes, known before it runs; or that nobody can know it.

It can be known where every operator's work follows from the shapes it reads and makes, and every shape from those of
the segment's inputs. Where values decide (how often a loop turns, how long a Range is, what a NonZero finds), whoever
feeds the segment decides, and so it must be run where it can be ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from math import ceil, log2, prod
from typing import NamedTuple

import numpy as np

from splitpoint.models.dataflow import bodies, by_value, reads
from splitpoint.models.inference import inferred
from splitpoint.models.model import Segment
from splitpoint.models.operators import BY_SHAPE, CONTRIB_BY_SHAPE, WINDOWS
from splitpoint.tensors import ANY_RANK, ITEM_SIZES, Array, TensorSpec

#: Operators that take time and memory by the shapes they read and make, whatever the values are.
_BY_SHAPE = BY_SHAPE | WINDOWS | {
    "Bernoulli", "EyeLike", "MeanVarianceNormalization", "OneHot", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Resize", "ReverseSequence", "TopK", "Upsample",
}  # fmt: skip
#: Where values decide sizes by the inputs from this one on, or (Div, Mod) end the process: the least integer by −1.
_DECIDE_FROM = {
    "ConstantOfShape": 0, "Div": 1, "Expand": 1, "Mod": 1, "OneHot": 1, "Pad": 1, "Range": 0, "Reshape": 1,
    "Resize": 1, "Slice": 1, "Split": 1, "Squeeze": 1, "Tile": 1, "TopK": 1, "Unsqueeze": 1, "Upsample": 1,
}  # fmt: skip
#: What kernels hold besides what they read and make, in sizes of what they make: gates, and what is turned around.
_WITHIN = {"DynamicQuantizeLSTM": 8, "Einsum": 3, "GRU": 6, "LSTM": 8, "RNN": 3}
#: What an engine takes over the tensors themselves: channels are padded to whole vectors, and memory comes in powers of
#: two (LeNet-5, 20,000 rows: 0.75 GB of tensors at most at once, 1.6 GB resident).
_OVER = 2.0
#: More independent sizes than that are not told apart.
_MOST_FREE = 4
#: Sizes that a free dimension is tried with: 1 is broadcast, and says nothing of others.
_SIZES = (8, 16, 24)


class Work:
    """The memory of each tensor of a segment: so many bytes, times sizes of free dimensions to some power.

    >>> work = Work.of(load("zoo:lenet5").whole())
    >>> work.free, work.peak([(1, 32, 32, 1)]) < work.peak([(100, 32, 32, 1)]) / 90
    (('batch',), True)
    """

    def __init__(self, inputs: Sequence[TensorSpec], free: tuple[str, ...], rows: Sequence[_Row], nodes: int) -> None:
        self.inputs, self.free = tuple(inputs), free
        self._bytes = np.array([row.nbytes for row in rows], np.float64)
        self._powers = np.array([row.powers for row in rows], np.int64).reshape(len(rows), len(free))
        self._born = np.array([row.born for row in rows], np.int64)
        self._gone = np.array([row.last + 1 for row in rows], np.int64)
        self._nodes = nodes

    @classmethod
    def of(cls, segment: Segment) -> Work | None:
        """None where it does not follow from the shapes of the inputs."""
        graph = segment.proto.graph
        inputs = segment.inputs
        free = tuple(dict.fromkeys(d for t in inputs for d in t.shape if isinstance(d, str)))
        if len(free) > _MOST_FREE or any(t.shape == ANY_RANK for t in inputs) or _left_to_values(segment):
            return None
        rows = _rows(segment, free)
        return None if rows is None else cls(inputs, free, rows, len(graph.node))

    def peak(self, shapes: Iterable[Sequence[int]], times: int = 1) -> float:
        """About the most bytes that it holds at once, run node by node, for inputs of these shapes.

        `times`: as one batch of so many. What kernels need for one row besides is not in it.
        """
        return self._peak(np.array(self.sizes(shapes), np.float64) * times)

    @cached_property
    def least(self) -> float:
        """The same with every free dimension 1."""
        return self._peak(np.ones(len(self.free)))

    def sizes(self, shapes: Iterable[Sequence[int]]) -> list[int]:
        """How large each of the `free` dimensions is there."""
        sizes = dict.fromkeys(self.free, 0)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            for name, size in zip(spec.shape, shape, strict=True):
                if isinstance(name, str):  # the same name with two sizes is an engine's error, or is broadcast
                    sizes[name] = max(sizes[name], size)
        return [*sizes.values()]

    def _peak(self, sizes: Array) -> float:
        nbytes = self._bytes * np.prod(sizes**self._powers, axis=1)
        change = np.zeros(self._nodes + 2)
        np.add.at(change, self._born, nbytes)
        np.subtract.at(change, self._gone, nbytes)
        return _OVER * float(np.cumsum(change).max())


class _Row(NamedTuple):
    """One tensor: alive from its node to the last one that reads it."""

    nbytes: float
    powers: Sequence[int]
    born: int
    last: int


def _left_to_values(segment: Segment) -> bool:
    """Whether what is fed decides how much is computed, by more than its shapes."""
    graph = segment.proto.graph
    moving = {t.name for t in segment.inputs}
    for node, depends in zip(graph.node, by_value(graph), strict=True):
        known = _BY_SHAPE if node.domain in ("", "ai.onnx") else CONTRIB_BY_SHAPE
        if node.domain not in ("", "ai.onnx", "com.microsoft") or node.op_type not in known:
            return True
        if next(bodies(node), None) is not None:
            return True
        decides = _DECIDE_FROM.get(node.op_type, len(node.input))
        if any(t in moving for t in node.input[decides:]):
            made = segment.specs.get(node.output[0])
            if node.op_type not in ("Div", "Mod") or made is None or not made.dtype.startswith("float"):
                return True
        if depends:
            moving.update(o for o in node.output if o)
    return False


def _rows(segment: Segment, free: tuple[str, ...]) -> list[_Row] | None:
    """A row for every tensor that is fed or made; None if the size of one does not follow."""
    graph = segment.proto.graph
    last = {t: k for k, node in enumerate(graph.node) for t in reads(node)}
    last |= {o.name: len(graph.node) for o in graph.output}
    sizes = [(t.name, 0, 1) for t in segment.inputs]
    for k, node in enumerate(graph.node):
        more = _WITHIN.get(node.op_type, 0) + 1
        sizes += [(o, k, more) for o in node.output if o in last]
    specs = {n: s for n, s in segment.specs.items() if s.shape != ANY_RANK and s.dtype in ITEM_SIZES}
    plain = {n: _monomial(specs[n], free) for n, _, _ in sizes if n in specs}
    open_ = [n for n, _, _ in sizes if plain.get(n) is None]
    fitted = _fitted(segment, free, open_) if open_ else {}
    if fitted is None:
        return None
    rows = []
    for name, born, more in sizes:
        nbytes, powers = plain.get(name) or fitted[name]
        rows.append(_Row(nbytes * more, powers, born, max(born, last.get(name, born))))
    return rows


def _monomial(spec: TensorSpec, free: tuple[str, ...]) -> tuple[float, tuple[int, ...]] | None:
    """Its bytes as a number and a power of each of `free`; None if a dimension is none of these."""
    names = [d for d in spec.shape if isinstance(d, str)]
    if not set(names) <= set(free):
        return None
    fixed = prod(d for d in spec.shape if isinstance(d, int))
    return float(fixed * ITEM_SIZES[spec.dtype]), tuple(names.count(name) for name in free)


def _fitted(
    segment: Segment, free: tuple[str, ...], names: Sequence[str]
) -> dict[str, tuple[float, tuple[int, ...]]] | None:
    """The same for tensors whose dimensions are reckoned from those of the inputs, by what they are at some sizes.

    At least as many as there are: a sum is taken for a product. None if one is not known or grows in another way.
    """
    base, more, most = _SIZES
    at = [dict.fromkeys(free, base)]
    at += [{**at[0], name: more} for name in free]
    at.append(dict.fromkeys(free, most))
    probes = [inferred(segment.proto, [t.bind(sizes) for t in segment.inputs])[0] for sizes in at]
    fitted = {}
    for name in names:
        specs = [specs.get(name) for specs in probes]
        if any(s is None or not s.is_static or s.dtype not in ITEM_SIZES for s in specs):
            return None
        nbytes = [max(1, s.nbytes) for s in specs if s is not None]
        powers = tuple(max(0, ceil(log2(n / nbytes[0]) - 1e-9)) for n in nbytes[1:-1])
        grown = (prod(sizes[f] ** p for f, p in zip(free, powers, strict=True)) for sizes in at)
        each = [n / growth for n, growth in zip(nbytes, grown, strict=True)]
        if each[-1] > each[0] * (1 + 1e-9):
            return None
        fitted[name] = max(each), powers
    return fitted
