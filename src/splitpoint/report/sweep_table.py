"""The first seed's experiment as rows: one a split point, and the picture of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from splitpoint.errors import UsageError
from splitpoint.files import read_text
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.report.files import as_written, bare, picture, write_csv
from splitpoint.report.noise import median_interval
from splitpoint.report.table import Column, number_columns
from splitpoint.runtime.result import Result
from splitpoint.text import end_of
from splitpoint.trace import DEVICE, OTHERS, STAGES
from splitpoint.units import ms, size

#: Verdicts.
FASTEST, SLOWER = "fastest", "slower"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A split point's times over `n` requests, in seconds on the device's clock.

    Tables, pictures and the choice of the fastest read the medians (`p50_…`); the means (`avg_…`) are the seed's.
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
    p50_compute: float = 0.0
    p50_transfer: float = 0.0
    p50_recv: float = 0.0
    p50_queue: float = 0.0
    p50_server_compute: float = 0.0
    p50_low: float = 0.0
    p50_high: float = 0.0
    """Medians of what the columns of these names average, and between what `p50_rtt` lies; 0 in the files of earlier
    versions."""
    verdict: str = ""
    """`FASTEST` or `SLOWER`, if it has taken turns with all that may be the fastest: whether it can be told from it."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Medians of `splitpoint.trace.OTHERS`, each a column of its own."""

    @property
    def identity(self) -> tuple[int, str, str]:
        """What tells a cut from every other one of its model."""
        return self.nodes, self.split_layer, self.crossing

    @property
    def place(self) -> str:
        """Where it is cut, in words."""
        if not self.nodes:
            return "all on the server"
        return f"split after {self.split_layer}" if self.crossing else "all on the edge"

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
    """The row of a cut from the results of its requests, to the microsecond. `avg_rtt` is the sum of the three averages
    before it as they are written.

    `setup` says what was measured how (engine, server, inputs): rows of different ones do not compare.
    """
    spent = [r.numbers for r in results]
    totals = [s["total"] - s["decode"] for s in spent]
    later = [name for name in STAGES if name not in ("decode", *DEVICE, "net")]
    computes = [sum(s[name] for name in DEVICE) / 1e3 for s in spent]
    transfers = [r.trace.ms("up") / 1e3 for r in results]
    recvs = [(sum(s[name] for name in later) + r.trace.ms("down")) / 1e3 for s, r in zip(spent, results, strict=True)]
    compute, transfer, recv = (round(fmean(seconds), 6) for seconds in (computes, transfers, recvs))
    low, high = median_interval(totals)
    percentiles = quantiles(totals, n=20, method="inclusive") if len(totals) > 1 else totals * 19
    codecs = results[0].codecs
    row = SweepRow(
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
        p50_compute=median(computes),
        p50_transfer=median(transfers),
        p50_recv=median(recvs),
        p50_queue=median(s["queue"] for s in spent) / 1e3,
        p50_server_compute=median(s["server"] for s in spent) / 1e3,
        p50_low=low / 1e3,
        p50_high=high / 1e3,
        numbers={name: round(median(s[name] for s in spent), 6) for name in OTHERS},
    )
    return replace(row, **{name: round(getattr(row, name), 6) for name, kind in _FIELDS.items() if kind is float})


def _seconds(title: str, field: str, *, keep: bool = False) -> Column[SweepRow]:
    return Column(title, lambda r: ms(getattr(r, field) * 1e3), keep=keep)


TABLE: Sequence[Column[SweepRow]] = (
    Column("", lambda r: "→" if r.verdict == FASTEST else "", keep=True),
    Column("cut", lambda r: r.place.removeprefix("split "), right=False, keep=True),
    _seconds("edge", "p50_compute", keep=True),
    _seconds("up", "p50_transfer", keep=True),
    _seconds("recv", "p50_recv", keep=True),
    _seconds("total", "p50_rtt", keep=True),
    _seconds("p95", "p95_rtt"),
    _seconds("server", "p50_server_compute"),
    Column("bytes up", lambda r: size(r.bytes_up), keep=True),
    *number_columns(OTHERS, lambda r: r.numbers),
)


