"""Operators that compute. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from splitpoint.models.rows.step import ONE, SAME, Mixes, RowAxis, Rule, Size, Step, Value, within

T = TypeVar("T")


def one_place(places: Collection[T]) -> T:
    """Where the batch lies in all inputs that have it."""
    if len(places) != 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    (place,) = places
    return place


def broadcast(step: Step, inputs: Sequence[int]) -> RowAxis:
    """The result of `inputs`, aligned at their last axes as NumPy does."""
    inputs = [i for i in inputs if step.given(i)]
    rank = max(step.rank(i) for i in inputs)
    place, each = one_place({(step.rank(i) - v.axis, v.each) for i in inputs if isinstance(v := step.data(i), RowAxis)})
    for i in inputs:
        if step.value(i) == SAME and step.rank(i) >= place and step.shape(i)[-place] != 1:
            raise Mixes(f"has a constant, {step.node.input[i]}, along the batch")
    return RowAxis(rank - place, each)


def elementwise(step: Step) -> Sequence[Value]:
    return step.all(broadcast(step, step.inputs))


def unary(step: Step) -> Sequence[Value]:
    """The first input, each element by itself."""
    return step.all(step.rows(0))


def quantised(*places: int) -> Rule:
    """The QLinear operators: of the inputs at `places`, element by element; the others are scales and zero points."""

    def rule(step: Step) -> Sequence[Value]:
        step.scales(*(i for i in step.inputs if i not in places))
        return [broadcast(step, places)]

    return rule


def stretched(step: Step, *inputs: int) -> RowAxis:
    """`inputs` broadcast to input 0, and it not to them: an engine would, and what is known of shapes is that of 0."""
    rows = broadcast(step, (0, *inputs))
    for i in inputs:
        pairs = zip(reversed(step.shape(i)), reversed(step.shape(0)), strict=False)
        if step.given(i) and (step.rank(i) > step.rank(0) or any(d not in (1, whole) for d, whole in pairs)):
            raise Mixes(f"has an input {step.node.input[i]} that is larger than what it is for")
    return rows


def prelu(step: Step) -> Sequence[Value]:
    return [stretched(step, 1)]


def items(step: Step) -> Sequence[Value]:
    """Images and their like: the first axis is the batch, whatever else is done."""
    rows = step.rows(0)
    step.same_after(1)
    if rows.axis:
        raise Mixes("has the batch along another axis than the first")
    if step.several:
        raise Mixes("has an output that counts through the batch")
    return step.all(rows)


def batch_normalization(step: Step) -> Sequence[Value]:
    if step.integer("training_mode", 0):
        raise Mixes("is in training mode")
    return items(step)


def examples(*own: int, same: Sequence[int] = ()) -> Rule:
    """What is defined for examples along the first axis of all inputs in `own`, of two axes or more, and one output.

    Those in `same` are the same for all, and there are no others.
    """

    def rule(step: Step) -> Sequence[Value]:
        rows = step.rows(0)
        step.same(*same)
        for i in step.inputs:
            if step.given(i) and i not in same and (i not in own or step.value(i) != rows or step.rank(i) < 2):
                raise Mixes(f"has an input {step.node.input[i]} that is not known to be a row for a row")
        if rows.axis or step.several:
            raise Mixes("has the batch along another axis than the first, or more outputs than one")
        return [rows]

    return rule


def table(step: Step) -> Sequence[Value]:
    """ai.onnx.ml: an example in each row of a table."""
    rows = step.rows(0)
    if rows != RowAxis(0, ONE) or step.rank(0) != 2 or len(step.node.input) > 1:
        raise Mixes("is not used on a table of rows")
    return step.all(rows)


def gemm(step: Step, b: int = 1, c: int = 2) -> Sequence[Value]:
    """Input 0 times input `b`, which is the same for every batch, plus input `c`."""
    rows = step.rows(0)
    step.same(b)
    if rows.axis != (1 if step.integer("transA", 0) else 0):
        raise Mixes("sums over the batch")
    result = RowAxis(0, rows.each)
    if step.given(c):
        alike = step.rank(c) < 2 or step.shape(c)[-2] == 1
        if not (alike if step.value(c) == SAME else step.rank(c) == 2 and step.value(c) == result):
            raise Mixes(f"adds {step.node.input[c]} along the batch")
    return [result]


def quantised_gemm(step: Step) -> Sequence[Value]:
    step.same(4, 5)
    step.scales(1, 2, 7, 8)
    return gemm(step, 3, 6)


def matmul(step: Step, a: int = 0, b: int = 1, turned: tuple[int, int] = (0, 0)) -> Sequence[Value]:
    """A matrix product of inputs `a` and `b`, of two axes or more; if one is `turned`, its last two are exchanged."""
    if min(step.rank(a), step.rank(b)) < 2:
        raise Mixes("is a product with a vector")
    places = set()
    for i, summed, other, turn in ((a, 1, b, turned[0]), (b, 2, a, turned[1])):
        value = step.data(i)
        if not isinstance(value, RowAxis):
            continue
        place = step.rank(i) - value.axis
        if turn and place < 3:
            place = 3 - place
        if place == summed:
            raise Mixes("sums over the batch")
        against = step.value(other)
        if place > 2:  # among the axes over which products are repeated
            if against == SAME and step.rank(other) >= place and step.shape(other)[-place] != 1:
                raise Mixes(f"has a constant, {step.node.input[other]}, along the batch")
        elif isinstance(against, RowAxis):
            raise Mixes("multiplies every row of the batch by every other")
        places.add((place, value.each))
    place, each = one_place(places)
    return step.all(RowAxis(max(step.rank(a), step.rank(b)) - place, each))


def fused_matmul(step: Step) -> Sequence[Value]:
    if step.integer("transBatchA", 0) or step.integer("transBatchB", 0):
        raise Mixes("turns the axes of a batch")
    return matmul(step, turned=(step.integer("transA", 0), step.integer("transB", 0)))


def matmul_integer(step: Step) -> Sequence[Value]:
    step.same(3)
    step.scales(2, *columns(step, 1, 3))
    return matmul(step)


def qlinear_matmul(step: Step) -> Sequence[Value]:
    step.same(4, 5)
    step.scales(1, 2, 6, 7, *columns(step, 3, 4, 5))
    return matmul(step, 0, 3)


def columns(step: Step, i: int, *inputs: int) -> Sequence[int]:
    """Those of `inputs` that must be one number: their numbers are for columns of input `i`, which could be rows."""
    return () if step.value(i) == SAME else inputs


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


def quantised_softmax(step: Step) -> Sequence[Value]:
    """Along one axis, or all from it on."""
    rows = step.rows(0)
    step.scales(*step.inputs[1:])
    if rows.axis >= step.axis(-1):
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
    stretched(step, *step.inputs[1:])  # a scale can have the batch's axis, too
    return step.all(rows)


def skip_layer_normalization(step: Step) -> Sequence[Value]:
    rows = step.rows(0)
    if step.rows(1) != rows or step.rank(1) != step.rank(0) or rows.axis >= step.rank(0) - 1:
        raise Mixes("joins tensors in which the batch lies along different axes")
    step.same_after(2)
    if step.several:
        raise Mixes("has more outputs than one")
    return [rows]


def mean_variance(step: Step) -> Sequence[Value]:
    rows, listed = step.rows(0), step.axes(1)
    axes = {within(a, step.rank(0)) for a in ((0, 2, 3) if listed is None else listed)}
    if rows.axis in axes or not axes:
        raise Mixes("normalises over the batch")
    return [rows]


def reduction(step: Step) -> Sequence[Value]:
    rows, rank = step.rows(0), step.rank(0)
    listed = step.axes(1)
    if not listed:
        if step.integer("noop_with_empty_axes", 0):
            return [rows]
        raise Mixes("reduces over the batch")
    return [reduced(step, rows, {within(a, rank) for a in listed})]


def reduced(step: Step, rows: RowAxis, axes: set[int]) -> RowAxis:
    if rows.axis in axes:
        raise Mixes("reduces over the batch")
    return rows if step.integer("keepdims", 1) else without(rows, axes)


def without(rows: RowAxis, axes: set[int]) -> RowAxis:
    """Where the rows lie when these other axes are dropped."""
    return RowAxis(rows.axis - sum(a < rows.axis for a in axes), rows.each)


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
    for i in (1, 2) if step.given(2) else (1,):
        if any(d != 1 for d in step.shape(i)) and (step.rank(i) != 1 or step.axis(1) == rows.axis):
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
        if isinstance(value := step.data(i), RowAxis):
            letters.add((term[value.axis], value.each))
    letter, each = one_place(letters)
    for i, term in enumerate(terms):
        if letter in term and not isinstance(step.value(i), RowAxis):
            raise Mixes(f"has a constant, {step.node.input[i]}, along the batch")
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
