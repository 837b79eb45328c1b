"""How good predictions are, as tables' cells, CSV files and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from splitpoint.predict.accuracy import AccuracyRow, Errors, Judgement, PlanRow, errors_of, regrets
from splitpoint.predict.learn.latency_model import LatencyScore
from splitpoint.report.files import bare, picture, write_csv
from splitpoint.report.prediction_table import between
from splitpoint.report.table import fields_of
from splitpoint.units import fine_ms

#: Columns of `whole_cells` and of `kind_cells`.
WHOLES = fields_of(
    ("network", "measured ms", "predicted", "8 of 10", "error", "same speed", "corrected", "linear"),
    left=("network",), keep=("network", "measured ms", "predicted", "8 of 10", "error"),
)  # fmt: skip
KINDS = fields_of(
    ("kernels", "", "MAPE", "±5%", "±10%", "±20%", "in range", "linear MAPE"),
    left=("kernels",), keep=("kernels", "", "MAPE", "±5%", "±10%", "±20%", "in range"),
)  # fmt: skip


def whole_cells(judged: Judgement) -> list[tuple[str, ...]]:
    """A row a network, with the columns of `WHOLES`; what is not known of it is empty."""
    corrected, same = ({row.network: row for row in rows} for rows in (judged.corrected, judged.same_speed))
    return [
        (
            row.network,
            fine_ms(row.measured_ms),
            fine_ms(row.predicted_ms),
            between(row.low_ms, row.high_ms),
            signed(row.error),
            signed(same[row.network].error) if row.network in same else "",
            signed(corrected[row.network].error) if row.network in corrected else "",
            signed(row.linear_ms / row.measured_ms - 1),
        )
        for row in judged.wholes
    ]


def kind_cells(kinds: Mapping[str, Errors]) -> list[tuple[str, ...]]:
    """A row a kind, with the columns of `KINDS`."""
    return [(name, str(e.count), *rates(e), f"{e.linear:.0%}") for name, e in kinds.items()]


def rates(e: Errors | LatencyScore) -> tuple[str, ...]:
    """MAPE, hit rates, and how many lay in their interval."""
    return (f"{e.mape:.1%}", *(f"{share:.0%}" for share in (e.within5, e.within10, e.within20, e.covered)))


def signed(share: float) -> str:
    """An error with its sign: ``+4.2%``, ``-11%``."""
    digits = 0 if abs(share) >= 0.0995 else 1
    return f"{round(share, digits + 2) + 0.0:+.{digits}%}"  # no -0.0%


def sentences(judged: Judgement) -> list[str]:
    """What it comes to, a line each."""
    said = [_of_networks("whole networks", judged.wholes)] if judged.wholes else []
    if judged.speed is not None:
        said += [f"meanwhile {judged.speed}", _of_networks("whole networks at the same speed", judged.same_speed)]
    if judged.corrected:
        said.append(_of_networks("with a few of their cuts measured", judged.corrected))
    if judged.plans:
        middle, high, mean = regrets(judged.plans)
        worst = max(judged.plans, key=lambda r: r.regret)
        bad = sum(r.regret > 0.05 for r in judged.plans)
        said.append(
            f"{len(judged.plans)} plans made from predictions: median regret {middle:.1%}, mean {mean:.1%}, nine in "
            f"ten within {high:.1%}; {bad} above 5%, worst {worst.regret:.0%} ({worst.network}, {worst.link}, device "
            f"{worst.slowdown:g}x slower)"
        )
    return said


def _of_networks(what: str, rows: Sequence[AccuracyRow]) -> str:
    e = errors_of(rows)
    in5, in10, in20, covered = (round(share * e.count) for share in (e.within5, e.within10, e.within20, e.covered))
    return (
        f"{what}: MAPE {e.mape:.1%}; {in5}, {in10} and {in20} of {e.count} within 5, 10 and 20%; {covered} in their "
        f"interval; linear regression errs by {e.linear:.0%}"
    )


def write(folder: Path, judged: Judgement, title: str) -> list[Path]:
    """networks.csv, kernels.csv, plans.csv and, where matplotlib is, scatter.png; returns what was written."""
    written = [folder / name for name in ("networks.csv", "kernels.csv", "plans.csv")]
    write_csv(written[0], [_flat(r) for r in (*judged.wholes, *judged.same_speed, *judged.corrected)], _ROW)
    write_csv(written[1], [_flat(r) for r in judged.kernels], _ROW)
    write_csv(written[2], [asdict(r) | {"regret": round(r.regret, 5)} for r in judged.plans], _PLAN)
    if find_spec("matplotlib") is not None:
        written.append(folder / "scatter.png")
        draw(judged, written[-1], title)
    return written


_ROW: Sequence[str] = (*(f.name for f in fields(AccuracyRow)), "error")
_PLAN: Sequence[str] = (*(f.name for f in fields(PlanRow)), "regret")


def _flat(row: AccuracyRow) -> dict[str, Any]:
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(row).items()}
    return rounded | {"error": round(row.error, 5)}


#: Of the dots, the commonest kinds first.
_COLOURS: Sequence[str] = (
    "#4c78a8", "#72b7b2", "#f58518", "#54a24b", "#b279a2", "#eeca3b", "#e45756", "#9d755d", "#bab0ac",
)  # fmt: skip


def draw(judged: Judgement, path: Path, title: str) -> None:
    """A PNG: predicted against measured, logarithmic, with a ±10 % band. MissingExtraError without matplotlib."""
    filled = [rows for rows in (judged.kernels, judged.wholes) if rows]
    panels = max(1, len(filled))
    with picture(path, panels=panels, size=(6.4 * panels, 6.2)) as (figure, axes):
        for drawn, rows in zip(axes, filled, strict=False):
            _scatter(drawn, rows)
        figure.suptitle(title, fontsize=11)


def _scatter(axes: Any, rows: Sequence[AccuracyRow]) -> None:
    """One panel: dots by kind; networks with their intervals and names."""
    networks = rows[0].kind == "whole"
    kinds = sorted({r.kind for r in rows}, key=lambda k: -sum(r.kind == k for r in rows))
    for k, kind in enumerate(kinds):
        inside = [r for r in rows if r.kind == kind]
        x, y = [r.measured_ms for r in inside], [r.predicted_ms for r in inside]
        colour = _COLOURS[min(k, len(_COLOURS) - 1)]
        axes.plot(x, y, ".", color=colour, markersize=9 if networks else 4, alpha=0.9 if networks else 0.6, label=kind)
        if networks:
            low = [max(0.0, r.predicted_ms - r.low_ms) for r in inside]
            high = [max(0.0, r.high_ms - r.predicted_ms) for r in inside]
            axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
            for r in inside:
                axes.annotate(
                    r.network, (r.measured_ms, r.predicted_ms), (5, -3), textcoords="offset points", fontsize=7
                )
    ends = [min(r.measured_ms for r in rows) * 0.8, max(r.measured_ms for r in rows) * 1.25]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, [e * 0.9 for e in ends], [e * 1.1 for e in ends], color="black", alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms")
    e = errors_of(rows)
    what = "networks" if networks else "kernels"
    axes.set_title(f"{e.count} {what}: MAPE {e.mape:.1%}, {e.within10:.0%} within ±10 % (band)", fontsize=10)
    if not networks:
        axes.legend(frameon=False, fontsize=8, markerscale=2)
    bare(axes, "top", "right")
