"""Every partition point, predicted: what a request would take on the device, on the link, and on the server.

What the Neurosurgeon replica's ``deployment.py`` prints with ``show=True``, as a table and as CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from splitpoint.planning.plans import Option, Plan
from splitpoint.report.table import Column
from splitpoint.units import ms, size


@dataclass(frozen=True, slots=True)
class PointRow:
    """The cut behind a layer (all up to and including it on the device), in milliseconds.

    `point` counts from 0, all on the server. `partition_point` is what ``--at`` takes for just this cut. `edge_ms` is
    computing and encoding on the device, `transfer_ms` both ways with the round trip, `cloud_ms` decoding and computing
    on the server; they sum to `total_ms`, which four requests of five are expected to have between `low_ms` and
    `high_ms`. `modelled`: a part of it was not measured. `refused`: why a constraint rules it out.
    """

    point: int
    partition_point: str
    edge_ms: float
    transfer_ms: float
    cloud_ms: float
    total_ms: float
    low_ms: float
    high_ms: float
    up_bytes: int
    down_bytes: int
    crossing: str
    codecs: str
    modelled: bool
    best: bool
    refused: str

    def flat(self) -> dict[str, Any]:
        """The row by `COLUMNS`."""
        return asdict(self)


COLUMNS: Sequence[str] = tuple(f.name for f in fields(PointRow))
TABLE: Sequence[Column[PointRow]] = (
    Column("", lambda r: "→" if r.best else "×" if r.refused else "", keep=True),
    Column("point", lambda r: str(r.point)),
    Column("partition point", lambda r: r.partition_point, right=False, keep=True),
    Column("edge", lambda r: ms(r.edge_ms), keep=True),
    Column("transfer", lambda r: ms(r.transfer_ms), keep=True),
    Column("cloud", lambda r: ms(r.cloud_ms), keep=True),
    Column("total", lambda r: ("~" if r.modelled else "") + ms(r.total_ms), keep=True),
    Column("up", lambda r: size(r.up_bytes)),
    Column("codec", lambda r: r.codecs, right=False),
)


def point_rows(points: Sequence[Option], plan: Plan) -> list[PointRow]:
    """A row for each of `points` (`Planner.points`), that of the `plan` marked."""
    rows = []
    for k, option in enumerate(points):
        at, best = option.stages, plan.best
        edge, cloud = at["edge"].ms + at["encode"].ms, at["server"].ms
        transfer = at["up"].ms + at["down"].ms
        rows.append(
            PointRow(
                point=k,
                partition_point=option.cut,
                edge_ms=round(edge, 4),
                transfer_ms=round(transfer, 4),
                cloud_ms=round(cloud, 4),
                total_ms=round(round(edge, 4) + round(transfer, 4) + round(cloud, 4), 4),
                low_ms=round(option.total.low, 4),
                high_ms=round(option.total.high, 4),
                up_bytes=option.up_nbytes,
                down_bytes=option.down_nbytes,
                crossing=" ".join(c.name for c in option.crossing),
                codecs=" + ".join(dict.fromkeys(option.codecs)),
                modelled=option.modelled,
                best=(option.on_edge, option.codecs) == (best.on_edge, best.codecs),
                refused=option.refused,
            )
        )
    return rows
