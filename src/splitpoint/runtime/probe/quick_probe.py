"""A small probe of an idle link: a ping, and one message up, within a given number of bytes.

`link_probe` measures a link by filling it; this shows whether it is still what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import perf_counter
from typing import NamedTuple

from splitpoint import wire
from splitpoint.errors import ServerError
from splitpoint.runtime.probe.link_probe import noise
from splitpoint.runtime.probe.ping import Asks, ping
from splitpoint.wire import Kind

#: What a PING and its PONG, and a PROBE and its PROBED, have beside a body, at most.
OVERHEAD_NBYTES = 256


class Glimpse(NamedTuple):
    """What a probe showed: a round trip, and how long a frame was on its way up and its answer on its way back. As in a
    trace, half of the round trip is in each. Their sum is sure; each alone is as sure as the clocks' offset."""

    rtt_ms: float
    up_nbytes: int
    up_ms: float
    down_nbytes: int
    down_ms: float


def glimpse(
    channel: Asks, offset_s: Callable[[], float], nbytes: int, timeout_s: float,
    *, clock: Callable[[], float] = perf_counter,
) -> Glimpse | None:  # fmt: skip
    """What `nbytes` that are sent over an idle `channel` show of the link; None if no answer came in `timeout_s`.

    `offset_s` is the server's clock minus ours, asked after the ping. ProtocolError for answers that cannot be.
    """
    try:
        trip = ping(channel, timeout_s, clock)
        id, sent = channel.reserve(), clock()
        body = max(1, nbytes - OVERHEAD_NBYTES)
        packet = wire.encode(Kind.PROBE, id, wire.Probe(), (noise(body),), body)
        channel.send(id, packet)
        probed, frame = channel.expect(id, wire.Probed, timeout_s)
    except ServerError as exc:
        if type(exc) is ServerError:  # late, or gone: the next request finds that out
            return None
        raise
    back_s = frame.started - sent - max(0.0, probed.sent_s - probed.received_s)
    up_s = probed.received_s - offset_s() - sent
    if not all(isfinite(s) for s in (back_s, up_s)):
        return None
    # Where the offset is off, the frame's own round trip bounds what it can have taken.
    both_s = max(0.0, back_s)
    up_s = min(max(0.0, up_s), both_s)
    return Glimpse(trip.seconds * 1e3, packet.nbytes, up_s * 1e3, frame.nbytes, (both_s - up_s) * 1e3)
