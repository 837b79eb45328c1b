"""Whether requests for one model that wait together should run as one batch: tried on the server before the start.

A server tries once for every tail whether a batch gives the right answers, and then measures whether it is faster
(`runtime.server.batching`). Without this trial the first requests of a queue would pay for that, and the plan could
not count on the outcome.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter

from splitpoint.planning.plans import Option
from splitpoint.runtime.server.batching import GAIN
from splitpoint.survey import placement
from splitpoint.tasks.choices import Source
from splitpoint.tasks.fleet import Fleet
from splitpoint.tensors import Array

#: For how long the trial sends several requests at once, and how many: one that runs, and at least two that wait.
BUDGET_S, _LEAST, _MOST = 1.0, 3, 9


def share_together(
    fleet: Fleet, source: Source, option: Option, inputs: Sequence[Mapping[str, Array]], stage_ms: float
) -> float:
    """What each further request of a batch takes on the server, as a share of one alone; 1 if batches gain nothing.

    Sends several of `inputs` at once, again and again for `BUDGET_S`; fewer at once where `stage_ms`, the longest
    stage of a request, is long.
    """
    count = min(max(_LEAST, int(BUDGET_S * 1e3 / max(stage_ms, 1e-3))), _MOST, len(inputs))
    if count < _LEAST:
        return 1.0
    runs: list[float] = []
    end = perf_counter() + BUDGET_S
    with ThreadPoolExecutor(count) as pool:
        while perf_counter() < end:
            gates = [threading.Barrier(count)] * count
            runs += pool.map(lambda given, gate: _run_s(fleet, source, option, given, gate), inputs[:count], gates)
    return share_of(runs)


def _run_s(fleet: Fleet, source: Source, option: Option, given: Mapping[str, Array], gate: threading.Barrier) -> float:
    """Runs one of several requests, and returns how long it ran on the server, seconds. All heads run first, one after
    the other; at `gate` their threads wait for each other, so that the requests are sent at the same time."""
    edge, device = fleet.edges[source], fleet.device
    cut, codecs = placement(edge.model.graph, option)

    def hold() -> None:
        with suppress(threading.BrokenBarrierError):
            gate.wait()

    device.take()
    device.lend(hold)
    try:
        if not cut.nodes:
            device.give_back()
        return edge.infer(given, at=cut, codec=codecs, more=True).times.compute_s
    except BaseException:
        gate.abort()
        raise
    finally:
        device.give_back()


def share_of(runs: Sequence[float]) -> float:
    """What each further request of a batch takes, as a share of one alone, from how long each of many requests ran.

    The server tells the requests of one batch equal parts of its time, so durations that are equal to the last bit are
    one batch.

    >>> share_of([0.020, 0.021, 0.010, 0.010, 0.010])
    0.25
    >>> share_of([0.020, 0.021, 0.019, 0.019])
    1.0
    """
    least: dict[int, float] = {}
    for seconds, size in Counter(runs).items():
        least[size] = min(seconds, least.get(size, seconds))
    size = max(least, default=1)
    if 1 not in least or size == 1 or least[size] > (1 - GAIN) * least[1]:
        return 1.0
    return max(0.0, (size * least[size] / least[1] - 1) / (size - 1))
