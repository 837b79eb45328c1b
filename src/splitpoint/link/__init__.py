"""The network between device and server, as numbers a plan can use.

>>> link = Link(up_mbps=5.85, down_mbps=20, rtt_ms=40)
>>> f"{link.transfer_ms(up_nbytes=150_528, down_nbytes=4_000):.0f} ms"
'247 ms'

`presets` names the usual ones, `parse` reads ``--link``, `link_trace` is a link that changes, `files` keeps them,
`estimator` learns from real requests.
Measuring is the runtime's (`splitpoint.runtime.probe.link_probe`): nothing here does I/O but `files`.
"""

from __future__ import annotations

import msgspec

from splitpoint.errors import UsageError
from splitpoint.units import mbps

#: What a link may be. Wider than any real one; what lies outside is a slip of the pen or a broken file.
_RATES = (1e-6, 1e9)
_MOST_MS = 1e7


class Link(msgspec.Struct, frozen=True):
    """`up_mbps` and `down_mbps` are what an application gets through, in 10⁶ bits a second; `rtt_ms` is the least
    round trip of an empty message; `jitter_ms` how far above it the 90th percentile lies. `name` is how it was asked
    for. `software_ms` is what the runtime at both ends adds to a request beside round trip and bytes
    (`runtime.probe.software`); 0 where that was not measured.

    UsageError for a rate that is not above 0, a time that is negative, NaN and infinity.
    """

    up_mbps: float
    down_mbps: float
    rtt_ms: float
    jitter_ms: float = 0.0
    name: str = ""
    software_ms: float = 0.0

    def __post_init__(self) -> None:
        low, high = _RATES
        for field, rate in (("up_mbps", self.up_mbps), ("down_mbps", self.down_mbps)):
            if not low <= rate <= high:
                raise UsageError(f"a link's {field} must be from {low:g} to {high:g} Mbit/s, not {rate:g}")
        for field, time in (("rtt_ms", self.rtt_ms), ("jitter_ms", self.jitter_ms), ("software_ms", self.software_ms)):
            if not 0 <= time <= _MOST_MS:
                raise UsageError(f"a link's {field} must be from 0 to {_MOST_MS:g} ms, not {time:g}")

    def __str__(self) -> str:
        jitter = f", jitter {self.jitter_ms:.3g} ms" if self.jitter_ms else ""
        rates = f"{mbps(self.up_mbps)} Mbit/s up, {mbps(self.down_mbps)} down"
        software = f", software {self.software_ms:.2g} ms" if self.software_ms else ""
        return f"{rates}, round trip {self.rtt_ms:.3g} ms{jitter}{software}"

    @property
    def beside_ms(self) -> float:
        """What a request waits for beside its bytes: the round trip and the software."""
        return self.rtt_ms + self.software_ms

    def up_ms(self, nbytes: float) -> float:
        """How long `nbytes` take from the device to the server, without the round trip."""
        return nbytes * 8e-3 / self.up_mbps

    def down_ms(self, nbytes: float) -> float:
        """How long `nbytes` take from the server to the device, without the round trip."""
        return nbytes * 8e-3 / self.down_mbps

    def transfer_ms(self, up_nbytes: float, down_nbytes: float) -> float:
        """One request's time beside computing: a round trip, the software and the bytes both ways."""
        return self.beside_ms + self.up_ms(up_nbytes) + self.down_ms(down_nbytes)
