"""The honest table, run for real: what was predicted beside what was measured, as rows and as a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from splitpoint.planning.plans import Band, Option
from splitpoint.report.table import Column, number_columns
from splitpoint.runtime.result import Result
from splitpoint.trace import OTHERS, STAGES
from splitpoint.units import ms, size


class CompareRow(msgspec.Struct, frozen=True):
    """One option: predicted in `option.total`, and what `requests` real requests took (median, p10, p90; ms).

    `stages` are medians of `splitpoint.trace.NUMBERS` but the total, and of the spans ``up`` and ``down``, the two
    ways of ``net``.
    """

    option: Option
    measured: Band
    stages: dict[str, float]
    requests: int
    up_nbytes: int

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was measured: 0.1 is 10 % too slow."""
        return self.option.total.ms / self.measured.ms - 1


def compare_row(option: Option, results: Sequence[Result]) -> CompareRow:
    """The row of `option` from the results of its requests."""
    spent = [r.numbers | {way: r.trace.ms(way) for way in ("up", "down")} for r in results]
    low, middle, high = (float(q) for q in np.percentile([s["total"] for s in spent], (10, 50, 90)))
    stages = {name: float(np.median([s[name] for s in spent])) for name in (*STAGES, *OTHERS, "up", "down")}
    up = int(np.median([r.up_nbytes for r in results]))
    return CompareRow(option, Band(middle, low, high), stages, len(results), up)


TABLE: Sequence[Column[CompareRow]] = (
    Column("option", lambda r: r.option.label, right=False, keep=True),
    Column("predicted", lambda r: ms(r.option.total.ms), keep=True),
    Column("measured", lambda r: ms(r.measured.ms), keep=True),
    Column("p10…p90", lambda r: f"{ms(r.measured.low)}…{ms(r.measured.high)}"),
    Column("error", lambda r: f"{r.error:+.0%}", keep=True),
    *number_columns((*STAGES[1:], *OTHERS), lambda r: r.stages),  # inputs are read before: no ``decode``
    Column("bytes up", lambda r: size(r.up_nbytes)),
)


def verdict(rows: Sequence[CompareRow]) -> str:
    """Whether the planned option, the first one, was the fastest; and by how much not."""
    planned, fastest = rows[0], min(rows, key=lambda r: r.measured.ms)
    others = [r for r in rows if r is not planned]
    if planned is fastest:
        if not others:
            return f"planned and measured: {planned.option.label}, {ms(planned.measured.ms)} ms"
        second = min(others, key=lambda r: r.measured.ms)
        gain = 1 - planned.measured.ms / second.measured.ms
        if planned.measured.high >= second.measured.low:
            return (
                f"the plan is not refuted: {planned.option.label} is the fastest, but {second.option.label} is only "
                f"{gain:.0%} behind, within what requests vary by"
            )
        return f"the plan was right: {planned.option.label} is the fastest, {gain:.0%} before {second.option.label}"
    late = planned.measured.ms / fastest.measured.ms - 1
    near = planned.measured.low <= fastest.measured.high
    how = "within what requests vary by" if near else "more than requests vary by"
    return (
        f"planned: {planned.option.label}; fastest: {fastest.option.label}, "
        f"which the plan is {late:.1%} slower than ({how})"
    )
