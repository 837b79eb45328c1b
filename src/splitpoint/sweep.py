"""The first seed system's experiment: every split point, N images each, on a device and a server that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from splitpoint.errors import UsageError, nearest
from splitpoint.graph import Cut
from splitpoint.report.sweep_table import SweepRow, Timing, summarise
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.result import Result
from splitpoint.tensors import Array

#: Requests after a switch that are not counted: first runs allocate.
WARM_UP = 2


def sweep(
    edge: Edge,
    cuts: Sequence[Cut],
    inputs: Sequence[Mapping[str, Array]],
    repeat: int = 1,
    setup: str = "",
    codec: CodecChoice | None = None,
) -> Iterator[SweepRow]:
    """One row a cut, measured with `repeat` requests for each of `inputs`, one at a time (no pipelining).

    `codec` is as `Edge.switch` takes it (None: as the edge does it now); codecs by tensor name hold at the cuts where
    these cross. One cut's sessions are in memory at a time, here and on the server. UsageError without inputs, or for
    a tensor that the model does not have.
    """
    if not inputs:
        raise UsageError("a sweep needs at least one input")
    if codec is not None and not isinstance(codec, str):
        tensors = edge.model.graph.tensors
        for name in codec:
            if name not in tensors:
                raise UsageError(f"{edge.model.name} has no tensor {name} for a codec{nearest(name, tensors)}")
    for cut in cuts:
        edge.switch(cut, _at(cut, codec))
        edge.forget()
        for k in range(WARM_UP):
            codecs = edge.infer(inputs[k % len(inputs)]).codecs
        timings = [timing_of(edge.infer(one)) for _ in range(repeat) for one in inputs]
        yield summarise(cut, timings, setup, edge.model.name, edge.model.fingerprint, codecs)


def _at(cut: Cut, codec: CodecChoice | None) -> CodecChoice | None:
    """What of `codec` concerns the tensors that cross at `cut`."""
    if codec is None or isinstance(codec, str):
        return codec
    return {t.name: codec[t.name] for t in cut.crossing if t.name in codec}


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
