"""Cuts measured for real, between a device and a server that are there.

`compare` measures the options of a plan, in turns, for rows of what was predicted beside what was measured; `sweep`
measures split points, one after the other (its rows: `report.sweep_table`). Both compare medians; what these cannot
tell from the fastest is measured again, in turns, before one is called that. They are the first seed system's
experiment and the honest table's proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from splitpoint.callbacks import call
from splitpoint.errors import UsageError, nearest
from splitpoint.graph import Cut
from splitpoint.planning.plans import Band, Option
from splitpoint.report.noise import tied
from splitpoint.report.sweep_table import FASTEST, SLOWER, SweepRow, sweep_row
from splitpoint.report.table import Column, number_columns
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.result import Result
from splitpoint.survey import placement
from splitpoint.tensors import Array
from splitpoint.trace import OTHERS, STAGES
from splitpoint.units import ms, size

#: Requests at each cut that are not counted: first runs allocate, and the server's cache fills.
WARM_UP = 2
#: What is measured again has so many requests at least, and no more than the second number for being asked for more.
AGAIN, _MOST_AGAIN = 12, 48
#: So many cuts are in memory at once while they take turns.
_TOGETHER = 8
#: Of less than this nobody notices which is the faster, ms.
_SLIGHT_MS = 1.0


class CompareRow(msgspec.Struct, frozen=True):
    """One option: predicted in `option.total`, and what `requests` real requests took (median, p10, p90; ms).

    `stages` are medians of `splitpoint.trace.NUMBERS` but the total, and of the spans ``up`` and ``down``, the two
    ways of ``net``.
    """

    option: Option
    measured: Band
    stages: dict[str, float]
    requests: int
    up_nbytes: int
    fastest: bool = False
    """Whether it cannot be told from the fastest; if several are, all of them were measured again."""

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was measured: 0.1 is 10 % too slow."""
        return self.option.total.ms / self.measured.ms - 1

    def flat(self) -> dict[str, Any]:
        """The row of a CSV file."""
        option, total, measured = self.option, self.option.total, self.measured
        return {
            "option": option.label, "kind": option.kind, "cut": option.cut, "predicted_ms": total.ms,
            "predicted_low_ms": total.low, "predicted_high_ms": total.high, "measured_ms": measured.ms,
            "measured_p10_ms": measured.low, "measured_p90_ms": measured.high, "error": self.error,
            "requests": self.requests, "up_nbytes": self.up_nbytes, "fastest": self.fastest,
            **{f"{name}_ms": self.stages.get(name) for name in (*STAGES[1:], *OTHERS)},
        }  # fmt: skip


TABLE: Sequence[Column[CompareRow]] = (
    Column("option", lambda r: r.option.label, right=False, keep=True),
    Column("predicted", lambda r: ms(r.option.total.ms), keep=True),
    Column("measured", lambda r: ms(r.measured.ms), keep=True),
    Column("p10…p90", lambda r: f"{ms(r.measured.low)}…{ms(r.measured.high)}"),
    Column("error", lambda r: f"{r.error:+.0%}", keep=True),
    *number_columns((*STAGES[1:], *OTHERS), lambda r: r.stages),  # inputs are read before: no ``decode``
    Column("bytes up", lambda r: size(r.up_nbytes)),
)


