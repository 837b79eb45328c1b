"""Whether requests for one model that wait together should run as one: found out on the server before the queue starts.

A server tries once for every tail whether a batch is right, and then measures whether it helps (`server.batching`).
The first requests of a queue would pay for that, and the plan would not know what comes out.
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

#: For how long several requests at once are sent, and how many at once: one that runs, and at least two that wait.
BUDGET_S, _LEAST, _MOST = 1.0, 3, 9


def share_together(
    fleet: Fleet, source: Source, option: Option, inputs: Sequence[Mapping[str, Array]], stage_ms: float
) -> float:
    """What each further request of a batch takes on the server, as a share of one alone; 1 if batches gain nothing.

    Sends `inputs` several at once, again and again for a while; fewer of those whose longest stage takes long.
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
    """How long one of several requests ran on the server: their heads run one by one, then they are sent together."""
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
    """The same from how long each of many requests ran: those of one batch are told equal parts, to the last bit.

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
