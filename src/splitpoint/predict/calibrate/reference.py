"""Reference networks: a few of those that a device was calibrated with, measured again to see how fast it is by now.

A machine is slower as a whole on another day: it is warmer, its clocks are others, it has neighbours. By how much, two
dozen random networks tell that the latency file names; no real network is among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitpoint.callbacks import call
from splitpoint.engines import Engine
from splitpoint.errors import InputError
from splitpoint.models.model import Model
from splitpoint.predict.calibrate.random_networks import FAMILIES, random_network
from splitpoint.predict.learn.latency_model import Reference
from splitpoint.profile.measure import pause_s
from splitpoint.segments import samples_for
from splitpoint.trace import Clock

#: Runs of a visit: as many as fit so many seconds, within these limits, after two that do not count.
_VISIT_S, _LEAST_RUNS, _MOST_RUNS, _WARM = 0.6, 3, 200, 2
#: A visit to a reference network (s): there are many of them. And how often each is visited by `measure`.
REFERENCE_S, ROUNDS = 0.25, 3
#: No machine is so many times faster, or slower, on another day.
_LEAST_RATIO = 0.02


@dataclass(frozen=True, slots=True)
class ReferenceSpeed:
    """How long reference networks take now, as a multiple of what the latency file says: the median of `count` of them,
    and between which half of them lie. `rounds` has the same of each round of visits: a machine may be a
    quarter slower for a minute or two.
    """

    ratio: float
    low: float
    high: float
    count: int
    rounds: tuple[float, ...]

    def __str__(self) -> str:
        if self.count == 1:
            return f"1 network of the calibration takes {self.ratio:.2f}x what the file says"
        return (
            f"{self.count} networks of the calibration take {self.ratio:.2f}x what the file says "
            f"(half of them {self.low:.2f}x…{self.high:.2f}x)"
        )


def network(reference: Reference) -> Model:
    """The network that was measured. InputError where this version of splitpoint draws another one."""
    if reference.family in FAMILIES:
        model = random_network(reference.seed, reference.family, reference.work)
        if sum(node.flops for node in model.graph.nodes) == reference.flops:
            return model
    raise InputError(
        f"the latency file's reference network {reference.name} is of another version of splitpoint: calibrate anew "
        "(splitpoint calibrate-kernels)"
    )


def require(references: Sequence[Reference]) -> None:
    """InputError if one of them cannot be drawn again: before minutes are spent, and one at a time in memory."""
    for reference in references:
        network(reference)


def speed_of(references: Sequence[Reference], visits: Mapping[str, Sequence[Sequence[float]]]) -> ReferenceSpeed | None:
    """What `visits` say (ms of every run, by the network's name and by round); None if none of `references` has any."""
    seen = [(r.ms, visits[r.name]) for r in references if visits.get(r.name)]
    if not seen:
        return None
    table = np.full((len(seen), max(len(rounds) for _, rounds in seen)), np.nan)
    for k, (ms, rounds) in enumerate(seen):
        table[k, : len(rounds)] = [np.median(taken) / ms for taken in rounds]
    usual = np.nanmedian(table, axis=1)  # of each network
    low, middle, high = np.quantile(usual, (0.25, 0.5, 0.75)).tolist()
    beside = table / usual[:, None]  # of a round, beside what is usual
    return ReferenceSpeed(middle, low, high, len(seen), tuple((middle * np.nanmedian(beside, axis=0)).tolist()))


def visit(
    model: Model, engine: Engine, clock: Clock, pause: Callable[[float], None], seconds: float = _VISIT_S
) -> list[float]:
    """Milliseconds of some runs of the whole model, compiled for them, each after a wait as between requests."""
    inputs = samples_for(model, 1)[0]
    session = engine.compile(model.whole())
    try:
        took: list[float] = []
        end = clock() + seconds
        while len(took) < _WARM + _MOST_RUNS and (len(took) < _WARM + _LEAST_RUNS or clock() < end):
            pause(pause_s(took[-1] if took else 0.0))
            began = clock()
            session.run(inputs)
            took.append((clock() - began) * 1e3)
        return [round(ms, 6) for ms in took[_WARM:]]
    finally:
        session.close()


def measure(
    references: Sequence[Reference],
    engine: Engine,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> ReferenceSpeed:
    """Visits all `references` in rounds, half a minute or so. InputError if there are none, or they make no sense."""
    require(references)
    visits: dict[str, list[list[float]]] = {}
    for k in range(ROUNDS):
        for j, reference in enumerate(references):
            call(on_step, k * len(references) + j, ROUNDS * len(references))
            taken = visit(network(reference), engine, clock, pause, REFERENCE_S)
            visits.setdefault(reference.name, []).append(taken)
    if (speed := speed_of(references, visits)) is None:
        raise InputError("the latency file has no reference networks: calibrate anew (splitpoint calibrate-kernels)")
    if not _LEAST_RATIO < speed.ratio < 1 / _LEAST_RATIO:
        raise InputError(f"{speed}: that is another machine, or a damaged file; calibrate anew")
    return speed