def compare(
    edge: Edge,
    options: Sequence[Option],
    inputs: Sequence[Mapping[str, Array]],
    *,
    repeat: int = 10,
    again: int = AGAIN,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[CompareRow]:
    """A row an option of a plan: what was predicted, and what `repeat` requests took.

    >>> options = plan(graph, (edge, cloud), PRESETS["wifi"]).options    # `edge` and `cloud` are profiles
    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address, at="cut:input") as device:
    ...         rows = compare(device, options, [{"image": digit}], repeat=2)
    >>> len(rows) == len(options) and all(row.requests >= 2 for row in rows)
    True

    One request of each option in turn, so that what disturbs one disturbs all; they take `inputs` one after the other.
    Those that cannot be told from the fastest are then measured again, with `again` requests at least: sizes of photos
    differ, and a few of them tell nothing apart. All options are compiled at once, here and on the server, and `edge`
    is left at one of them. `on_progress` is told how many requests of how many are done, from the first again for those
    that are measured again. UsageError without inputs or options, InputError for options of another model, and what
    `Edge.infer` raises.
    """
    if not inputs or not options:
        raise UsageError("a comparison needs at least one input and one option")
    places = [placement(edge.model.graph, option) for option in options]
    for cut, codecs in places:
        edge.warm(cut, codecs)
    measured = _measure(edge, places, inputs, repeat, on_progress)
    near = tied(_totals(measured))
    if len(near) > 1:
        anew, left = _again(edge, [places[i] for i in near], inputs, max(repeat, again), on_progress)
        for i, results in zip(near, anew, strict=True):
            measured[i] = results
        near = [near[k] for k in left]
    return [_compared(o, results, k in near) for k, (o, results) in enumerate(zip(options, measured, strict=True))]


def _compared(option: Option, results: Sequence[Result], fastest: bool) -> CompareRow:
    """The row of `option` from the results of its requests."""
    spent = [r.numbers | {way: r.trace.ms(way) for way in ("up", "down")} for r in results]
    low, middle, high = (float(q) for q in np.percentile([s["total"] for s in spent], (10, 50, 90)))
    stages = {name: float(np.median([s[name] for s in spent])) for name in (*STAGES, *OTHERS, "up", "down")}
    up = int(np.median([r.up_nbytes for r in results]))
    return CompareRow(option, Band(middle, low, high), stages, len(results), up, fastest)


def verdict(rows: Sequence[CompareRow]) -> str:
    """Whether the planned option, the first one, was the fastest; by how much not, and which cannot be told apart."""
    planned = rows[0]
    near, slower = (sorted((r for r in rows if r.fastest == is_near), key=lambda r: r.measured.ms)
                    for is_near in (True, False))  # fmt: skip
    names = ", ".join(f"{r.option.label} ({ms(r.measured.ms)} ms)" for r in near)
    if not planned.fastest:
        late_ms = planned.measured.ms - near[0].measured.ms
        apart = f"; these {len(near)} cannot be told apart" if len(near) > 1 else ""
        if late_ms < _SLIGHT_MS:
            own = f"{planned.option.label} ({ms(planned.measured.ms)} ms)"
            return f"the plan agrees within a millisecond: {own}; fastest: {names}{apart}"
        late = f"{late_ms / near[0].measured.ms:.1%} slower than"
        return f"planned: {planned.option.label}; fastest: {names}, which the plan is {late}{apart}"
    if len(near) > 1:
        return f"the plan is not refuted: no difference beyond noise between {names}"
    if not slower:
        return f"planned and measured: {planned.option.label}, {ms(planned.measured.ms)} ms"
    gain_ms = slower[0].measured.ms - planned.measured.ms
    gain = f"{gain_ms / slower[0].measured.ms:.0%}" if gain_ms >= _SLIGHT_MS else f"{ms(gain_ms)} ms"
    return f"the plan was right: {planned.option.label} is the fastest, {gain} before {slower[0].option.label}"


def sweep(
    edge: Edge,
    cuts: Sequence[Cut],
    inputs: Sequence[Mapping[str, Array]],
    *,
    repeat: int = 1,
    codec: CodecChoice | None = None,
    setup: str = "",
) -> Iterator[SweepRow]:
    """A row a cut, as it is measured: `repeat` requests for each of `inputs`, one at a time (no pipelining).

    `codec` is as `Edge.switch` takes it (None: as the edge does it now); codecs by tensor name hold at the cuts where
    these cross. One cut's sessions are in memory at a time, here and on the server. `setup` is kept in the rows: in
    words, what was measured how. UsageError without inputs, or for a tensor that the model does not have.
    """
    if not inputs:
        raise UsageError("a sweep needs at least one input")
    if codec is not None and not isinstance(codec, str):
        tensors = edge.model.graph.tensors
        for name in codec:
            if name not in tensors:
                raise UsageError(f"{edge.model.name} has no tensor {name} for a codec{nearest(name, tensors)}")
    for cut in cuts:
        place = cut, _at(cut, codec)
        edge.switch(*place)
        edge.forget()
        [results] = _measure(edge, [place], inputs, repeat * len(inputs))
        yield sweep_row(cut, results, setup, edge.model)


def sweep_again(
    edge: Edge,
    cuts: Sequence[Cut],
    inputs: Sequence[Mapping[str, Array]],
    *,
    repeat: int = 1,
    codec: CodecChoice | None = None,
    setup: str = "",
) -> list[SweepRow]:
    """Rows of `cuts`, measured again in turns, with `AGAIN` requests at least, whose verdicts say which of them cannot
    be told from the fastest. Several cuts are in memory at a time. Otherwise as `sweep`."""
    results, near = _again(edge, [(cut, _at(cut, codec)) for cut in cuts], inputs, repeat * len(inputs))
    return [
        replace(sweep_row(cut, r, setup, edge.model), verdict=FASTEST if k in near else SLOWER)
        for k, (cut, r) in enumerate(zip(cuts, results, strict=True))
    ]


def _at(cut: Cut, codec: CodecChoice | None) -> CodecChoice | None:
    """What of `codec` concerns the tensors that cross at `cut`."""
    if codec is None or isinstance(codec, str):
        return codec
    return {t.name: codec[t.name] for t in cut.crossing if t.name in codec}


def _measure(
    edge: Edge,
    places: Sequence[tuple[Cut, CodecChoice | None]],
    inputs: Sequence[Mapping[str, Array]],
    requests: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Result]]:
    """The results of `requests` requests at each of `places`, which take turns; those of the warm-up are left out."""
    measured: list[list[Result]] = [[] for _ in places]
    total = (WARM_UP + requests) * len(places)
    for k in range(WARM_UP + requests):
        for i, place in enumerate(places):
            edge.switch(*place)
            result = edge.infer(inputs[k % len(inputs)])
            if k >= WARM_UP:
                measured[i].append(result)
            call(on_progress, k * len(places) + i + 1, total)
    return measured


