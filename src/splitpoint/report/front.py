"""The Pareto front of a plan: milliseconds, bytes and agreement, as CSV and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitpoint.planning.plans import UNSENT, Option, Plan
from splitpoint.report.files import bare, picture, write_csv
from splitpoint.units import size

#: Of the CSV file, in order. `agreement` and `not_below` (95 % confidence) are shares; those of exact options are 1.
COLUMNS: Sequence[str] = (
    "option", "kind", "cut", "codecs", "ms", "up_bytes", "agreement", "not_below", "inputs", "sent"
)  # fmt: skip
_PICTURES = frozenset({".png", ".svg", ".pdf"})
#: Kind → (what the legend calls it, colour).
_COLOURS: Mapping[str, tuple[str, str]] = {
    "device": ("all on the edge", "#4c78a8"), "server": ("all on the server", "#e45756"),
    "jpeg": ("JPEG to the server", "#b279a2"), "opponent": ("another picture (priced only)", "#9d9d9d"),
    "split": ("split", "#54a24b"),
}  # fmt: skip


def write_front(plan: Plan, options: Sequence[Option], path: Path) -> None:
    """`options` (`Planner.front`) as CSV, or as a picture where the file's name says so. MissingExtraError without
    matplotlib, StorageError where it cannot be written."""
    if path.suffix.lower() in _PICTURES:
        _draw(plan, options, path)
    else:
        write_csv(path, [front_row(option) for option in options], COLUMNS)


def front_row(option: Option) -> dict[str, Any]:
    """An option by `COLUMNS`."""
    known = option.quality
    judged = known is not None and known.agreement is not None and not option.exact
    return {
        "option": option.label, "kind": option.kind, "cut": option.cut, "codecs": " ".join(option.codecs),
        "ms": round(option.total.ms, 3), "up_bytes": option.up_nbytes,
        "agreement": round(known.agreement or 0.0, 4) if judged and known else 1.0,
        "not_below": round(1 - known.bound, 4) if judged and known else 1.0,
        "inputs": known.inputs if judged and known else "", "sent": UNSENT not in option.refused,
    }  # fmt: skip


def _draw(plan: Plan, options: Sequence[Option], path: Path) -> None:
    rows = [front_row(option) for option in options]
    with picture(path, size=(9.0, 6.2)) as (figure, [axes]):
        for kind, (words, colour) in _COLOURS.items():
            mine = [r for r in rows if r["kind"] == kind]
            areas = [max(12.0, 2.0 * r["up_bytes"] ** 0.5) for r in mine]
            axes.scatter([r["ms"] for r in mine], [100 * r["agreement"] for r in mine], areas, colour, alpha=0.6)
            if mine:
                axes.scatter([], [], 60, colour, label=words)
        shown: list[tuple[float, float]] = []
        for row, option in zip(rows, options, strict=True):
            place = row["ms"], 100 * row["agreement"]
            if all(abs(place[0] / x - 1) > 0.08 or abs(place[1] - y) > 2 for x, y in shown if x):
                shown.append(place)
                name = f"{' + '.join(dict.fromkeys(option.codecs)) or 'edge'} {size(option.up_nbytes)}"
                axes.annotate(name, place, (5, 3), textcoords="offset points", fontsize=7.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel(f"milliseconds a request ({plan.link})")
        axes.set_ylabel("agreement with the uncut model, %")
        axes.set_title(f"{plan.model}: nothing is faster, smaller and more faithful (area: bytes up)", fontsize=10)
        bare(axes, "top", "right")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
