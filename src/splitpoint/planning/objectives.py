"""What is minimised, as weights of the additive parts of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from splitpoint.errors import UsageError, nearest
from splitpoint.profile.profiles import Watts

Name = Literal["latency", "throughput", "energy", "bytes", "server-time"]
NAMES: tuple[str, ...] = get_args(Name)

#: Objective → unit of its value and what "less" is called.
UNITS: Mapping[str, str] = {
    "latency": "ms", "throughput": "ms a request", "energy": "mJ", "bytes": "bytes", "server-time": "ms on the server",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What a millisecond of each part counts: device, encoding, bytes up and down, round trip, decoding, server.

    `byte` is what one byte counts, either way.
    """

    edge: float = 0.0
    encode: float = 0.0
    up: float = 0.0
    down: float = 0.0
    rtt: float = 0.0
    decode: float = 0.0
    tail: float = 0.0
    byte: float = 0.0


def weights_of(objective: str, watts: Watts | None) -> Weights:
    """The weights whose sum an objective minimises (throughput is a maximum, not a sum: that of its tie-break).

    Energy is the device's: watts × ms = mJ; it waits while the server works. UsageError for an unknown objective,
    and for energy without watts.
    """
    if objective in ("latency", "throughput"):
        return Weights(1, 1, 1, 1, 1, 1, 1)
    if objective == "bytes":
        return Weights(byte=1)
    if objective == "server-time":
        return Weights(decode=1, tail=1)
    if objective == "energy":
        if watts is None:
            raise UsageError(
                "the device's profile has no watts, so energy is not known: give --edge-watts COMPUTE,TX,IDLE "
                "(such as 7,3,2) to splitpoint profile or plan"
            )
        return Weights(watts.compute, watts.compute, watts.tx, watts.tx, watts.idle, watts.idle, watts.idle)
    raise UsageError(f"no objective is called {objective}{nearest(objective, NAMES)}: there are {', '.join(NAMES)}")
