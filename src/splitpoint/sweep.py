"""The first seed system's experiment: every split point, N images each, on a device and a server that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from splitpoint.errors import UsageError
from splitpoint.graph import Cut
from splitpoint.report.sweep import SweepRow, Timing, summarise
from splitpoint.runtime.edge import Edge
from splitpoint.runtime.result import Result
from splitpoint.tensors import Array

#: Requests after a switch that are not counted: first runs allocate.
WARM_UP = 2


def sweep(
    edge: Edge, cuts: Sequence[Cut], inputs: Sequence[Mapping[str, Array]], repeat: int = 1, setup: str = ""
) -> Iterator[SweepRow]:
    """One row a cut, measured with `repeat` requests for each of `inputs`, one at a time (no pipelining).

    One cut's sessions are in memory at a time, here and on the server. UsageError without inputs.
    """
    if not inputs:
        raise UsageError("a sweep needs at least one input")
    for cut in cuts:
        edge.switch(cut)
        edge.forget()
        for k in range(WARM_UP):
            edge.infer(inputs[k % len(inputs)])
        timings = [timing_of(edge.infer(one)) for _ in range(repeat) for one in inputs]
        yield summarise(cut, timings, setup, edge.model.name, edge.model.fingerprint)


def timing_of(result: Result) -> Timing:
    """The seed's three stages of one request, in seconds; they add up to its whole time on the device's clock."""
    trace = result.trace
    compute = (trace.ms("head") + trace.ms("encode")) / 1e3
    transfer = trace.ms("up") / 1e3
    total = sum(ms for name, ms in trace.stages().items() if name != "prepare") / 1e3
    return Timing(
        compute=compute,
        transfer=transfer,
        recv=total - compute - transfer,
        queue=trace.ms("queue") / 1e3,
        server_compute=trace.ms("tail") / 1e3,
        clock_error=(result.clock_error_ms or 0.0) / 1e3,
        bytes_up=result.up_nbytes,
        bytes_down=result.down_nbytes,
    )
