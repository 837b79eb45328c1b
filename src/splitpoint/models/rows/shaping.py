"""Operators on sizes: their numbers, as far as they follow. Of rows, `moving` and `computing` tell. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from splitpoint.models.dataflow import onnx
from splitpoint.models.rows.moving import total
from splitpoint.models.rows.step import (
    MOST,
    MOST_ENTRIES,
    SAME,
    Mixes,
    Rule,
    Size,
    Step,
    Value,
    Vector,
    numbers_of,
    unknown,
    within,
)

WHOLE = (6, 7)  # int32 and int64, TensorProto.DataType


def shape(step: Step) -> Sequence[Value]:
    dims = step.dims(0)
    return [Vector(tuple(dims[step.integer("start", 0) : step.integer("end", len(dims))]))]


def size_of(step: Step) -> Sequence[Value]:
    return [Vector((total(step.dims(0)),), scalar=True)]


def lookup(step: Step) -> Sequence[Value]:
    """Gather."""
    if not isinstance(step.known.get(step.node.input[0]), Vector):
        raise Mixes("looks up in the batch what the batch says")
    entries, index = step.vector(0).entries, step.vector(1)
    picked = tuple(entries[within(i, len(entries))] for i in step.integers(1))
    return [Vector(picked, index.scalar)]


def cut(step: Step) -> Sequence[Value]:
    """Slice."""
    if not isinstance(step.known.get(step.node.input[0]), Vector):
        raise Mixes("needs the batch in its input 0")
    if step.attribute("starts") is not None:
        (first,), (last,) = step.attribute("starts"), step.attribute("ends")  # type: ignore[misc]
        by = 1
    else:
        (first,), (last,) = step.integers(1), step.integers(2)
        (by,) = step.integers(4) if step.given(4) else (1,)
    return [Vector(step.vector(0).entries[first:last:by])]


def joined(step: Step) -> Sequence[Value]:
    """Concat."""
    entries = [e for i in step.inputs for e in step.vector(i).entries]
    if len(entries) > MOST_ENTRIES:
        raise Mixes("joins too many sizes")
    return [Vector(tuple(entries))]


def identity(step: Step) -> Sequence[Value]:
    return [step.vector(0)]


def squeezed(step: Step) -> Sequence[Value]:
    entries = step.vector(0).entries
    if len(entries) != 1:
        raise Mixes("has sizes in a shape that is not understood")
    return [Vector(entries, scalar=True)]


def unsqueezed(step: Step) -> Sequence[Value]:
    vector = step.vector(0)
    if not vector.scalar or len(step.axes(1) or ()) != 1:
        raise Mixes("has sizes in two dimensions")
    return [Vector(vector.entries)]


def reshaped(step: Step) -> Sequence[Value]:
    target = step.integers(1)
    if len(target) > 1:
        raise Mixes("has sizes in two dimensions")
    return [Vector(step.vector(0).entries, not target)]


def cast(step: Step) -> Sequence[Value]:
    if step.integer("to", 0) not in WHOLE:
        raise Mixes("computes with the size of the batch")
    vector = step.vector(0)
    # What is not known may be a fraction, and what is large wraps around: it may be another number afterwards.
    kept = [e if e is None or (e.counts and abs(e.factor) < MOST) else unknown() for e in vector.entries]
    return [Vector(tuple(kept), vector.scalar)]


def arithmetic(of: Callable[[Size, Size], Size | None]) -> Rule:
    """An operator that makes of two sizes what `of` says."""

    def rule(step: Step) -> Sequence[Value]:
        a, b = step.vector(0), step.vector(1)
        sizes: list[Size | None] = []
        for x, y in aligned(a.entries, b.entries):
            size = None if x is None or y is None else of(x, y)
            # Without the rows in it, it is some number that is the same for every batch.
            free = all(e is not None and not e.rows for e in (x, y))
            sizes.append(unknown() if size is None and free else size)
        return [Vector(tuple(sizes), a.scalar and b.scalar)]

    return rule


def aligned(*vectors: Sequence[Any]) -> Iterator[Any]:
    """Their entries side by side: one that has a single entry has it beside all of the others."""
    count = max(map(len, vectors))
    if not all(len(v) in (1, count) for v in vectors):
        raise Mixes("has sizes that do not fit")
    return zip(*((tuple(v) * count)[:count] for v in vectors), strict=True)


def summed(sign: int) -> Callable[[Size, Size], Size | None]:
    def of(a: Size, b: Size) -> Size | None:
        factor = a.factor + sign * b.factor
        if (a.names, a.rows) == (b.names, b.rows) and abs(factor) < MOST:
            return Size(factor, a.names, a.rows)
        return a if b == Size(0) else None

    return of


def same_size(a: Size, b: Size) -> Size | None:
    if a == b:
        return Size(1)
    if not (a.names or a.rows or b.names or b.rows):
        return Size(0)
    low, high = (a, b) if a.factor < 0 else (b, a)
    apart = low.factor < 0 and not low.names and not low.rows and high.factor > 0 and high.counts
    return Size(0) if apart else None


def chosen(step: Step) -> Sequence[Value]:
    """Where."""
    picks = aligned(step.integers(0), step.vector(1).entries, step.vector(2).entries)
    return [Vector(tuple(x if pick else y for pick, x, y in picks))]


def multiplied(step: Step) -> Sequence[Value]:
    """ReduceProd."""
    entries = step.vector(0).entries
    if any(e is None for e in entries) or step.integer("noop_with_empty_axes", 0):
        raise Mixes("multiplies sizes in a way that is not understood")
    return [Vector((total([e for e in entries if e is not None]),), not step.integer("keepdims", 1))]


def constant(step: Step) -> Sequence[Value]:
    """Constant."""
    for name in ("value", "value_int", "value_ints"):
        if (given := step.attribute(name)) is not None:
            array = onnx.numpy_helper.to_array(given) if name == "value" else np.asarray(given, np.int64)
            if array.size > MOST_ENTRIES:
                break
            step.constants[step.node.output[0]] = array
            return [numbers_of(array)]
    return [SAME]
