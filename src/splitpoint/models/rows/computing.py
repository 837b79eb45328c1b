"""Operators that compute. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from splitpoint.models.rows.sizes import Size, Vector
from splitpoint.models.rows.step import SAME, Mixes, RowAxis, Step, Value, within


def broadcast(step: Step, inputs: Sequence[int]) -> RowAxis:
    """The result of `inputs`, aligned at their last axes as NumPy does."""
    inputs = [i for i in inputs if step.given(i)]
    rank = max(step.rank(i) for i in inputs)
    places = {(step.rank(i) - v.axis, v.each) for i in inputs if isinstance(v := step.value(i), RowAxis)}
    if len(places) != 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    ((place, each),) = places
    for i in inputs:
        value = step.value(i)
        if isinstance(value, Vector):
            raise Mixes("computes with the size of the batch")
        if value == SAME and step.rank(i) >= place and step.shape(i)[-place] != 1:
            raise Mixes(f"has a constant, {step.node.input[i]}, along the batch")
    return RowAxis(rank - place, each)


def elementwise(step: Step) -> Sequence[Value]:
    return step.all(broadcast(step, range(len(step.node.input))))


def unary(step: Step) -> Sequence[Value]:
    """The first input, each element by itself."""
    return step.all(step.rows(0))


def cast_like(step: Step) -> Sequence[Value]:
    return [step.rows(0)]


def quantised_pair(step: Step) -> Sequence[Value]:
    """QLinearAdd and its like: A and B, each with a scale and a zero point, and those of the result."""
    step.same(1, 2, 4, 5, 6, 7)
    scalars(step, 1, 2, 4, 5, 6, 7)
    return [broadcast(step, (0, 3))]


def scalars(step: Step, *inputs: int) -> None:
    for i in inputs:
        if step.given(i) and any(d != 1 for d in step.shape(i)):
            raise Mixes("has more than one scale")


def quantised_one(step: Step) -> Sequence[Value]:
    step.same_after(1)
    scalars(step, *range(1, len(step.node.input)))
    return [step.rows(0)]


def items(step: Step) -> Sequence[Value]:
    """Images and their like: the first axis is the batch, whatever else is done."""
    rows = step.rows(0)
    step.same_after(1)
    if rows.axis:
        raise Mixes("has the batch along another axis than the first")
    if len([o for o in step.node.output if o]) > 1:
        raise Mixes("has an output that counts through the batch")
    return step.all(rows)


def batch_normalization(step: Step) -> Sequence[Value]:
    if step.integer("training_mode", 0):
        raise Mixes("is in training mode")
    return items(step)


def grid_sample(step: Step) -> Sequence[Value]:
    if step.rows(0) != step.rows(1) or step.rows(0).axis:
        raise Mixes("samples across the batch")
    return [step.rows(0)]


def gemm(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same(1)
    if rows.axis != (1 if step.integer("transA", 0) else 0):
        raise Mixes("sums over the batch")
    result = RowAxis(0, rows.each)
    if step.given(2):
        added(step, 2, result, 2)
    return [result]


def added(step: Step, i: int, result: RowAxis, rank: int) -> None:
    """Input `i` is added to `result`."""
    value, place = step.value(i), rank - result.axis
    if value == SAME:
        fits = step.rank(i) < place or step.shape(i)[-place] == 1
    else:
        fits = isinstance(value, RowAxis) and step.rank(i) - value.axis == place and value.each == result.each
    if not fits:
        raise Mixes(f"adds {step.node.input[i]} along the batch")


def product(step: Step, a: int, b: int) -> Sequence[Value]:
    """A matrix product of inputs `a` and `b`, of two axes or more each."""
    ranks = step.rank(a), step.rank(b)
    if min(ranks) < 2:
        raise Mixes("is a product with a vector")
    rank = max(ranks)
    left, right = step.value(a), step.value(b)
    places = set()
    for value, own, summed, other in ((left, ranks[0], 1, b), (right, ranks[1], 2, a)):
        if isinstance(value, Vector):
            raise Mixes("computes with the size of the batch")
        if not isinstance(value, RowAxis):
            continue
        place = own - value.axis
        if place == summed:
            raise Mixes("sums over the batch")
        against = step.value(other)
        if place > 2:  # among the axes over which products are repeated
            if against == SAME and step.rank(other) >= place and step.shape(other)[-place] != 1:
                raise Mixes(f"has a constant, {step.node.input[other]}, along the batch")
        elif isinstance(against, RowAxis):
            raise Mixes("multiplies every row of the batch by every other")
        places.add((place, value.each))
    if len(places) != 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    ((place, each),) = places
    return step.all(RowAxis(rank - place, each))


def matmul(step: Step) -> Sequence[Value]:
    return product(step, 0, 1)


def matmul_integer(step: Step) -> Sequence[Value]:
    step.same(2, 3)
    scalars(step, 2)
    return product(step, 0, 1)


def qlinear_matmul(step: Step) -> Sequence[Value]:
    step.same(1, 2, 4, 5, 6, 7)
    scalars(step, 1, 2, 6, 7)
    return product(step, 0, 3)


def matmul_nbits(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same_after(1)
    if rows.axis == step.rank(0) - 1:
        raise Mixes("sums over the batch")
    return [rows]


def softmax(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    # Before operator set 13 it flattens to two dimensions, and normalises the second.
    apart = step.axis(-1) != rows.axis if step.opset >= 13 else rows.axis < step.axis(1)
    if not apart:
        raise Mixes("normalises over the batch")
    return [rows]


def along_the_last(step: Step) -> Sequence[Value]:
    """What works along one axis, by default the last."""
    rows = step.rows(0)
    step.same_after(1)
    if step.axis(-1) == rows.axis:
        raise Mixes("works along the batch")
    return step.all(rows)


def layer_normalization(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same_after(1)
    if rows.axis >= step.axis(-1):
        raise Mixes("normalises over the batch")
    return step.all(rows)


def skip_layer_normalization(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    if step.rows(1) != rows or step.rank(1) != step.rank(0) or rows.axis >= step.rank(0) - 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    step.same_after(2)
    if len([o for o in step.node.output if o]) > 1:
        raise Mixes("has more outputs than one")
    return [rows]


def mean_variance(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    if rows.axis in {within(a, step.rank(0)) for a in step.axes(1) or (0, 2, 3)}:
        raise Mixes("normalises over the batch")
    return [rows]


def reduction(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    listed = step.axes(1)
    if not listed:
        if step.integer("noop_with_empty_axes", 0):
            return [rows]
        raise Mixes("reduces over the batch")
    axes = {within(a, rank) for a in listed}
    return [reduced(step, rows, axes)]


def reduced(step: Step, rows: RowAxis, axes: set[int]) -> RowAxis:
    if rows.axis in axes:
        raise Mixes("reduces over the batch")
    keep = step.integer("keepdims", 1)
    return rows if keep else RowAxis(rows.axis - sum(a < rows.axis for a in axes), rows.each)


def arg(step: Step) -> Sequence[Value]:
    return [reduced(step, step.rows(0), {step.axis(0)})]


def cumulative(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    (axis,) = step.integers(1)
    if within(axis, step.rank(0)) == rows.axis:
        raise Mixes("adds up along the batch")
    return [rows]


def triangle(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same(1)
    if rows.axis >= step.rank(0) - 2:
        raise Mixes("cuts a triangle through the batch")
    return [rows]


def scaled(step: Step) -> Sequence[Value]:
    """QuantizeLinear, DequantizeLinear."""
    rows = step.rows(0)
    step.same_after(1)
    if step.integer("block_size", 0):
        raise Mixes("has scales for blocks")
    if any(d != 1 for d in step.shape(1)) and (step.rank(1) != 1 or step.axis(1) == rows.axis):
        raise Mixes("has a scale for each row of the batch")
    return [rows]


def one_hot(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    step.same(1, 2)
    at = within(step.integer("axis", -1), step.rank(0) + 1)
    return [RowAxis(rows.axis + (at <= rows.axis), rows.each)]


def einsum(step: Step) -> Sequence[Value]:
    equation = step.attribute("equation", b"")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in text or len(terms) != len(step.node.input) or len(set(right)) < len(right):
        raise Mixes("has an equation that is not understood")
    letters: set[tuple[str, Size]] = set()
    for i, term in enumerate(terms):
        if len(set(term)) < len(term) or len(term) != step.rank(i):
            raise Mixes("has an equation that is not understood")
        value = step.value(i)
        if isinstance(value, RowAxis):
            letters.add((term[value.axis], value.each))
        elif value != SAME:
            raise Mixes("computes with the size of the batch")
    if len(letters) != 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    ((letter, each),) = letters
    for i, term in enumerate(terms):
        if letter in term and not isinstance(step.value(i), RowAxis):
            raise Mixes(f"has a constant, {step.node.input[i]}, along the batch")
    if any(term.index(letter) != v.axis for i, term in enumerate(terms) if isinstance(v := step.value(i), RowAxis)):
        raise Mixes("joins tensors in which the batch lies along different axes")
    if letter not in right:
        raise Mixes("sums over the batch")
    return [RowAxis(right.index(letter), each)]


def recurrent(step: Step) -> Sequence[Value]:
    rows, first = step.rows(0), bool(step.integer("layout", 0))
    at = 0 if first else 1
    step.same(1, 2, 3, 7)
    if rows.axis != at:
        raise Mixes("steps along the batch")
    for i, axis in ((4, 0), (5, at), (6, at)):
        if step.given(i) and step.value(i) != RowAxis(axis, rows.each):
            raise Mixes(f"begins with a state, {step.node.input[i]}, that is not a row for a row")
    return [RowAxis(0 if first else (2 if i == 0 else 1), rows.each) for i in range(len(step.node.output))]