def _again(
    edge: Edge,
    places: Sequence[tuple[Cut, CodecChoice | None]],
    inputs: Sequence[Mapping[str, Array]],
    requests: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[list[Result]], list[int]]:
    """The results of `places`, measured again in turns, and which of them cannot be told from the fastest, this first.

    Where they are many, groups of them take turns with the first, until one group is left or nothing more is told
    apart.
    """
    requests = min(max(requests, AGAIN), _MOST_AGAIN)
    measured: dict[int, list[Result]] = {}
    left = list(range(len(places)))
    while True:
        first, *others = left
        size = _TOGETHER - 1
        groups = [[first, *others[k : k + size]] for k in range(0, max(1, len(others)), size)]
        for group in groups:
            edge.forget()
            for i in group:
                edge.warm(*places[i])
            results = _measure(edge, [places[i] for i in group], inputs, requests, on_progress)
            measured |= zip(group, results, strict=True)
            near = {group[k] for k in tied(_totals(results))}
            left = [i for i in left if i in near or i not in group]
        left.sort(key=lambda i: float(np.median([r.total_ms for r in measured[i]])))
        if len(groups) == 1 or len(left) == 1 + len(others):
            return [measured[i] for i in range(len(places))], left


def _totals(measured: Sequence[Sequence[Result]]) -> list[list[float]]:
    return [[r.total_ms for r in results] for results in measured]
