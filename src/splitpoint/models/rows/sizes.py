"""Sizes as products, and small vectors of them: what a graph computes of shapes, as far as it follows. Pure.

A graph that was exported with a free batch reshapes by what it has read of a shape: Shape → Gather → Concat → Reshape.
To know that such a reshape keeps the rows of a batch apart, its numbers must be known as multiples of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

_numbers = count()


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

    def times(self, other: Size) -> Size | None:
        """The product; None if that is no `Size`: the rows squared."""
        if self.rows and other.rows:
            return None
        return Size(self.factor * other.factor, tuple(sorted(self.names + other.names)), self.rows or other.rows)

    def over(self, other: Size) -> Size | None:
        """The quotient, if it is whole whatever the names stand for."""
        if other.factor == 0 or self.factor % other.factor or (other.rows and not self.rows):
            return None
        names = list(self.names)
        for name in other.names:
            if name not in names:
                return None
            names.remove(name)
        return Size(self.factor // other.factor, tuple(names), self.rows and not other.rows)


def unknown() -> Size:
    """A size that nothing else is known to equal, and that has nothing to do with the rows."""
    return Size(1, (f"?{next(_numbers)}",))


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
