"""The first seed's experiment as rows: one a split point, and the picture of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from splitpoint.errors import UsageError
from splitpoint.files import read_text
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.report.files import as_written, bare, picture, write_csv
from splitpoint.report.table import Column, number_columns
from splitpoint.runtime.result import Result
from splitpoint.text import end_of
from splitpoint.trace import DEVICE, OTHERS, STAGES
from splitpoint.units import ms, size


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A split point's averages over `n` requests, in seconds on the device's clock.

    The first five columns are the seed's. `avg_compute`: head and encoding on the device. `avg_transfer`: from the
    finished frame to its last byte at the server, whose clock is mapped onto the device's, off by `clock_error` at
    most. `avg_recv`: from then to the whole answer. The three follow each other without a gap. `avg_queue` and
    `avg_server_compute` are in `avg_recv`: the stages ``queue`` and ``server`` of `splitpoint.trace`.
    """

    split_layer: str
    avg_compute: float
    avg_transfer: float
    avg_recv: float
    avg_rtt: float
    avg_queue: float
    avg_server_compute: float
    p50_rtt: float
    p95_rtt: float
    clock_error: float
    crossing_bytes: int
    bytes_up: int
    bytes_down: int
    crossing: str
    cut: str
    nodes: int
    n: int
    setup: str
    model: str
    fingerprint: str
    codec: str = ""
    """What each tensor of `crossing` travelled with, in order; empty in the files of earlier versions: raw."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Means of `splitpoint.trace.OTHERS`, each a column of its own."""

    @property
    def identity(self) -> tuple[int, str, str]:
        """What tells a cut from every other one of its model."""
        return self.nodes, self.split_layer, self.crossing

    def flat(self) -> dict[str, Any]:
        """The row by `COLUMNS`."""
        return {name: getattr(self, name) for name in _FIELDS} | self.numbers


_FIELDS = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(SweepRow)[:-1]}
COLUMNS: Sequence[str] = (*_FIELDS, *OTHERS)
#: How many of these every file has; earlier versions lack some of the others.
_OLDEST = 20
#: A sweep of 5,000 cuts has 2 MB.
_MOST_BYTES = 64 << 20


def sweep_row(cut: Cut, results: Sequence[Result], setup: str, model: Model) -> SweepRow:
    """The row of a cut from the results of its requests. `avg_rtt` is exactly the sum of the three averages before it.

    `setup` says what was measured how (engine, server, inputs): rows of different ones do not compare.
    """
    spent = [r.numbers for r in results]
    totals = [s["total"] - s["decode"] for s in spent]
    compute = fmean(sum(s[name] for name in DEVICE) for s in spent) / 1e3
    transfer = fmean(r.trace.ms("up") for r in results) / 1e3
    later = [name for name in STAGES if name not in ("decode", *DEVICE, "net")]
    recv = fmean(sum(s[name] for name in later) + r.trace.ms("down") for s, r in zip(spent, results, strict=True)) / 1e3
    percentiles = quantiles(totals, n=20, method="inclusive") if len(totals) > 1 else totals * 19
    codecs = results[0].codecs
    return SweepRow(
        split_layer=cut.name,
        avg_compute=compute,
        avg_transfer=transfer,
        avg_recv=recv,
        avg_rtt=compute + transfer + recv,
        avg_queue=fmean(s["queue"] for s in spent) / 1e3,
        avg_server_compute=fmean(s["server"] for s in spent) / 1e3,
        p50_rtt=percentiles[9] / 1e3,
        p95_rtt=percentiles[18] / 1e3,
        clock_error=max(r.clock_error_ms or 0.0 for r in results) / 1e3,
        crossing_bytes=cut.nbytes,
        bytes_up=results[0].up_nbytes,
        bytes_down=results[0].down_nbytes,
        crossing=" ".join(t.name for t in cut.crossing),
        cut="" if cut.index is None else str(cut.index),
        nodes=len(cut.nodes),
        n=len(results),
        setup=setup,
        model=model.name,
        fingerprint=model.fingerprint,
        codec=" ".join(codecs.get(t.name, "raw") for t in cut.crossing),
        numbers={name: fmean(s[name] for s in spent) for name in OTHERS},
    )


def _seconds(title: str, field: str, *, keep: bool = False) -> Column[SweepRow]:
    return Column(title, lambda r: ms(getattr(r, field) * 1e3), keep=keep)


