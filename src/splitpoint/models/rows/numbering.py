"""Rows that take from themselves by their own number, as exporters write pooling and masks. Pure.

Range(0, rows) numbers the rows; `numbers · size + place` are then places in a batch whose rows have `size` entries, and
those of row b are all in row b. Where that follows, looking them up keeps the rows apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitpoint.models.rows import moving, shaping
from splitpoint.models.rows.computing import elementwise, unary
from splitpoint.models.rows.step import Mixes, Numbers, RowAxis, Rule, Size, Step, Value


def numbered(step: Step) -> Sequence[Value]:
    """Range, up to the number of rows."""
    first, by, entry = step.integers(0), step.integers(2), step.vector(1).entries[0]
    if first != [0] or by != [1] or entry is None or entry.names or not entry.rows or entry.factor < 1:
        raise Mixes("counts by the size of the batch")
    return [Numbers(RowAxis(0, Size(entry.factor)), entry.factor, 0, entry.factor - 1)]


def refused(_: Step) -> Sequence[Value]:
    raise Mixes("uses the number of a row as a value")


def numbers_in(step: Step) -> list[Numbers | None]:
    """The inputs, where they are numbers of rows."""
    return [n if isinstance(n := step.known.get(name), Numbers) else None for name in step.node.input]


def moved(rule: Rule) -> Rule:
    """An operator that changes no number, and where they lie as `rule` says."""

    def either(step: Step) -> Sequence[Value]:
        own, (rows,) = numbers_in(step)[0], rule(step)
        if own is None or own.leads or not isinstance(rows, RowAxis):
            raise Mixes("uses the number of a row as a value")
        return [own._replace(rows=rows)]

    return either


def cast(step: Step) -> Sequence[Value]:
    if step.integer("to", 0) not in shaping.WHOLE:
        raise Mixes("uses the number of a row as a value")
    return unary(step)


def reckoned(step: Step) -> Sequence[Value]:
    """Numbers of rows and a constant, element by element."""
    (rows,) = elementwise(step)
    assert isinstance(rows, RowAxis)
    own = next(n for n in numbers_in(step) if n is not None)
    others = [name for n, name in zip(numbers_in(step), step.node.input, strict=True) if n is None]
    limits = step.limits(others[0]) if len(others) == 1 and len(step.node.input) == 2 else None
    if limits is not None and own.step and not own.leads:
        least, most = limits
        if step.node.op_type == "Add":
            return [Numbers(rows, own.step, own.low + least, own.high + most)]
        if step.node.op_type == "Mul" and least == most > 0:
            return [Numbers(rows, own.step * least, own.low * least, own.high * least)]
    return [Numbers(rows, 0)]


def joined(step: Step) -> Sequence[Value]:
    """Concat of a number and more to one index."""
    (own, *others), (rows,), last = numbers_in(step), moving.concat(step), step.rank(0) - 1
    if own is None or any(others) or own.leads or step.axis(0) != last or step.shape(0)[last] != 1:
        raise Mixes("uses the number of a row as a value")
    assert isinstance(rows, RowAxis)
    return [own._replace(rows=rows, leads=True)]


def taken(step: Step) -> Sequence[Value]:
    """Gather, GatherND: what a row takes is its own, if all its numbers are of its own entries."""
    data, (number, own) = step.rows(0), numbers_in(step)
    if number is not None or own is None or data.each != Size(own.step) or not 0 <= own.low <= own.high < own.step:
        raise Mixes("takes from the batch what is not known to be the row's own")
    axis = 0 if own.leads else step.axis(0)
    if axis != data.axis or own.leads != (step.node.op_type == "GatherND") or step.integer("batch_dims", 0):
        raise Mixes("takes from the batch what is not known to be the row's own")
    return [RowAxis(axis + own.rows.axis, own.rows.each)]


#: What may be done with numbers of rows, besides measuring them.
RULES: Mapping[str, Rule] = {
    "Add": reckoned,
    "Cast": moved(cast),
    "Concat": joined,
    "Expand": moved(moving.expand),
    "Gather": taken,
    "GatherND": taken,
    "Identity": moved(unary),
    "Max": reckoned,
    "Min": reckoned,
    "Mul": reckoned,
    "Reshape": moved(moving.reshape),
    "Squeeze": moved(moving.squeeze),
    "Transpose": moved(moving.transpose),
    "Unsqueeze": moved(moving.unsqueeze),
}
