"""The first seed's experiment as rows: one a split point, and the picture of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from statistics import fmean, quantiles

from splitpoint.errors import MissingExtraError, UsageError
from splitpoint.files import read_text
from splitpoint.graph import Cut
from splitpoint.report.files import as_written, write_csv, write_picture


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds on the device's clock.

    `compute`: head and encoding on the device. `transfer`: from the first byte sent to the last byte received by
    the server (its clock mapped onto the device's, off by at most `clock_error`). `recv`: from then to the whole
    answer; server time and the way back are in it. The three follow each other without a gap.
    """

    compute: float
    transfer: float
    recv: float
    queue: float
    server_compute: float
    clock_error: float
    bytes_up: int
    bytes_down: int

    @property
    def rtt(self) -> float:
        return self.compute + self.transfer + self.recv


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A split point's averages over `n` requests; the first five columns are the seed's, in seconds."""

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

    @property
    def identity(self) -> tuple[int, str, str]:
        """What tells a cut from every other one of its model."""
        return self.nodes, self.split_layer, self.crossing


COLUMNS: Sequence[str] = tuple(f.name for f in fields(SweepRow))
SEED_COLUMNS: Sequence[str] = COLUMNS[:5]
#: A sweep of 5,000 cuts has 2 MB.
_MOST_BYTES = 64 << 20


def summarise(
    cut: Cut, timings: Sequence[Timing], setup: str, model: str, fingerprint: str, codecs: Mapping[str, str] = {}
) -> SweepRow:
    """The row of a cut. `avg_rtt` is exactly the sum of the three averages before it.

    `setup` says what was measured how (engine, server, inputs): rows of different ones do not compare. `codecs`: what
    tensors travelled with, by name; the others raw.
    """
    rtts = [t.rtt for t in timings]
    compute, transfer, recv = (fmean(getattr(t, k) for t in timings) for k in ("compute", "transfer", "recv"))
    cuts = quantiles(rtts, n=20, method="inclusive") if len(rtts) > 1 else rtts * 19
    return SweepRow(
        split_layer=cut.name,
        avg_compute=compute,
        avg_transfer=transfer,
        avg_recv=recv,
        avg_rtt=compute + transfer + recv,
        avg_queue=fmean(t.queue for t in timings),
        avg_server_compute=fmean(t.server_compute for t in timings),
        p50_rtt=cuts[9],
        p95_rtt=cuts[18],
        clock_error=max(t.clock_error for t in timings),
        crossing_bytes=cut.nbytes,
        bytes_up=timings[0].bytes_up,
        bytes_down=timings[0].bytes_down,
        crossing=" ".join(t.name for t in cut.crossing),
        cut="" if cut.index is None else str(cut.index),
        nodes=len(cut.nodes),
        n=len(timings),
        setup=setup,
        model=model,
        fingerprint=fingerprint,
        codec=" ".join(codecs.get(t.name, "raw") for t in cut.crossing),
    )


def write_rows(path: Path, rows: Sequence[SweepRow]) -> None:
    write_csv(path, [asdict(r) for r in rows], COLUMNS)


def read_rows(path: Path) -> list[SweepRow]:
    """Rows of an earlier run. UsageError if the file is not one of ours, InputError if it cannot be read."""
    kinds = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(SweepRow)}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, _MOST_BYTES, "a sweep's CSV"), newline=""))
        if tuple(reader.fieldnames or ()) not in (tuple(COLUMNS), tuple(COLUMNS[:-1])):  # before there were codecs
            raise UsageError(f"{path} is not a sweep's CSV: name another file with --csv")
        rows = [SweepRow(**{k: kinds[k](as_written(v)) for k, v in line.items()}) for line in reader]
        if not all(0 <= v < inf for row in rows for v in asdict(row).values() if not isinstance(v, str)):
            raise ValueError("a time or a size makes no sense")
        return rows
    except (csv.Error, ValueError, KeyError, TypeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not a sweep's CSV, or it is damaged: delete it or name another file") from exc


def draw(rows: Sequence[SweepRow], path: Path, title: str) -> None:
    """A PNG: stacked stages a cut in ms, crossing bytes on a second axis. MissingExtraError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "plot", "draw pictures") from exc
    places = range(len(rows))
    figure, axes = plt.subplots(figsize=(max(8.0, 0.24 * len(rows) + 3), 6.0), layout="constrained")
    floor = [0.0] * len(rows)
    for label, colour, values in _stages(rows):
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
    axes.set_xticks(list(places)[::step], [_short(r.split_layer) for r in rows][::step], rotation=90, fontsize=7)
    sizes = axes.twinx()
    sizes.plot(places, [r.bytes_up / 1e3 for r in rows], color="black", marker=".", linewidth=1, label="bytes up")
    sizes.set_ylabel("kB on the uplink (line)")
    sizes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    more, names = sizes.get_legend_handles_labels()
    columns = 6 if len(rows) > 24 else 3
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    axes.set_title(title)
    for drawn in (axes, sizes):
        drawn.spines["top"].set_visible(False)
    try:
        write_picture(path, figure)
    finally:
        plt.close(figure)


def _stages(rows: Sequence[SweepRow]) -> list[tuple[str, str, list[float]]]:
    """(label, colour, ms a row), bottom first; they add up to avg_rtt."""
    parts: dict[str, tuple[str, list[float]]] = {
        "device compute": ("#4c78a8", [r.avg_compute * 1e3 for r in rows]),
        "uplink": ("#f58518", [r.avg_transfer * 1e3 for r in rows]),
        "server queue": ("#bab0ac", [r.avg_queue * 1e3 for r in rows]),
        "server compute": ("#54a24b", [r.avg_server_compute * 1e3 for r in rows]),
        "downlink and rest": (
            "#e45756", [max(0.0, r.avg_recv - r.avg_queue - r.avg_server_compute) * 1e3 for r in rows]
        ),
    }  # fmt: skip
    return [(label, colour, values) for label, (colour, values) in parts.items()]


def _short(layer: str, width: int = 26) -> str:
    return layer if len(layer) <= width else "…" + layer[-width + 1 :]
