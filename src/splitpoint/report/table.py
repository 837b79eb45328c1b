"""Columns of a table: a title, and what a row shows under it.

>>> names = [Column("name", str.lower, right=False), Column("letters", lambda name: str(len(name)))]
>>> [[column.cell(name) for column in names] for name in ("Conv", "Gemm2")]
[['conv', '4'], ['gemm2', '5']]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, TypeVar

from splitpoint.trace import NUMBERS

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """`cell` is what a row shows. Where a terminal is narrow, columns that are not to `keep` go, the last one first."""

    title: str
    cell: Callable[[R], str]
    right: bool = True
    keep: bool = False


def number_columns(names: Iterable[str], of: Callable[[R], Mapping[str, float]]) -> list[Column[R]]:
    """A column for each of these numbers of `splitpoint.trace`; empty in a row that does not have it."""

    def column(name: str) -> Column[R]:
        return Column(name, lambda row: NUMBERS[name](value) if (value := of(row).get(name)) is not None else "")

    return [column(name) for name in names]


def fields_of(
    titles: Sequence[str], *, left: Collection[str] = (), keep: Collection[str] = ()
) -> list[Column[Sequence[str]]]:
    """Columns of rows that are cells already, in the order of `titles`; those in `left` begin at the left."""
    return [
        Column(title, itemgetter(place), right=title not in left, keep=title in keep)
        for place, title in enumerate(titles)
    ]
