"""What is minimised, as weights of the additive parts of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitpoint.errors import UsageError, nearest
from splitpoint.planning.hosts import Host

NAMES = ("latency", "throughput", "energy", "bytes", "server-time")


@dataclass(frozen=True, slots=True)
class ObjectiveWeights:
    """What each part of a request counts.

    A millisecond of each host's time (computing, encoding, decoding), a millisecond that bytes take on each hop, a
    millisecond of each hop's round trip; `byte` is what one byte counts on any hop, either way.
    """

    hosts: tuple[float, ...]
    transfers: tuple[float, ...]
    trips: tuple[float, ...]
    byte: float = 0.0

    def plus(self, other: ObjectiveWeights, share: float) -> ObjectiveWeights:
        """These weights and a share of `other`."""

        def both(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
            return tuple(a + share * b for a, b in zip(mine, theirs, strict=True))

        return ObjectiveWeights(
            both(self.hosts, other.hosts),
            both(self.transfers, other.transfers),
            both(self.trips, other.trips),
            self.byte + share * other.byte,
        )


def weights_of(objective: str, hosts: Sequence[Host]) -> ObjectiveWeights:
    """The weights whose sum an objective minimises (throughput is a maximum, not a sum: that of its tie-break).

    Energy is the device's: watts × ms = mJ; it waits while others work. Server time is that of all hosts but the
    device. UsageError for an unknown objective, and for energy without watts.
    """
    others = len(hosts) - 1  # as many as hops
    if objective in ("latency", "throughput"):
        return ObjectiveWeights((1.0,) * len(hosts), (1.0,) * others, (1.0,) * others)
    free = (0.0,) * others
    if objective == "bytes":
        return ObjectiveWeights((0.0, *free), free, free, byte=1.0)
    if objective == "server-time":
        return ObjectiveWeights((0.0,) + (1.0,) * others, free, free)
    if objective == "energy":
        watts = hosts[0].profile.watts
        if watts is None:
            raise UsageError(
                "the edge's profile has no watts, so energy is not known: give --edge-watts COMPUTE,TX,IDLE "
                "(such as 7,3,2) to splitpoint profile or plan"
            )
        idle = (watts.idle,) * others
        return ObjectiveWeights((watts.compute, *idle), (watts.tx, *idle[1:]), idle)
    raise UsageError(f"no objective is called {objective}{nearest(objective, NAMES)}: there are {', '.join(NAMES)}")
