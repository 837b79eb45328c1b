"""The network between device and server, as numbers a plan can use.

>>> link = Link(up_mbps=5.85, down_mbps=20, rtt_ms=40)
>>> f"{link.transfer_ms(up_nbytes=150_528, down_nbytes=4_000):.0f} ms"
'247 ms'
"""

from __future__ import annotations

import msgspec


class Link(msgspec.Struct, frozen=True):
    """`up_mbps` and `down_mbps` are what an application gets through, in 10⁶ bits a second; `rtt_ms` is the least
    round trip of an empty message; `jitter_ms` how far above it the 90th percentile lies. `name` is how it was asked for.
    """

    up_mbps: float
    down_mbps: float
    rtt_ms: float
    jitter_ms: float = 0.0
    name: str = ""

    def up_ms(self, nbytes: float) -> float:
        """How long `nbytes` take from the device to the server, without the round trip."""
        return nbytes * 8e-3 / self.up_mbps

    def down_ms(self, nbytes: float) -> float:
        """How long `nbytes` take from the server to the device, without the round trip."""
        return nbytes * 8e-3 / self.down_mbps

    def transfer_ms(self, up_nbytes: float, down_nbytes: float) -> float:
        """One request's time on the network: a round trip and the bytes both ways."""
        return self.rtt_ms + self.up_ms(up_nbytes) + self.down_ms(down_nbytes)
