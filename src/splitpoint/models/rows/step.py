"""A node of a graph as the rules here read it, and what is known of the tensors it reads: rows, and sizes. Pure.

A graph that was exported with a free batch reshapes by what it has read of a shape: Shape → Gather → Concat → Reshape.
To know that such a reshape keeps the rows of a batch apart, its numbers must be known as multiples of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from splitpoint.models.dataflow import Proto, onnx
from splitpoint.tensors import Array

_numbers = count()
#: An engine's whole numbers wrap around: whatever arithmetic takes beyond this is not followed.
MOST = 2**31
_MOST_NAMES = 4
_UNKNOWN = "?"


class Size(NamedTuple):
    """`factor` × the sizes named in `names`, × the number of rows if `rows`."""

    factor: int
    names: tuple[str, ...] = ()
    rows: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is a count of something, or a multiple of one: nothing in it could be below zero or a fraction."""
        return not any(name.startswith(_UNKNOWN) for name in self.names)

    def times(self, other: Size) -> Size | None:
        """The product; None if that is no `Size` (the rows squared), or could be too large for an engine."""
        factor, names = self.factor * other.factor, self.names + other.names
        if (self.rows and other.rows) or abs(factor) >= MOST or len(names) > _MOST_NAMES:
            return None
        return Size(factor, tuple(sorted(names)), self.rows or other.rows)

    def over(self, other: Size) -> Size | None:
        """The quotient, if it is whole whatever the names stand for."""
        if other.factor == 0 or self.factor % other.factor or (other.rows and not self.rows) or not other.counts:
            return None
        names = list(self.names)
        for name in other.names:
            if name not in names:
                return None
            names.remove(name)
        return Size(self.factor // other.factor, tuple(names), self.rows and not other.rows)


def named(dim: str) -> Size:
    """The size of a free dimension."""
    return Size(1, (f"={dim}",))  # no name in a file is one of `unknown`


def unknown() -> Size:
    """A number that nothing else is known to equal, and that has nothing to do with the rows."""
    return Size(1, (f"{_UNKNOWN}{next(_numbers)}",))


@dataclass(frozen=True)
class Vector:
    """Whole numbers that may shape tensors, and nothing else: per entry its `Size`, or None where it may depend on the
    rows in another way. `scalar` says that it has no dimension."""

    entries: tuple[Size | None, ...]
    scalar: bool = False

    @property
    def free(self) -> bool:
        """Whether it is the same for every number of rows."""
        return all(e is not None and not e.rows for e in self.entries)


ONE = Size(1)
#: Of a constant or a shape, this many numbers are looked at.
MOST_ENTRIES = 64


class RowAxis(NamedTuple):
    """Along `axis` lie the rows, one after the other, `each` entries a row; no other dimension depends on how many."""

    axis: int
    each: Size


class Same(NamedTuple):
    """The same for every batch: weights, and what is made of them and of sizes other than the batch's."""


class Numbers(NamedTuple):
    """Whole numbers, by which each row may take from itself, and nothing else. They lie as `rows`: for row b they are
    `step`·b + c, with `low` ≤ c ≤ `high` the same in all rows.

    With `step` 0 they are some other numbers, of which only the shape is good for anything. If it `leads`, they are the
    first of each index along the last axis, and the others there are not numbers of rows.
    """

    rows: RowAxis
    step: int
    low: int = 0
    high: int = 0
    leads: bool = False


SAME = Same()
Value = RowAxis | Same | Vector | Numbers


class Mixes(Exception):
    """Why the rows of a batch do not stay apart, or why that is not known."""


def numbers_of(array: Array) -> Value:
    if array.dtype.name not in ("bool", "int32", "int64") or array.ndim > 1:  # sizes; others wrap around much earlier
        return SAME
    return Vector(tuple(Size(int(n)) for n in array.reshape(-1)), array.ndim == 0)


@dataclass
class Step:
    """A node, and what is known of what it reads."""

    node: Proto
    known: Mapping[str, Value]
    shapes: Mapping[str, tuple[int | str, ...]]
    constants: dict[str, Array]
    opset: int
    #: The least and the largest of the whole numbers in the weight of a name; None where that is not known.
    limits: Callable[[str], tuple[int, int] | None]

    @property
    def inputs(self) -> range:
        """The places of the inputs."""
        return range(len(self.node.input))

    def attribute(self, name: str, default: object = None) -> object:
        return next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)

    def integer(self, name: str, default: int) -> int:
        value = self.attribute(name, default)
        if not isinstance(value, int):
            raise Mixes(f"has an attribute {name} that is no whole number")
        return value

    def given(self, i: int) -> bool:
        return i < len(self.node.input) and bool(self.node.input[i])

    def value(self, i: int) -> Value:
        """What input `i` is; one that is left out is the same for every batch, and so are sizes without the rows.

        Numbers of rows are rows: only operators that may have them (`numbering`) get that far.
        """
        value = self.known[self.node.input[i]] if self.given(i) else SAME
        if isinstance(value, Numbers):
            return value.rows
        return SAME if isinstance(value, Vector) and value.free else value

    def data(self, i: int) -> RowAxis | Same:
        """What input `i` is, which must not be sizes with the rows in them."""
        value = self.value(i)
        if not isinstance(value, RowAxis | Same):
            raise Mixes("computes with the size of the batch")
        return value

    def rows(self, i: int) -> RowAxis:
        value = self.value(i)
        if not isinstance(value, RowAxis):
            raise Mixes(f"needs the batch in its input {i}")
        return value

    def same(self, *inputs: int) -> None:
        """Input i must be the same for every batch."""
        for i in inputs:
            if self.value(i) != SAME:
                raise Mixes(f"takes numbers from the batch, or its size, in its input {i}")

    def scales(self, *inputs: int) -> None:
        """Input i must be one number, the same for every batch."""
        self.same(*inputs)
        for i in inputs:
            if self.given(i) and any(d != 1 for d in self.shape(i)):
                raise Mixes("has more than one scale")

    def same_after(self, i: int) -> None:
        self.same(*self.inputs[i:])

    def shape(self, i: int) -> tuple[int | str, ...]:
        shape = self.shapes.get(self.node.input[i])
        if shape is None:
            raise Mixes(f"has an input {self.node.input[i]} of unknown shape")
        return shape

    def rank(self, i: int) -> int:
        return len(self.shape(i))

    def dims(self, i: int) -> list[Size]:
        """The sizes of input `i`."""
        value = self.value(i)
        dims = [Size(d) if isinstance(d, int) else named(d) for d in self.shape(i)]
        if isinstance(value, RowAxis):
            dims[value.axis] = value.each._replace(rows=True)
        return dims

    def vector(self, i: int) -> Vector:
        """The whole numbers in input `i`."""
        value = self.known[self.node.input[i]] if self.given(i) else SAME
        if isinstance(value, Vector):
            return value
        shape = self.shapes.get(self.node.input[i]) if value == SAME and self.given(i) else None
        if shape is None or len(shape) > 1 or not all(isinstance(d, int) and d <= MOST_ENTRIES for d in shape):
            raise Mixes(f"has a shape in its input {i} that is not understood")
        return Vector(tuple(unknown() for _ in range(int(shape[0]) if shape else 1)), not shape)

    def integers(self, i: int) -> list[int]:
        """Input `i`, where its numbers are known."""
        numbers = []
        for entry in self.vector(i).entries:
            if entry is None or entry.names or entry.rows:
                raise Mixes(f"has numbers in its input {i} that are not known")
            numbers.append(entry.factor)
        return numbers

    def axes(self, i: int) -> list[int] | None:
        """Axes, from the attribute or, in newer operator sets, input `i`; None if there are none."""
        listed = self.attribute("axes")
        if listed is not None:
            return [int(a) for a in listed]  # type: ignore[attr-defined]
        return self.integers(i) if self.given(i) else None

    def axis(self, default: int, i: int = 0) -> int:
        return within(self.integer("axis", default), self.rank(i))

    @property
    def several(self) -> bool:
        """Whether it has more outputs than one."""
        return sum(map(bool, self.node.output)) > 1

    def all(self, value: Value) -> list[Value]:
        return [value] * len(self.node.output)


def within(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Mixes(f"has an axis {axis} of {rank}")
    return axis % rank


#: From a node to what its outputs are. `Mixes` if the rows do not stay apart, or that is not known.
Rule = Callable[[Step], Sequence[Value]]
