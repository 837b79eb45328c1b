"""Pings: a message that has nothing to say, there and back, on whatever clock; and when the next one is due.

The server's clock (`server_clock`), measuring a link (`link_probe`) and whether anybody is there
(`runtime.client.reconnect`) all ask by `ping`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from splitpoint import wire
from splitpoint.wire import Frame, Kind, Packet

#: How often a request brings a ping along.
EVERY_S = 1.0
#: A ping whose answer is this late says nothing about the clock.
_LOST_S = 10.0

M = TypeVar("M", bound=wire.Message)


class Asks(Protocol):
    """What of a `Channel` is used: tests bring one in virtual time."""

    timeout_s: float
    welcome: wire.Welcome

    def reserve(self, *, most: int = ...) -> int: ...

    def send(self, id: int, packet: Packet) -> None: ...

    def expect(self, id: int, answer: type[M], timeout_s: float | None = None) -> tuple[M, Frame]: ...

    def abandon(self, id: int) -> None: ...


class RoundTrip(NamedTuple):
    """A ping: sent and back on the device's clock, received and answered on the server's (s), and its bytes."""

    sent: float
    received: float
    answered: float
    back: float
    up_nbytes: int = 0
    down_nbytes: int = 0

    @property
    def seconds(self) -> float:
        """Without the time at the server; whatever that claims, from 0 to what passed here."""
        return max(0.0, self.back - self.sent - max(0.0, self.answered - self.received))


def ping(channel: Asks, timeout_s: float | None, clock: Callable[[], float]) -> RoundTrip:
    """One ping over `channel`. What `Channel.expect` raises if no answer comes in time."""
    id, sent = channel.reserve(), clock()
    packet = wire.encode(Kind.PING, id, wire.Ping(sent))
    channel.send(id, packet)
    pong, frame = channel.expect(id, wire.Pong, timeout_s)
    return RoundTrip(sent, pong.received_s, pong.sent_s, frame.started, packet.nbytes, frame.nbytes)


def pings(
    channel: Asks, seconds: float, most: int, clock: Callable[[], float], *, least: int = 1,
    timeout_s: Callable[[], float | None] = lambda: None,
) -> Iterator[RoundTrip]:  # fmt: skip
    """Pings one after the other until `seconds` are spent: `least` of them in any case, never more than `most`."""
    end = clock() + seconds
    for k in range(most):
        if k >= least and clock() >= end:
            return
        yield ping(channel, timeout_s(), clock)


class PingSchedule:
    """When a request brings a ping along, which costs it no round trip: one a second, unless one is still out.

    None is due before `next_s`: whoever sends looks at that first.
    """

    def __init__(self) -> None:
        self.next_s = EVERY_S
        self._sent_s = 0.0
        self._out = False

    def due(self, now: float) -> bool:
        """Whether one is to be sent `now`; then it is taken as sent."""
        if now <= self.next_s:
            return False
        self._sent_s, self._out = now, True
        self.next_s = now + _LOST_S
        return True

    def answered(self, ping_s: float) -> bool:
        """Whether the answer to the ping that was sent at `ping_s` is the one that is waited for."""
        waited = self._out and ping_s == self._sent_s
        if waited:
            self._out, self.next_s = False, ping_s + EVERY_S
        return waited

    def measured(self, now: float) -> None:
        """Enough pings were sent just now."""
        self.next_s = now + (_LOST_S if self._out else EVERY_S)

    def hurry(self) -> None:
        """The next request brings one along."""
        self.next_s = 0.0
