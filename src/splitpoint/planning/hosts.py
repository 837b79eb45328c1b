"""The machines that a model is shared out to, in the order a request passes them: the first is the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from splitpoint.errors import InputError
from splitpoint.profile.profiles import CodecCost, Profile

#: Uncoded: it may always be used, and takes no time.
RAW = "raw"
_FREE = CodecCost(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Host:
    """A machine that may run a part of the model, as fast as `profile` says. `name` is what messages call it.

    `most_memory` is how many bytes its part of the model may hold; None: any.
    """

    name: str
    profile: Profile
    most_memory: float | None = None

    def slowed(self, factor: float) -> Host:
        """The same machine while it computes `factor` times slower."""
        return self if factor == 1 else dataclasses.replace(self, profile=self.profile.slowed(factor))

    def knows(self, codec: str) -> bool:
        """Whether the profile has times for this codec."""
        return self._timed(codec) is not None

    def codec(self, codec: str) -> CodecCost:
        """What a codec takes on this machine; InputError if the profile has no times for it."""
        cost = self._timed(codec)
        if cost is None:
            known = ", ".join(self.profile.codecs) or "none"
            raise InputError(
                f"the {self.name}'s profile has no times for the codec {codec} (it has: {known}): profile again, "
                "with this version of splitpoint"
            )
        return cost

    def _timed(self, name: str) -> CodecCost | None:
        """JPEG's times hardly depend on the quality: the nearest quality that was measured stands for another."""
        codecs: Mapping[str, CodecCost] = self.profile.codecs
        if name == RAW:
            return _FREE
        if name in codecs:
            return codecs[name]
        wanted = quality_of(name)
        if wanted is None:
            return None
        kind = name.partition(":")[0]
        near = {n: q for n in codecs if n.partition(":")[0] == kind and (q := quality_of(n)) is not None}
        return codecs[min(near, key=lambda n: abs(near[n] - wanted))] if near else None


def quality_of(codec: str) -> int | None:
    """The number behind the colon of a codec's name; None if there is none.

    >>> quality_of("jpeg:75"), quality_of("int8")
    (75, None)
    """
    number = codec.partition(":")[2].partition("+")[0]
    return int(number) if number.isdecimal() else None
