"""The codec for one cut by a calibration alone, where nothing is planned: what keeps to the constraints."""

from __future__ import annotations

from splitpoint.calibration.calibrations import Calibration, CalibrationRow
from splitpoint.codecs import CODECS, needs_tables, open_codec
from splitpoint.graph import Cut, Graph
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.frame_bytes import REQUEST_NBYTES
from splitpoint.units import size

RAW = "raw"


def at_cut(calibration: Calibration, graph: Graph, cut: Cut, limits: Constraints) -> tuple[str, str]:
    """(the codec for all that crosses at `cut`, why not: empty if it may be used).

    Of those that `limits` name, or all that were calibrated there and may be sent: the fewest bytes, or, where these
    alone are limited, the most answers that are kept.
    """
    rows = [r for r in rows_at(calibration, graph, cut) if r.codec.partition(":")[0] in CODECS]
    named = [r for r in rows if r.codec in limits.codecs]
    kept, why = [], "nothing was calibrated there (splitpoint calibrate-codecs)"
    for row in named if limits.codecs else rows:
        why = _refusal(row, limits)
        if not why:
            best = 0.0 if limits.faithful else -(row.quality.agreement or 0.0)
            kept.append((best, sum(row.nbytes), row.codec))
    if kept:
        return min(kept)[2], ""
    if not limits.codecs and (limits.max_bytes is None or REQUEST_NBYTES + cut.nbytes <= limits.max_bytes):
        return RAW, ""
    return (limits.codecs[0], why) if limits.codecs else ("", why)


def rows_at(calibration: Calibration, graph: Graph, cut: Cut) -> list[CalibrationRow]:
    """What was measured where the same crosses as at `cut`."""
    cuts, crossing = graph.prefixes(), [t.name for t in cut.crossing]
    return [r for r in calibration.rows if [t.name for t in cuts[r.prefix].crossing] == crossing]


def _refusal(row: CalibrationRow, limits: Constraints) -> str:
    if not open_codec(row.codec).exact and (why := limits.too_lossy(row.quality)):
        return why
    nbytes = REQUEST_NBYTES + (sum(row.nbytes) if needs_tables(row.codec) else row.most)
    if limits.max_bytes is not None and nbytes > limits.max_bytes:
        return f"it has up to {size(nbytes)}"
    return ""
