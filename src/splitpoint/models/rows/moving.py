"""Operators that move elements, cut and join. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from splitpoint.models.rows.computing import without
from splitpoint.models.rows.step import ONE, SAME, Mixes, RowAxis, Size, Step, Value, Vector, within

#: Where a Slice that takes all of an axis ends, or beyond.
_TO_THE_END = 2**31 - 1


def transpose(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    order = step.attribute("perm")
    axes = list(order) if order is not None else list(range(rank))[::-1]  # type: ignore[call-overload]
    return [RowAxis(axes.index(rows.axis), rows.each)]


def flatten(step: Step) -> Sequence[Value]:
    rows, at = step.rows(0), step.integer("axis", 1)
    at = at + step.rank(0) if at < 0 else at
    if rows.axis or at < 1:
        raise Mixes("flattens the batch with what is around it")
    return [RowAxis(0, over_rows(total(step.dims(0)[:at])))]


def total(sizes: Sequence[Size]) -> Size:
    total = reduce(lambda a, b: a.times(b) if a is not None else None, sizes, ONE)  # type: ignore[arg-type,return-value]
    if total is None:
        raise Mixes("has the batch along two axes, or sizes beyond all measure")
    return total


def over_rows(size: Size) -> Size:
    return size._replace(rows=False)


def reshape(step: Step) -> Sequence[Value]:
    """Rows that lie one after the other in memory are cut or joined within themselves."""
    rows, dims = step.rows(0), step.dims(0)
    target = [copied(e, k, dims, step) for k, e in enumerate(step.vector(1).entries)]
    before = dims[: rows.axis]
    if all(d == ONE for d in before):
        at = next((k for k, e in enumerate(target) if e != ONE), 0)
    elif target[: rows.axis] == before:
        at = rows.axis
    else:
        raise Mixes("reshapes the batch with what is around it")
    others = [e for k, e in enumerate(target) if k != at]
    if at >= len(target) or any(e.rows for e in others):
        raise Mixes("reshapes the batch in a way that is not understood")
    entry = target[at]
    if entry == Size(-1):
        if any(e == Size(-1) for e in others):
            raise Mixes("leaves two sizes open")
        after = total(target[at + 1 :])
        size = total(dims[rows.axis :]).over(after) if after.factor > 0 else None
        if size is None or not size.rows:
            raise Mixes("reshapes to a size that is not known to be the batch's")
        entry = size
    if not entry.rows or entry.factor < 1:
        raise Mixes("gives the batch a size of its own")
    return [RowAxis(at, over_rows(entry))]


def copied(entry: Size | None, k: int, dims: Sequence[Size], step: Step) -> Size:
    if entry is None or (entry.factor < 0 and entry != Size(-1)):
        raise Mixes("reshapes to a size that is not understood")
    if entry.factor == 0 and not entry.rows:
        if step.integer("allowzero", 0) or k >= len(dims):
            raise Mixes("reshapes to nothing")
        return dims[k]
    return entry


def squeeze(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    listed = step.axes(1)
    if listed is None:
        raise Mixes("drops every axis of one, and a batch can be one")
    axes = {within(a, step.rank(0)) for a in listed}
    if rows.axis in axes:
        raise Mixes("drops the batch")
    return [without(rows, axes)]


def unsqueeze(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    listed = step.axes(1)
    if listed is None:
        raise Mixes("has no axes")
    rank = step.rank(0) + len(listed)
    new = {within(a, rank) for a in listed}
    old = [a for a in range(rank) if a not in new]
    return [RowAxis(old[rows.axis], rows.each)]


def concat(step: Step, places: Sequence[int] = ()) -> Sequence[Value]:
    """Of the inputs at `places`: all, if none are named."""
    places = places or step.inputs
    rows = step.rows(places[0])
    if {step.value(i) for i in places} != {rows} or step.axis(0, places[0]) == rows.axis:
        raise Mixes("joins tensors along the batch, or with one that has none")
    return [rows]


def quantised_concat(step: Step) -> Sequence[Value]:
    """A scale and a zero point of what is made, then tensors with one of each."""
    places = step.inputs[2::3]
    step.scales(*(i for i in step.inputs if i not in places))
    return concat(step, places)


def sliced(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    starts = step.attribute("starts")
    if starts is not None:  # operator sets before 10
        ends = step.attribute("ends")
        axes = step.attribute("axes", range(len(starts)))  # type: ignore[arg-type]
        listed = [(a, s, e, 1) for a, s, e in zip(axes, starts, ends, strict=True)]  # type: ignore[call-overload]
    else:
        firsts, lasts = step.vector(1), step.vector(2)
        numbers = step.integers(3) if step.given(3) else list(range(len(firsts.entries)))
        steps = step.vector(4) if step.given(4) else Vector((ONE,) * len(numbers))
        if not all(v.free for v in (firsts, lasts, steps)):
            raise Mixes("cuts by the size of the batch")
        listed = list(zip(numbers, *map(plain, (firsts, lasts, steps)), strict=True))
    for axis, first, last, by in listed:
        if within(axis, rank) == rows.axis and not (first == 0 and by == 1 and (last or 0) >= _TO_THE_END):
            raise Mixes("takes some of the batch")
    return [rows]


def plain(vector: Vector) -> list[int | None]:
    return [e.factor if e is not None and not e.names and not e.rows else None for e in vector.entries]


def split(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same(1)
    if step.axis(0) == rows.axis:
        raise Mixes("splits the batch")
    return step.all(rows)


def pad(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    pads = step.attribute("pads")
    if pads is not None:  # operator sets before 11
        numbers: list[int | None] = list(pads)  # type: ignore[call-overload]
        axes = list(range(rank))
    else:
        step.same(2)
        vector = step.vector(1)
        if not vector.free:
            raise Mixes("pads by the size of the batch")
        numbers = plain(vector)
        axes = [within(a, rank) for a in step.integers(3)] if step.given(3) else list(range(rank))
    if len(numbers) != 2 * len(axes):
        raise Mixes("has pads that are not understood")
    for k, axis in enumerate(axes):
        if axis == rows.axis and (numbers[k], numbers[k + len(axes)]) != (0, 0):
            raise Mixes("pads the batch")
    return [rows]


def gather(step: Step) -> Sequence[Value]:
    data, index = step.value(0), step.value(1)
    axis = step.axis(0)
    if isinstance(data, RowAxis) and index == SAME:
        if axis == data.axis:
            raise Mixes("takes some of the batch")
        return [RowAxis(data.axis + (step.rank(1) - 1 if axis < data.axis else 0), data.each)]
    if data == SAME and isinstance(index, RowAxis):
        return [RowAxis(axis + index.axis, index.each)]
    raise Mixes("looks up in the batch what the batch says")


def gather_nd(step: Step) -> Sequence[Value]:
    data, index, shared = step.value(0), step.value(1), step.integer("batch_dims", 0)
    if not isinstance(index, RowAxis) or index.axis == step.rank(1) - 1:
        raise Mixes("looks up in the batch what is not a row's own")
    if data == SAME and not shared:
        return [index]
    if data != index or index.axis >= shared:
        raise Mixes("looks up in the batch what is not a row's own")
    return [index]


def by_elements(step: Step) -> Sequence[Value]:
    """GatherElements, ScatterElements: each row's own places, in its own entries."""
    rows = step.rows(0)
    if {step.value(i) for i in step.inputs} != {rows} or step.axis(0) == rows.axis:
        raise Mixes("looks up across the batch")
    return [rows]