def close(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Those of `rows` whose median may be the least, and two at least where there are so many; the least first."""
    order = sorted(rows, key=lambda r: r.p50_rtt)
    return [r for k, r in enumerate(order) if k < 2 or r.p50_low <= order[0].p50_high]


def in_words(fastest: Sequence[SweepRow], most: int) -> str:
    """Which are the fastest, `most` of them named: ``all on the server, 9 ms; split after a, 9.1 ms; and 2 more``."""
    named = [f"{r.place}, {ms(r.p50_rtt * 1e3)} ms" for r in fastest[:most]]
    return "; ".join(named + [f"and {len(fastest) - most} more"] * (len(fastest) > most))


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


#: Label → colour and seconds, bottom first: medians, which add up to nearly p50_rtt.
_BARS: Mapping[str, tuple[str, Callable[[SweepRow], float]]] = {
    "edge compute": ("#4c78a8", lambda r: r.p50_compute),
    "uplink": ("#f58518", lambda r: r.p50_transfer),
    "server queue": ("#bab0ac", lambda r: r.p50_queue),
    "server compute": ("#54a24b", lambda r: r.p50_server_compute),
    "downlink": ("#e45756", lambda r: max(0.0, r.p50_recv - r.p50_queue - r.p50_server_compute)),
}


def draw(rows: Sequence[SweepRow], path: Path, title: str, fastest: Sequence[SweepRow]) -> None:
    """A PNG: stacked medians of stages a cut in ms, that of the total as a mark, crossing bytes on a second axis, an
    arrow to the first of the `fastest`. MissingExtraError without matplotlib."""
    with picture(path, size=(max(8.0, 0.24 * len(rows) + 3), 6.0)) as (figure, [axes]):
        axes.set_title(title)
        _fill(figure, axes, rows, fastest)


def _tick(row: SweepRow) -> str:
    place = end_of(row.split_layer, 26) if row.place.startswith("split") else row.place
    return f"{place} {TABLE[0].cell(row)}".rstrip()


def _fill(figure: Any, axes: Any, rows: Sequence[SweepRow], fastest: Sequence[SweepRow]) -> None:
    places = range(len(rows))
    floor = [0.0] * len(rows)
    for label, (colour, seconds) in _BARS.items():
        values = [seconds(row) * 1e3 for row in rows]
        axes.bar(places, values, bottom=floor, width=0.85, label=label, color=colour)
        floor = [a + b for a, b in zip(floor, values, strict=True)]
    totals = [row.p50_rtt * 1e3 for row in rows]
    axes.plot(places, totals, "_", color="black", markersize=7, label="total")
    best, top = rows.index(fastest[0]), max(*floor, *totals)
    side = "left" if best < len(rows) / 3 else "right" if best > len(rows) * 2 / 3 else "center"
    axes.annotate(
        f"{'fastest' if len(fastest) == 1 else 'not told apart (→)'}: {in_words(fastest, 1)}",
        (best, max(floor[best], totals[best])), (best, top * 1.14), ha=side, fontsize=10, fontweight="bold",
        arrowprops={"arrowstyle": "->"},
    )  # fmt: skip
    axes.set_ylim(0, top * 1.22)
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylabel("milliseconds of a request (medians)")
    axes.set_xlabel("split after layer")
    step = max(1, len(rows) // 60)
    axes.set_xticks(list(places)[::step], [_tick(r) for r in rows][::step], rotation=90, fontsize=7)
    sizes = axes.twinx()
    sizes.plot(places, [r.bytes_up / 1e3 for r in rows], color="black", marker=".", linewidth=1, label="bytes up")
    sizes.set_ylabel("kB on the uplink (line)")
    sizes.set_ylim(0, max(1.0, 1.22e-3 * max(r.bytes_up for r in rows)))  # below what is said of the fastest
    handles, labels = axes.get_legend_handles_labels()
    more, names = sizes.get_legend_handles_labels()
    columns = 6 if len(rows) > 24 else 3
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for drawn in (axes, sizes):
        bare(drawn, "top")
