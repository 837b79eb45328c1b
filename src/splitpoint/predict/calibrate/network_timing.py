"""Timing a whole network: it is compiled, run some times with pauses as between requests, and closed."""

from __future__ import annotations

from collections.abc import Callable

from splitpoint.engines import Engine
from splitpoint.models.model import Model
from splitpoint.profile.measure import pause_s
from splitpoint.segments import samples_for
from splitpoint.trace import Clock

#: Runs of a visit: as many as fit so many seconds, within these limits, after two that do not count.
_VISIT_S, _LEAST_RUNS, _MOST_RUNS, _WARM = 0.6, 3, 200, 2


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