TABLE: Sequence[Column[SweepRow]] = (
    Column("split after", lambda r: r.split_layer, right=False, keep=True),
    _seconds("device", "avg_compute", keep=True),
    _seconds("up", "avg_transfer", keep=True),
    _seconds("recv", "avg_recv", keep=True),
    _seconds("total", "avg_rtt", keep=True),
    _seconds("p50", "p50_rtt"),
    _seconds("p95", "p95_rtt"),
    _seconds("server", "avg_server_compute"),
    Column("bytes up", lambda r: size(r.bytes_up), keep=True),
    *number_columns(OTHERS, lambda r: r.numbers),
)


def write_rows(path: Path, rows: Sequence[SweepRow]) -> None:
    write_csv(path, [r.flat() for r in rows], COLUMNS)


def read_rows(path: Path) -> list[SweepRow]:
    """Rows of an earlier run. UsageError if the file is not one of ours, InputError if it cannot be read."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, _MOST_BYTES, "a sweep's CSV"), newline=""))
        titles = tuple(reader.fieldnames or ())
        if titles != COLUMNS[: max(_OLDEST, len(titles))]:
            raise UsageError(f"{path} is not a sweep's CSV: name another file with --csv")
        rows = [_row(line) for line in reader]
        if not all(0 <= v < inf for row in rows for v in row.flat().values() if not isinstance(v, str)):
            raise ValueError("a time or a size makes no sense")
        return rows
    except (csv.Error, ValueError, KeyError, TypeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not a sweep's CSV, or it is damaged: delete it or name another file") from exc


def _row(line: dict[str, str]) -> SweepRow:
    numbers = {name: float(value) for name in OTHERS if (value := line.pop(name, ""))}
    return SweepRow(**{k: _FIELDS[k](as_written(v)) for k, v in line.items()}, numbers=numbers)


#: Label → colour and seconds, bottom first; they add up to avg_rtt.
_BARS: Mapping[str, tuple[str, Callable[[SweepRow], float]]] = {
    "device compute": ("#4c78a8", lambda r: r.avg_compute),
    "uplink": ("#f58518", lambda r: r.avg_transfer),
    "server queue": ("#bab0ac", lambda r: r.avg_queue),
    "server compute": ("#54a24b", lambda r: r.avg_server_compute),
    "downlink": ("#e45756", lambda r: max(0.0, r.avg_recv - r.avg_queue - r.avg_server_compute)),
}


def draw(rows: Sequence[SweepRow], path: Path, title: str) -> None:
    """A PNG: stacked stages a cut in ms, crossing bytes on a second axis. MissingExtraError without matplotlib."""
    with picture(path, size=(max(8.0, 0.24 * len(rows) + 3), 6.0)) as (figure, [axes]):
        axes.set_title(title)
        _fill(figure, axes, rows)


def _fill(figure: Any, axes: Any, rows: Sequence[SweepRow]) -> None:
    places = range(len(rows))
    floor = [0.0] * len(rows)
    for label, (colour, seconds) in _BARS.items():
        values = [seconds(row) * 1e3 for row in rows]
        axes.bar(places, values, bottom=floor, width=0.85, label=label, color=colour)
        floor = [a + b for a, b in zip(floor, values, strict=True)]
    best = min(places, key=lambda i: rows[i].p50_rtt)
    side = "left" if best < len(rows) / 3 else "right" if best > len(rows) * 2 / 3 else "center"
    axes.annotate(
        f"fastest: {rows[best].split_layer}, median {rows[best].p50_rtt * 1e3:.1f} ms",
        (best, floor[best]), (best, max(floor) * 1.14), ha=side, fontsize=10, fontweight="bold",
        arrowprops={"arrowstyle": "->"},
    )  # fmt: skip
    axes.set_ylim(0, max(floor) * 1.22)
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylabel("mean milliseconds per request")
    axes.set_xlabel("split after layer")
    step = max(1, len(rows) // 60)
    axes.set_xticks(list(places)[::step], [end_of(r.split_layer, 26) for r in rows][::step], rotation=90, fontsize=7)
    sizes = axes.twinx()
    sizes.plot(places, [r.bytes_up / 1e3 for r in rows], color="black", marker=".", linewidth=1, label="bytes up")
    sizes.set_ylabel("kB on the uplink (line)")
    sizes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    more, names = sizes.get_legend_handles_labels()
    columns = 6 if len(rows) > 24 else 3
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for drawn in (axes, sizes):
        bare(drawn, "top")