def expand(step: Step) -> Sequence[Value]:
    sizes = step.vector(1).entries
    value, rank = step.value(0), step.rank(0)
    more = max(0, len(sizes) - rank)
    target = (ONE,) * (rank - len(sizes)) + sizes
    if isinstance(value, RowAxis):
        place = value.axis + more
        others = (e for k, e in enumerate(target) if k != place)
        if target[place] not in (ONE, value.each._replace(rows=True)) or any(e is None or e.rows for e in others):
            raise Mixes("expands the batch")
        return [RowAxis(place, value.each)]
    step.same(0)
    return [filled(step, target, (1,) * more + step.shape(0))]


def filled(step: Step, sizes: Sequence[Size | None], repeated: Sequence[int | str] = ()) -> RowAxis:
    """What is the same in every row, in a tensor of these sizes: a tensor of as many axes, `repeated`, or a number."""
    open_places = [k for k, e in enumerate(sizes) if e is None or e.rows]
    entry = sizes[open_places[0]] if len(open_places) == 1 else None
    if entry is None or entry.factor < 1:
        raise Mixes("makes something of the batch's size that is not understood")
    if repeated and repeated[open_places[0]] != 1:
        raise Mixes(f"repeats {step.node.input[0]} along the batch")
    return RowAxis(open_places[0], over_rows(entry))


def tile(step: Step) -> Sequence[Value]:
    repeats = step.vector(1).entries
    value = step.value(0)
    if isinstance(value, RowAxis):
        if any(e is None or e.rows for e in repeats) or repeats[value.axis] != ONE:
            raise Mixes("repeats the batch")
        return [value]
    step.same(0)
    return [filled(step, repeats, step.shape(0))]


def constant_of_shape(step: Step) -> Sequence[Value]:
    return [filled(step, step.vector(0).entries)]


def resize(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    upsample = step.node.op_type == "Upsample" or len(step.node.input) == 2
    scales, sizes = (1, 9) if upsample else (2, 3)
    if step.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise Mixes("keeps the proportions of the batch too")
    # The one crops by a region, the other is half an entry off even where the scale is one.
    if step.attribute("coordinate_transformation_mode", b"") in (b"tf_crop_and_resize", b"tf_half_pixel_for_nn"):
        raise Mixes("resizes in a way that can move the rows of the batch")
    if not upsample:
        step.same(1)
    listed = step.attribute("axes")
    axes = [within(int(a), rank) for a in listed] if listed is not None else list(range(rank))  # type: ignore[attr-defined]
    if rows.axis not in axes:
        step.same_after(1)
        return [rows]
    k = axes.index(rows.axis)
    if step.given(sizes):
        entries = step.vector(sizes).entries
        own = rows.each._replace(rows=True)
        if entries[k] != own or any(e is None or (e.rows and j != k) for j, e in enumerate(entries)):
            raise Mixes("resizes the batch")
        return [rows]
    known = step.constants.get(step.node.input[scales]) if step.given(scales) else None
    if known is None:
        given = step.attribute("scales")
        known = np.asarray(given) if given is not None else None
    if known is None or len(known) != len(axes) or float(known[k]) != 1.0:
        raise Mixes("resizes the batch, or by what is not known")
    return [rows]
