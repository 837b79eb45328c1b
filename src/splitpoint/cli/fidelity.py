"""What the answers of a run are worth: as what they crossed, in how many bytes, and what a calibration says of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from statistics import median

import msgspec

from splitpoint.calibration.calibrations import Calibration, Quality
from splitpoint.codecs import needs_tables, open_codec
from splitpoint.errors import CutError
from splitpoint.graph import Graph
from splitpoint.planning.codec_at_cut import rows_at
from splitpoint.planning.hosts import quality_of
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Result
from splitpoint.units import counted, size

#: Sizes of the last requests, of each way that they crossed.
_REMEMBERED = 10_000


class Kept(msgspec.Struct, frozen=True):
    """How many of a calibration's answers stayed with a codec at a cut. `least`: with 95 % confidence; `measured` is
    the codec that it was measured with: the same, or the next coarser level."""

    measured: str
    agreement: float
    least: float
    inputs: int

    @classmethod
    def of(cls, codec: str, quality: Quality) -> Kept:
        """What `quality` says."""
        return cls(codec, quality.agreement or 0.0, max(0.0, 1 - quality.bound), quality.inputs)

    def __str__(self) -> str:
        return (
            f"{self.agreement:.1%} of {self.inputs} answers stayed in the calibration with {self.measured}, at least "
            f"{self.least:.1%} do with 95 % confidence"
        )


class Fidelity:
    """Counts how answers crossed, and knows what `calibration` says of that; `graph` is the model's."""

    def __init__(self, calibration: Callable[[], Calibration | None], graph: Callable[[], Graph]) -> None:
        self._calibration, self._graph = calibration, graph
        self._known: dict[tuple[str, tuple[tuple[str, str], ...]], Kept | None] = {}
        self._sizes: dict[tuple[str, tuple[tuple[str, str], ...]], deque[int]] = {}

    def add(self, result: Result) -> None:
        """One more answer."""
        if result.up_nbytes and _lossy(result.codecs):
            key = result.cut, tuple(sorted(result.codecs.items()))
            self._sizes.setdefault(key, deque(maxlen=_REMEMBERED)).append(result.up_nbytes)

    def of(self, result: Result) -> Kept | None:
        """What is known of the answer's codecs; None where they lose nothing, or that was not measured."""
        key = result.cut, tuple(sorted(result.codecs.items()))
        if key not in self._known:
            self._known[key] = self._look_up(*key) if _lossy(result.codecs) else None
        return self._known[key]

    def lines(self) -> Iterator[str]:
        """A sentence for each way that answers crossed and may have lost something, the most frequent first."""
        calibrated = self._calibration() is not None
        for key, sizes in sorted(self._sizes.items(), key=lambda item: -len(item[1])):
            names = [codec for _, codec in key[1]]
            kept = self._known[key] if key in self._known else self._known.setdefault(key, self._look_up(*key))
            if kept is None and not (calibrated or any(map(needs_tables, names))):
                continue  # as it was asked for, by name
            said = (
                "what that keeps of the answers was not measured (splitpoint calibrate-codecs)"
                if kept is None
                else kept
            )
            how = " + ".join(dict.fromkeys(names))
            yield f"{counted(len(sizes), 'answer')} as {how} at {key[0]}, {size(round(median(sizes)))} up: {said}"

    def _look_up(self, cut_name: str, codecs: tuple[tuple[str, str], ...]) -> Kept | None:
        calibration = self._calibration()
        if calibration is None or not calibration.judged:
            return None
        try:
            cut, names = self._graph().cut(cut_name), dict(codecs)
        except CutError:  # one that has no name of its own was not calibrated
            return None
        if len(set(names.values())) != 1:
            return None
        codec = codecs[0][1]
        if any(t.name not in names and open_codec(codec).accepts(t) for t in cut.crossing):
            return None
        rows = {r.codec: r.quality for r in rows_at(calibration, self._graph(), cut) if r.quality.agreement is not None}
        if codec not in rows and needs_tables(codec):
            kind, level = codec.partition(":")[0], quality_of(codec) or 0
            coarser = [q for name in rows if name.startswith(f"{kind}:") and (q := quality_of(name) or 0) < level]
            codec = f"{kind}:{max(coarser, default=0)}"
        return Kept.of(codec, rows[codec]) if codec in rows else None


def fidelity_of(edge: Edge) -> Fidelity:
    """That of the answers of `edge`."""
    return Fidelity(lambda: edge.calibration, lambda: edge.model.graph)


def _lossy(codecs: Mapping[str, str]) -> bool:
    return any(not open_codec(codec).exact for codec in codecs.values())
