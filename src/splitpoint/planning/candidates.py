"""Every topological prefix with every codec, as arrays: what each part of a request costs, and which are allowed.

Made once for two profiles; a new link is a few sums. These are the candidates that the exact search is checked
against, and, where constraints do not add up (memory, accuracy, a deadline), the ones that are chosen from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import InputError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.build import RAW, input_like
from splitpoint.planning.frames import answer_nbytes, request_nbytes
from splitpoint.planning.objectives import Weights
from splitpoint.planning.problem import Bools, Floats
from splitpoint.profile.values import CodecCost, Profile
from splitpoint.tensors import TensorSpec

#: Bytes that a calibration measured: (prefix, codec, place in ``cut.crossing``) → median.
Sizes: TypeAlias = Mapping[tuple[int, str, int], int]


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
        cost = self._cost(self.edge, codec, "device")
        return cost.encode_fixed_ms + cost.encode_ms_per_mb * nbytes / 1e6

    def decode_ms(self, codec: str, nbytes: int) -> float:
        """Time to decode it on the server."""
        cost = self._cost(self.cloud, codec, "server")
        return cost.decode_fixed_ms + cost.decode_ms_per_mb * nbytes / 1e6

    def knows(self, codec: str) -> bool:
        """Whether both profiles have times for this codec."""
        return all(codec == RAW or _timed(p.codecs, codec) is not None for p in (self.edge, self.cloud))

    def require(self, codec: str) -> None:
        """InputError if a profile has no times for this codec."""
        for profile, side in ((self.edge, "device"), (self.cloud, "server")):
            self._cost(profile, codec, side)

    def _cost(self, profile: Profile, codec: str, side: str) -> CodecCost:
        found = _FREE if codec == RAW else _timed(profile.codecs, codec)
        if found is None:
            known = ", ".join(profile.codecs) or "none"
            raise InputError(
                f"the {side}'s profile has no times for the codec {codec} (it has: {known}): profile again, "
                "with this version of splitpoint"
            )
        return found


_FREE = CodecCost(0.0, 0.0, 0.0, 0.0)


def _timed(codecs: Mapping[str, CodecCost], name: str) -> CodecCost | None:
    """The times of a codec; JPEG's hardly depend on the quality, so the nearest one measured stands for another."""
    if name in codecs:
        return codecs[name]
    kind, _, quality = name.partition(":")
    if not quality.isdecimal():
        return None
    near = [n for n in codecs if n.partition(":")[0] == kind and n.partition(":")[2].isdecimal()]
    return codecs[min(near, key=lambda n: abs(int(n.partition(":")[2]) - int(quality)))] if near else None


class Candidates:
    """The prefixes of a graph, and what crosses at each with each of `codecs` (one for every tensor that accepts it).

    Arrays over prefixes: `head`, `tail` (float64[n, 3]: median, p10, p90 in ms), `down_nbytes`, `remote` (whether the
    server computes), `memory`. Over prefixes and codecs: `encode`, `decode` (ms), `up_nbytes`.
    """

    def __init__(self, graph: Graph, pricing: Pricing, codecs: Sequence[str], sizes: Sizes) -> None:
        self.graph, self.pricing, self.codecs = graph, pricing, tuple(codecs)
        self.cuts = graph.prefixes()
        self.head = _stats(pricing.edge, self.cuts, heads=True)
        self.tail = _stats(pricing.cloud, self.cuts, heads=False)
        counts = np.array([len(c.nodes) for c in self.cuts])
        self.remote: Bools = counts < len(graph.placed)
        self.interior: Bools = self.remote & (counts > 0)
        self.down_nbytes = np.array([answer_nbytes(graph, c) for c in self.cuts], np.float64)
        self.memory = edge_memory(pricing.edge, self.cuts)
        self._crossings(sizes)

    def _crossings(self, sizes: Sizes) -> None:
        shape = (len(self.cuts), len(self.codecs))
        self.encode, self.decode, self.up_nbytes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        memo: dict[tuple[str, str], tuple[str, int, float, float]] = {}
        for p, cut in enumerate(self.cuts):
            if not self.remote[p]:
                continue
            for c, name in enumerate(self.codecs):
                parts = []
                for k, spec in enumerate(cut.crossing):
                    known = memo.get((spec.name, name))
                    if known is None:
                        known = memo[spec.name, name] = self._one(spec, name)
                    used, nbytes, encode, decode = known
                    parts.append((spec, used, sizes.get((p, name, k), nbytes)))
                    self.encode[p, c] += encode
                    self.decode[p, c] += decode
                self.up_nbytes[p, c] = request_nbytes(parts, len(cut.shapes))

    def _one(self, spec: TensorSpec, name: str) -> tuple[str, int, float, float]:
        codec = self.pricing.codec_for(name, spec)
        size = spec.nbytes
        return (
            codec.name, codec.nbytes(spec), self.pricing.encode_ms(codec.name, size),
            self.pricing.decode_ms(codec.name, size),
        )  # fmt: skip

    # --- values -------------------------------------------------------------------------------------------------

    def values(self, link: Link, weights: Weights) -> Floats:
        """float64[prefixes, codecs]: the weighted sum of the parts of a request."""
        w = weights
        up = w.up * 8e-3 / link.up_mbps + w.byte
        down = w.down * 8e-3 / link.down_mbps + w.byte
        alone = w.edge * self.head[:, 0] + w.tail * self.tail[:, 0] + down * self.down_nbytes
        alone = alone + w.rtt * link.rtt_ms * self.remote
        return alone[:, None] + w.encode * self.encode + up * self.up_nbytes + w.decode * self.decode

    def slowest(self, link: Link) -> Floats:
        """float64[prefixes, codecs]: ms of the slowest of device, link (both ways, no round trip) and server."""
        device = self.head[:, :1] + self.encode
        network = link.up_ms(1) * self.up_nbytes + link.down_ms(1) * self.down_nbytes[:, None]
        return np.maximum(np.maximum(device, network), self.tail[:, :1] + self.decode)

    def high(self, link: Link, latency: Floats) -> Floats:
        """float64[prefixes, codecs]: what nine requests in ten are answered by."""
        spread = (self.head[:, 2] - self.head[:, 0]) ** 2 + (self.tail[:, 2] - self.tail[:, 0]) ** 2
        spread = spread + self.remote * link.jitter_ms**2
        return latency + np.sqrt(spread)[:, None]

    @cached_property
    def leaks(self) -> Bools:
        """bool[prefixes]: whether the input, or a mere rearrangement of it, crosses."""
        telling = input_like(self.graph)
        return np.array([any(t.name in telling for t in cut.crossing) for cut in self.cuts])


def edge_memory(profile: Profile, cuts: Sequence[Cut]) -> Floats:
    """Bytes a head holds on the device: as measured, or, between two measured cuts, the larger one's.

    Where nothing was measured, four bytes a parameter.
    """
    known = {s.prefix: float(s.head_nbytes) for s in profile.segments if s.head_nbytes > 0}
    graph = profile.graph
    params = np.cumsum([0, *(sum(graph.nodes[i].params for i in step) for step in graph.order)])
    made = np.zeros(len(cuts))
    after = 0.0
    for p in range(len(cuts) - 1, 0, -1):
        after = known.get(p, after)
        made[p] = after or 4.0 * params[p]
    return made


def _stats(profile: Profile, cuts: Sequence[Cut], *, heads: bool) -> Floats:
    found = [profile.head(p) if heads else profile.tail(p) for p in range(len(cuts))]
    return np.array([(s.median, s.p10, s.p90) for s in found], np.float64).reshape(len(cuts), 3)
