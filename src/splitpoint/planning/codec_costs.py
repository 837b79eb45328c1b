"""What a tensor takes with a codec, on either side: from both profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import InputError
from splitpoint.profile.profiles import CodecCost, Profile
from splitpoint.tensors import TensorSpec
from splitpoint.text import listed

#: Uncoded: it may always be used, and takes no time.
RAW = "raw"
_FREE = CodecCost(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pricing:
    """Bytes and milliseconds of a tensor with a codec, from both profiles."""

    edge: Profile
    cloud: Profile

    def codec_for(self, name: str, spec: TensorSpec) -> Codec:
        """The codec of that name if it accepts such tensors; raw otherwise, as the runtime does."""
        codec = open_codec(name)
        return codec if codec.accepts(spec) else open_codec(RAW)

    def encode_ms(self, codec: str, nbytes: int) -> float:
        """Time to encode a tensor of `nbytes` on the device."""
        cost = self.device(codec)
        return cost.encode_fixed_ms + cost.encode_ms_per_mb * nbytes / 1e6

    def decode_ms(self, codec: str, nbytes: int) -> float:
        """Time to decode it on the server."""
        cost = self.server(codec)
        return cost.decode_fixed_ms + cost.decode_ms_per_mb * nbytes / 1e6

    def device(self, codec: str) -> CodecCost:
        """What a codec takes on the device; InputError if its profile has no times for it."""
        return _cost(self.edge, codec, "device")

    def server(self, codec: str) -> CodecCost:
        """What a codec takes on the server; InputError if its profile has no times for it."""
        return _cost(self.cloud, codec, "server")

    def knows(self, codec: str) -> bool:
        """Whether both profiles have times for this codec."""
        return all(codec == RAW or _timed(p.codecs, codec) is not None for p in (self.edge, self.cloud))

    def require(self, codec: str) -> None:
        """InputError if a profile has no times for this codec."""
        self.device(codec)
        self.server(codec)


def _cost(profile: Profile, codec: str, side: str) -> CodecCost:
    found = _FREE if codec == RAW else _timed(profile.codecs, codec)
    if found is None:
        known = listed(profile.codecs)
        raise InputError(
            f"the {side}'s profile has no times for the codec {codec} (it has: {known}): profile again, "
            "with this version of splitpoint"
        )
    return found


def _timed(codecs: Mapping[str, CodecCost], name: str) -> CodecCost | None:
    """The times of a codec; JPEG's hardly depend on the quality, so the nearest one measured stands for another."""
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
