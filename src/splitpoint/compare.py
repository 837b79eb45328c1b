"""The honest table, run for real: what was predicted beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from splitpoint.callbacks import call
from splitpoint.errors import UsageError
from splitpoint.planning.plans import Band, Option
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Result
from splitpoint.survey import placement
from splitpoint.tensors import Array

#: Requests of each row that are not counted: first runs allocate, and the server's cache fills.
WARM_UP = 2


class Compared(msgspec.Struct, frozen=True):
    """One option: predicted in `option.total`, and what `requests` real requests took (median, p10, p90; ms)."""

    option: Option
    measured: Band
    stages: dict[str, float]
    requests: int
    up_nbytes: int

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was measured: 0.1 is 10 % too slow."""
        return self.option.total.ms / self.measured.ms - 1


def compare(
    edge: Edge,
    options: Sequence[Option],
    inputs: Sequence[Mapping[str, Array]],
    repeat: int = 10,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compared]:
    """Every option measured with `repeat` requests, one of each in turn, so that what disturbs one disturbs all.

    All of them are compiled at once, here and on the server. UsageError without inputs or options.
    """
    if not inputs or not options:
        raise UsageError("a comparison needs at least one input and one option")
    places = [placement(edge.model.graph, option) for option in options]
    for cut, codecs in places:
        edge.warm(cut, codecs)
    found: list[list[Result]] = [[] for _ in options]
    total = (WARM_UP + repeat) * len(options)
    for k in range(WARM_UP + repeat):
        for i, (cut, codecs) in enumerate(places):
            edge.switch(cut, codecs)
            result = edge.infer(inputs[k % len(inputs)])
            if k >= WARM_UP:
                found[i].append(result)
            call(on_progress, k * len(options) + i + 1, total)
    return [_compared(option, results) for option, results in zip(options, found, strict=True)]


def _compared(option: Option, results: Sequence[Result]) -> Compared:
    traces = [r.trace for r in results]
    totals = [sum(ms for name, ms in t.stages().items() if name != "prepare") for t in traces]
    low, middle, high = (float(q) for q in np.percentile(totals, (10, 50, 90)))
    names = {
        "edge": ("head",),
        "encode": ("encode",),
        "up": ("up",),
        "server": ("decode", "queue", "tail", "reply"),
        "down": ("down",),
    }
    stages = {name: float(np.median([sum(t.ms(s) for s in spans) for t in traces])) for name, spans in names.items()}
    up = int(np.median([r.up_nbytes for r in results]))
    return Compared(option, Band(middle, low, high), stages, len(results), up)
