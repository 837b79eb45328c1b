"""Whether requests for one model that wait together should run as one batch: tried on the server before the start.

A server tries once for every tail whether a batch gives the right answers, and then measures whether it is faster
(`runtime.server.batching`). Without this trial the first requests of a queue would pay for that, and the plan could
not count on the outcome.
"""

from __future__ import annotations

import threading
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
    fleet: Fleet,
    source: Source,
    option: Option,
    inputs: Sequence[Mapping[str, Array]],
    stage_ms: float,
    server_ms: float,
) -> float:
    """What each further request of a batch takes on the server, as a share of one alone; 1 if batches gain nothing.

    Sends several of `inputs` at once, again and again for `BUDGET_S`; fewer at once where `stage_ms`, the longest
    stage of a request, is long; and none where the server, on which a request takes `server_ms`, has all `inputs` done
    in less time than that.
    """
    if len(inputs) * server_ms < BUDGET_S * 1e3:
        return 1.0
    count = min(max(_LEAST, int(BUDGET_S * 1e3 / max(stage_ms, 1e-3))), _MOST, len(inputs))
    if count < _LEAST:
        return 1.0
    runs: list[tuple[float, int]] = []
    end = perf_counter() + BUDGET_S
    with ThreadPoolExecutor(count) as pool:
        while perf_counter() < end:
            gates = [threading.Barrier(count)] * count
            runs += pool.map(lambda given, gate: _run(fleet, source, option, given, gate), inputs[:count], gates)
    return share_of(runs)


def _run(
    fleet: Fleet, source: Source, option: Option, given: Mapping[str, Array], gate: threading.Barrier
) -> tuple[float, int]:
    """Runs one of several requests: how long it ran on the server, seconds, and in a batch of how many; 0 where the
    server does not say. All heads run first, one after the other; at `gate` their threads wait for each other, so that
    the requests are sent at the same time."""
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
        result = edge.infer(given, at=cut, codec=codecs, more=True)
        return result.times.compute_s, result.batch.size if result.batch is not None else 0
    except BaseException:
        gate.abort()
        raise
    finally:
        device.give_back()


def share_of(runs: Sequence[tuple[float, int]]) -> float:
    """What each further request of a batch takes, as a share of one alone, from how long each of many requests ran, and
    in a batch of how many. The server tells each of a batch an equal part of its time.

    >>> share_of([(0.020, 1), (0.021, 1), (0.010, 3), (0.010, 3), (0.010, 3)])
    0.25
    >>> share_of([(0.020, 1), (0.021, 1), (0.019, 2), (0.019, 2)])
    1.0
    """
    least: dict[int, float] = {}
    for seconds, size in runs:
        least[size] = min(seconds, least.get(size, seconds))
    size = max(least, default=1)
    if 1 not in least or size == 1 or least[size] > (1 - GAIN) * least[1]:
        return 1.0
    return max(0.0, (size * least[size] / least[1] - 1) / (size - 1))
