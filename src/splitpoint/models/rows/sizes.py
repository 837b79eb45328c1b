"""Sizes as products, and small vectors of them: what a graph computes of shapes, as far as it follows. Pure.

A graph that was exported with a free batch reshapes by what it has read of a shape: Shape → Gather → Concat → Reshape.
To know that such a reshape keeps the rows of a batch apart, its numbers must be known as multiples of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

_numbers = count()
#: An engine's whole numbers wrap around: whatever arithmetic takes beyond this is not followed.
MOST = 2**31
_MOST_NAMES = 4
_UNKNOWN = "?"


class Size(NamedTuple):
    """`factor` × the sizes named in `names`, × the number of rows if `rows`.

    >>> print(Size(4, ("seq",), True))
    4·seq·rows
    """

    factor: int
    names: tuple[str, ...] = ()
    rows: bool = False

    def __str__(self) -> str:
        return "·".join([str(self.factor), *self.names, *["rows"] * self.rows])

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
    """What is known of a tensor of whole numbers: per entry its `Size`, or None where it may depend on the rows in
    another way. `scalar` says that it has no dimension."""

    entries: tuple[Size | None, ...]
    scalar: bool = False

    @property
    def free(self) -> bool:
        """Whether it is the same for every number of rows."""
        return all(e is not None and not e.rows for e in self.entries)
