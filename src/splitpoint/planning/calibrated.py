"""A calibration by what it says of tensors: their bytes with a codec, and how good the answer then is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitpoint.calibration.calibrations import Calibration, CalibrationRow
from splitpoint.codecs import open_codec
from splitpoint.errors import InputError
from splitpoint.graph import Cut, Graph
from splitpoint.planning.constraints import over_budget
from splitpoint.tensors import TensorSpec


@dataclass(frozen=True)
class Calibrated:
    """`nbytes` are medians by (tensor, codec); `codecs` those that were calibrated anywhere."""

    nbytes: Mapping[tuple[str, str], int]
    codecs: tuple[str, ...]
    _alone: Mapping[tuple[str, str], Sequence[CalibrationRow]]
    _rows: Mapping[tuple[tuple[str, ...], str], CalibrationRow]

    @classmethod
    def of(cls, graph: Graph, calibration: Calibration | None) -> Calibrated:
        """What `calibration` says of the tensors of `graph`; InputError if it is of another model."""
        rows = calibration.rows if calibration is not None else ()
        sizes: dict[tuple[str, str], list[int]] = {}
        alone: dict[tuple[str, str], list[CalibrationRow]] = {}
        for row, spec, nbytes in _crossings(graph, calibration) if calibration else ():
            sizes.setdefault((spec.name, row.codec), []).append(nbytes)
            if len(row.nbytes) == 1:
                alone.setdefault((spec.name, row.codec), []).append(row)
        cuts = graph.prefixes()
        return cls(
            {key: int(np.median(each)) for key, each in sizes.items()},
            tuple(dict.fromkeys(r.codec for r in rows)),
            alone,
            # What crosses and how decides the answer, not which nodes were left on which side of it.
            {(_names(cuts[r.prefix]), r.codec): r for r in rows},
        )

    def row(self, cut: Cut, codec: str) -> CalibrationRow | None:
        """What was measured of this codec for all that crosses at `cut`; None if nothing was."""
        return self._rows.get((_names(cut), codec))

    def allows(self, tensor: str, codec: str, max_drop: float | None) -> bool:
        """Whether an inexact codec keeps within `max_drop` for this tensor: shown, not supposed."""
        rows = self._alone.get((tensor, codec), ())
        return max_drop is None or (bool(rows) and not any(over_budget(r.quality, max_drop) for r in rows))


def _names(cut: Cut) -> tuple[str, ...]:
    return tuple(t.name for t in cut.crossing)


def _crossings(graph: Graph, calibration: Calibration) -> Iterator[tuple[CalibrationRow, TensorSpec, int]]:
    """Every row's tensors that its codec encoded, with the bytes measured."""
    cuts = graph.prefixes()
    for row in calibration.rows:
        if not 0 <= row.prefix < len(cuts) or len(cuts[row.prefix].crossing) != len(row.nbytes):
            raise InputError(
                f"the calibration of {calibration.model} has a row for prefix {row.prefix} that does not fit "
                f"{graph.name}: it is of another model"
            )
        codec = open_codec(row.codec)
        for spec, nbytes in zip(cuts[row.prefix].crossing, row.nbytes, strict=True):
            if codec.accepts(spec):
                yield row, spec, nbytes
