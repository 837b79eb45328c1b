"""Every topological prefix with every codec, as arrays: what each part of a request costs, and which are allowed.

Made once for two profiles; a new link is a few sums. These are the candidates that the exact search is checked
against, and, where constraints do not add up (memory, accuracy, a deadline), the ones that are chosen from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from splitpoint.codecs import open_codec
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.codec_costs import Pricing
from splitpoint.planning.cost_model import input_like
from splitpoint.planning.frame_bytes import answer_nbytes, request_nbytes
from splitpoint.planning.head_memory import head_memory
from splitpoint.planning.objectives import Weights
from splitpoint.planning.solve.problem import Bools, Floats
from splitpoint.planning.uncertainty import BYTES_SHARE, CODEC_SHARE, rate_share
from splitpoint.profile.profiles import Profile
from splitpoint.tensors import TensorSpec

#: Bytes that a calibration measured: (prefix, codec, place in ``cut.crossing``) → median.
Sizes: TypeAlias = Mapping[tuple[int, str, int], int]


class Candidates:
    """The prefixes of a graph, and what crosses at each with each of `codecs` (one for every tensor that accepts it).

    Arrays over prefixes: `head`, `tail` (float64[n, 3]: median, p10, p90 in ms), `down_nbytes`, `remote` (whether the
    server computes), `memory`. Over prefixes and codecs: `encode`, `decode` (ms), `up_nbytes` and, of these, `unsized`:
    those that are estimated.
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
        self.memory = head_memory(graph)
        self._crossings(sizes)

    def _crossings(self, sizes: Sizes) -> None:
        shape = (len(self.cuts), len(self.codecs))
        self.encode, self.decode, self.up_nbytes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.unsized = np.zeros(shape)
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
                    found = sizes.get((p, name, k))
                    parts.append((spec, used, nbytes if found is None else found))
                    if found is None and not open_codec(used).sized:
                        self.unsized[p, c] += nbytes
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
        device, network, server = self.parts(link)
        return np.maximum(np.maximum(device, network), server)

    def parts(self, link: Link) -> tuple[Floats, Floats, Floats]:
        """float64[prefixes, codecs] each: ms for which device, link (both ways, no round trip) and server are busy."""
        device = self.head[:, :1] + self.encode
        network = link.up_ms(1) * self.up_nbytes + link.down_ms(1) * self.down_nbytes[:, None]
        return device, network, self.tail[:, :1] + self.decode

    def high(self, link: Link, latency: Floats) -> Floats:
        """float64[prefixes, codecs]: what nine requests in ten are answered by, as `Scorer` has it."""
        rate = rate_share(link)
        alone = (self.head[:, 2] - self.head[:, 0]) ** 2 + (self.tail[:, 2] - self.tail[:, 0]) ** 2
        alone = alone + self.remote * link.jitter_ms**2 + (rate * link.down_ms(1) * self.down_nbytes) ** 2
        codecs = CODEC_SHARE**2 * (self.encode**2 + self.decode**2)
        sent = link.up_ms(1) ** 2 * ((rate * self.up_nbytes) ** 2 + (BYTES_SHARE * self.unsized) ** 2)
        late: Floats = latency + np.sqrt(alone[:, None] + codecs + sent)
        return late

    @cached_property
    def leaks(self) -> Bools:
        """bool[prefixes]: whether the input, or a mere rearrangement of it, crosses."""
        telling = input_like(self.graph)
        return np.array([any(t.name in telling for t in cut.crossing) for cut in self.cuts])


def _stats(profile: Profile, cuts: Sequence[Cut], *, heads: bool) -> Floats:
    found = [profile.head(p) if heads else profile.tail(p) for p in range(len(cuts))]
    return np.array([(s.median, s.p10, s.p90) for s in found], np.float64).reshape(len(cuts), 3)
