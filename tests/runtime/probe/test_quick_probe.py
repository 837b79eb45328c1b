"""A small probe of an idle link, in virtual time."""

from __future__ import annotations

import pytest

from splitpoint import wire
from splitpoint.errors import ServerError
from splitpoint.runtime.probe.quick_probe import glimpse


class Channel:
    """Answers a ping and a probe, in virtual time."""

    timeout_s = 1.0

    def __init__(self, up_mbps: float, rtt_s: float, *, dead: bool = False) -> None:
        self.now_s, self.up_mbps, self.rtt_s, self.dead = 50.0, up_mbps, rtt_s, dead
        self.sent: list[int] = []
        self.welcome = wire.Welcome()

    def reserve(self) -> int:
        return len(self.sent) + 1

    def send(self, id: int, packet: wire.Packet) -> None:
        self.sent.append(packet.nbytes)

    def abandon(self, id: int) -> None: ...

    def expect(self, id: int, answer: type, timeout_s: float | None = None) -> tuple[object, wire.Frame]:
        if self.dead:
            raise ServerError("it did not answer in time")
        there_s = self.now_s + self.sent[-1] * 8e-6 / self.up_mbps + self.rtt_s / 2
        self.now_s = there_s + self.rtt_s / 2
        frame = wire.Frame(0, 0, id, None, started=self.now_s, nbytes=40)
        if answer is wire.Pong:
            return wire.Pong(0.0, there_s + 7, there_s + 7), frame
        return wire.Probed(there_s + 7, there_s + 7, there_s + 7), frame


@pytest.mark.parametrize("up_mbps", [0.5, 8.0, 100.0])
def test_a_glimpse_sees_the_rate_within_its_bytes(up_mbps: float) -> None:
    channel = Channel(up_mbps, 0.02)
    seen = glimpse(channel, lambda: 7.0, 4000, 1.0, clock=lambda: channel.now_s)
    assert seen is not None
    assert sum(channel.sent) <= 4000
    assert seen.up_nbytes * 8e-3 / (seen.up_ms - 10) == pytest.approx(up_mbps, rel=0.01)
    assert seen.rtt_ms == pytest.approx(20, rel=0.1)
    assert seen.down_ms == pytest.approx(10, rel=0.01)
    assert glimpse(Channel(1.0, 0.02, dead=True), lambda: 0.0, 4000, 1.0) is None
