"""A request that nobody but the server answers: what goes wrong is an exception, and the shortest way is the only one.

Whoever waits for the answer reads it from the socket, so no thread stands between (`Channel.wait`).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import msgspec

from splitpoint import wire
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.opened_cut import Route
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.tensors import Array


class Sent(msgspec.Struct):
    """A request under way. `channel` is None if it needs no server."""

    route: Route
    request: Request
    known: Mapping[str, Array]
    started: float
    headed: float
    packed: float
    deadline_s: float
    channel: Channel | None = None
    id: int = 0
    packet: wire.Packet | None = None
    nbytes: int = 0
    codecs: tuple[str, ...] = ()


def begin(route: Route, request: Request, deadline_s: float, flags: int) -> Sent:
    """Runs the head and packs the request, if there is anything to send."""
    placement = route.placement
    started = perf_counter()
    known = placement.check(request.inputs)
    if placement.head is not None:
        known = {**known, **placement.head.run(known)}
    headed = perf_counter()
    far = placement.far
    if far is None:
        return Sent(route, request, known, started, headed, headed, deadline_s)
    channel = far.channel
    if channel.in_flight:
        flags |= wire.PIPELINED
    id = channel.reserve(most=placement.most_nbytes(known))
    try:
        packet = route.pack(id, far.segment, known, deadline_s, flags)
    except BaseException:
        channel.abandon(id)
        raise
    return Sent(
        route, request, known, started, headed, perf_counter(), deadline_s, channel, id, packet, packet.nbytes,
        packet.codecs,
    )  # fmt: skip


def send(sent: Sent) -> Sent:
    """Hands the request to the link, which may be slow to take it."""
    if sent.channel is not None and sent.packet is not None:
        sent.channel.send(sent.id, sent.packet)
        sent.packet = None
    return sent


def finish(sent: Sent) -> Result:
    """The answer. What an ERROR or BUSY stands for is raised, ServerError if none comes in time or ever."""
    route, request, channel = sent.route, sent.request, sent.channel
    placement = route.placement
    if channel is None:
        outputs = placement.outputs_of(sent.known)
        marks = Marks(sent.started, *(perf_counter(),) * 3)
        return Result(outputs, placement.cut.name, marks, request.spans, request.tag, deadline_s=sent.deadline_s)
    frame = channel.wait(sent.id)
    outputs = placement.answer(frame, sent.known)
    return Result(
        outputs,
        placement.cut.name,
        Marks(sent.started, sent.headed, sent.packed, perf_counter()),
        request.spans,
        request.tag,
        sent.nbytes,
        frame.nbytes,
        frame.times,
        channel.offset_at(sent.packed, frame),
        route.codecs_of(sent.codecs) if sent.codecs else {},
        deadline_s=sent.deadline_s,
    )


def abandon(sent: Sent) -> None:
    """Nobody waits for the answer any more."""
    if sent.channel is not None:
        sent.channel.abandon(sent.id)
