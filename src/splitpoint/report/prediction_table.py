"""A prediction as rows that fit a screen, and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from math import hypot

from splitpoint.predict.price.prediction import KernelCost, Prediction
from splitpoint.profile.profiles import Stat
from splitpoint.report.table import Column
from splitpoint.units import count, counted, fine_ms

#: Rows of the table; a network with more kernels is shown by its larger layers.
MOST_ROWS = 32


@dataclass(frozen=True, slots=True)
class PriceRow:
    """A kernel, or those of one layer: milliseconds it adds to the whole, between `low` and `high` four times in five.

    `share` is of the whole model. `calibrated` is False where some of it was priced by FLOPs and bytes alone.
    """

    layer: str
    kind: str
    ops: str
    kernels: int
    ms: float
    low_ms: float
    high_ms: float
    share: float
    calibrated: bool
    flops: int


COLUMNS: Sequence[str] = tuple(f.name for f in fields(PriceRow))


def kernel_rows(prediction: Prediction) -> list[PriceRow]:
    """A row a kernel, in the order they run."""
    return [_row(k.layer, [k], prediction) for k in prediction.kernels]


def layer_rows(prediction: Prediction, most: int = MOST_ROWS) -> list[PriceRow]:
    """At most about `most` rows in the order they run: a kernel each, or those of the deepest layers that are so few.

    Where paths are no help (a network without any), the longest ones, and a last row for all others.
    """
    rows = kernel_rows(prediction)
    if len(rows) <= most:
        return rows
    deepest = max(row.layer.count(".") for row in rows) + 1
    for depth in range(deepest, 0, -1):
        # Neighbours whose paths begin with the same names.
        groups = groupby(prediction.kernels, key=lambda k: k.layer.split(".")[:depth])
        layers = [_row(".".join(path), list(inside), prediction) for path, inside in groups]
        if len(layers) <= most:
            if len(layers) < most // 4:
                break  # one stage of everything says nothing
            return layers
    longest = sorted(range(len(rows)), key=lambda k: rows[k].ms, reverse=True)[: most - 1]
    others = [k for i, k in enumerate(prediction.kernels) if i not in set(longest)]
    return [*(rows[k] for k in sorted(longest)), _row(f"{len(others)} others", others, prediction)]


def _row(layer: str, inside: Sequence[KernelCost], prediction: Prediction) -> PriceRow:
    ms = _together([k.ms for k in inside])
    kinds = dict.fromkeys(k.kind for k in sorted(inside, key=lambda k: -k.ms.median))
    return PriceRow(
        layer=layer,
        kind=" ".join(kinds),
        ops=" ".join(op for k in inside for op in k.ops),
        kernels=len(inside),
        ms=round(ms.median, 5),
        low_ms=round(ms.p10, 5),
        high_ms=round(ms.p90, 5),
        share=round(ms.median / prediction.whole.median, 5) if prediction.whole.median > 0 else 0.0,
        calibrated=all(k.calibrated for k in inside),
        flops=sum(k.kernel.flops for k in inside),
    )


def _together(parts: Sequence[Stat]) -> Stat:
    """The sum of a few kernels: half of their errors taken as shared, which is what sums of strips show."""
    middle = sum(s.median for s in parts)
    below, above = ([s.median - s.p10 for s in parts], [s.p90 - s.median for s in parts])
    low, high = ((hypot(*side) + sum(side)) / 2 for side in (below, above))
    return Stat(middle, max(0.0, middle - low), middle + high, 0)


def between(low: float, high: float) -> str:
    """An interval: ``0.36…0.47``."""
    return f"{fine_ms(low)}…{fine_ms(high)}"


def kind_text(row: PriceRow, width: int = 22) -> str:
    """The kind of a kernel; of several, how many and those that take longest: ``4: conv dw_conv …``."""
    mark = "" if row.calibrated else " *"
    text = row.kind if row.kernels == 1 else f"{row.kernels}: {row.kind}"
    return (text if len(text) + len(mark) <= width else f"{text[: width - 1 - len(mark)].rstrip()}…") + mark


def uncalibrated_line(prediction: Prediction, most: int = 4) -> str:
    """Which operators were priced by FLOPs and bytes; empty if none was."""
    missing = prediction.uncalibrated
    if not missing:
        return ""
    parts = [f"{u.op} ({u.count}×, {u.share:.0%})" for u in missing[:most]]
    more = f" and {counted(len(missing) - most, 'other operator')}" if len(missing) > most else ""
    kernels, share = sum(u.count for u in missing), sum(u.share for u in missing)
    what = counted(kernels, "kernel")
    return f"* not calibrated, priced by FLOPs and bytes: {what}, {share:.0%} of the time: {', '.join(parts)}{more}"


TABLE: Sequence[Column[PriceRow]] = (
    Column("layer", lambda r: r.layer, right=False, keep=True),
    Column("kernel", kind_text, right=False, keep=True),
    Column("ms", lambda r: fine_ms(r.ms), keep=True),
    Column("8 of 10", lambda r: between(r.low_ms, r.high_ms), keep=True),
    Column("share", lambda r: f"{r.share:.0%}", keep=True),
    Column("FLOPs", lambda r: count(r.flops)),
)
