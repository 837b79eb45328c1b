"""What is believed of the parts of a model, and what measured segments make of it.

The factors by which predictions are wrong are taken as normal: one that all kernels share (this machine today), one
for each kind, one for each kernel by itself. Sums of them are the heads and tails of cuts, so a measured one says most
of the kernels in it, less of those of its kinds elsewhere, least of all others. This is Gaussian conditioning
(Rasmussen and Williams, 2006, equations 2.23 and 2.24); without any measurement it gives the intervals of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np

from splitpoint.predict.learn.latency_model import PredictedTimes, cold
from splitpoint.profile.costs import Floats, Ints
from splitpoint.profile.profiles import SegmentCost, Stat

#: Standard deviations from the median of a normal variable to its 90th percentile.
TO_P90 = 1.2816
#: What a measured segment says of its kernels is this unsure (share of its ms) even where its runs agree: where a cut
#: runs, layouts change and kernels are not fused as in the whole.
_UNSURE = 0.03
#: What was measured together is off together by this share: a machine is a little faster or slower at another time
#: (40 networks two and a half hours later: 1.039 times as long, half of them 1.011 to 1.064).
ANOTHER_TIME = 0.04
#: So many times as large as was thought an error may be; how much that speaks against it, by what shares the error (all
#: kernels, those of a kind, none), for a factor of e.
_TIMES, _DOUBT = (1.0, 4.0, 16.0), (0.5, 1.0, 1.0)
#: No kernel is believed to take less or more than this many times what was predicted.
_LEAST, _MOST = 0.1, 10.0
#: A fixed part learned as below zero must not make a short segment take less than nothing.
_NOTHING_MS = 1e-6
#: Between the 10th and the 90th percentile of runs there are so many standard deviations.
_DEVIATIONS = 2.563


@dataclass(frozen=True)
class Belief:
    """Milliseconds of the parts of a model: the part every segment pays first (in full if it takes well over `cold_ms`,
    `values.cold`), then the placed nodes in order.

    `edge` and `cloud` are a part's ms in a head and in a tail; `counts` is how many nodes each prefix has. `overall`,
    `shared` and `own` are standard deviations as shares of that: of the error common to all parts, common to those of
    one `group`, and of each alone. `factors` are what is believed now, 1 before anything was measured.
    """

    edge: Floats
    cloud: Floats
    counts: Ints
    overall: float
    shared: Floats
    own: Floats
    group: Ints
    factors: Floats
    cold_ms: float
    #: Covariances of each part with what was measured, and the Cholesky factor of the measurements' own.
    _with: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    _root: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)

    def heads(self) -> list[Stat]:
        """The head of every prefix: the first has nothing to compute, the last is the whole model."""
        return self._stats(self.edge, heads=True)

    def tails(self) -> list[Stat]:
        """The tail of every prefix; the last has nothing to compute."""
        return self._stats(self.cloud, heads=False)

    def deviations(self) -> Floats:
        """The standard deviation of each part's factor."""
        left: Floats = self.overall**2 + self.shared**2 + self.own**2 - self._learned(self._with)
        return np.asarray(np.sqrt(np.maximum(left, 0.0)), np.float64)

    def _stats(self, ms: Floats, *, heads: bool) -> list[Stat]:
        share_cold = self._cold(ms, heads=heads)
        summed = partial(self._summed, heads=heads, cold=share_cold)
        medians = np.maximum(summed(ms * self.factors), _NOTHING_MS)
        groups = np.eye(int(self.group.max()) + 1)[self.group]
        variance = (self.overall * summed(ms)) ** 2
        variance = variance + (summed((ms * self.shared)[:, None] * groups) ** 2).sum(axis=1)
        variance = variance + self._summed((ms * self.own) ** 2, heads=heads, cold=share_cold**2)
        if self._with.size:
            variance = variance - self._learned(summed(ms[:, None] * self._with))
        # Errors are shares: of a sum that turned out to be larger they are so much larger.
        thought = np.maximum(summed(ms), _NOTHING_MS)
        share = TO_P90 * np.sqrt(np.maximum(variance, 0.0)) / np.minimum(medians, thought)
        return PredictedTimes(medians, medians * np.exp(-share), medians * np.exp(share)).stats()

    def _summed(self, parts: Floats, *, heads: bool, cold: Floats) -> Floats:
        """The sum of `parts` over each prefix (or over what it leaves), and of the first part the share `cold`."""
        done = np.concatenate([np.zeros_like(parts[:1]), np.cumsum(parts[1:], axis=0)])
        first = np.multiply.outer(cold, parts[0])
        sums: Floats = first + (done[self.counts] if heads else done[-1] - done[self.counts])
        return sums

    def _cold(self, ms: Floats, *, heads: bool) -> Floats:
        """The share of the first part that each prefix (or what it leaves) pays."""
        return cold(self._summed(ms, heads=heads, cold=np.zeros(len(self.counts))), self.cold_ms)

    def _learned(self, covariances: Floats) -> Floats | float:
        """By how much measuring has lowered variances that have these covariances with what was measured (rows)."""
        if not self._with.size:
            return 0.0
        variances: Floats = (np.linalg.solve(self._root, covariances.T) ** 2).sum(axis=0)
        return variances

    def given(self, segments: Sequence[SegmentCost]) -> Belief:
        """What is believed once these heads and tails were measured. Without any, the same.

        Measurements further off than was thought possible say that more is unsure than was thought: the machine as a
        whole, kinds, or single kernels, whichever makes them likeliest.
        """
        rows, ms, noise = self._observed(segments)
        if not len(ms):
            return self
        missing = ms - rows.sum(axis=1)
        likeliest = self._likeliest(rows, missing, noise)
        parts = likeliest._covariances(rows)
        covariances = parts[0] + parts[1] + parts[2]
        together = rows @ covariances + noise
        factors = np.clip(1.0 + covariances @ np.linalg.solve(together, missing), _LEAST, _MOST)
        root = np.asarray(np.linalg.cholesky(together), np.float64)
        return replace(likeliest, factors=factors, _with=covariances, _root=root)

    def _likeliest(self, rows: Floats, missing: Floats, noise: Floats) -> Belief:
        """The same with each kind of error so many times as large as makes what is `missing` likeliest.

        Type-II maximum likelihood (Rasmussen and Williams, equation 5.8) on a coarse grid; a machine that is slower as
        a whole is the likelier reason, where both will do.
        """
        parts = [rows @ covariance for covariance in self._covariances(rows)]

        def unlikely(times: tuple[float, ...]) -> float:
            together = sum((t**2 * p for t, p in zip(times, parts, strict=True)), noise)
            root = np.linalg.cholesky(together)
            doubt = sum(d * np.log(t) for d, t in zip(_DOUBT, times, strict=True))
            return float((np.linalg.solve(root, missing) ** 2).sum() / 2 + np.log(np.diag(root)).sum() + doubt)

        overall, shared, own = min(product(_TIMES, repeat=3), key=unlikely)
        return replace(self, overall=self.overall * overall, shared=self.shared * shared, own=self.own * own)

    def _observed(self, segments: Sequence[SegmentCost]) -> tuple[Floats, Floats, Floats]:
        """What each measured side is the sum of (a row a side), its ms, and the covariance of how far those may be
        off."""
        places = np.arange(1, len(self.edge))
        rows, times, unsure = [], [], []
        colds = {heads: self._cold(ms, heads=heads) for heads, ms in ((True, self.edge), (False, self.cloud))}
        for segment in segments:
            count = self.counts[segment.prefix]
            for stat, ms, heads in ((segment.head, self.edge, True), (segment.tail, self.cloud, False)):
                inside = places <= count if heads else places > count
                if stat is not None and stat.median > 0 and inside.any():
                    rows.append(ms * np.concatenate([[colds[heads][segment.prefix]], inside]))
                    times.append(stat.median)
                    spread = (stat.p90 - stat.p10) / _DEVIATIONS / np.sqrt(max(stat.count, 1))
                    unsure.append(float(np.hypot(_UNSURE * stat.median, spread)))
        ms = np.array(times)
        return np.array(rows), ms, np.diag(np.square(unsure)) + ANOTHER_TIME**2 * np.outer(ms, ms)

    def _covariances(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """float64[parts, rows] each: the covariance of each part's factor with the sums that `rows` stand for, by the
        errors that all share, that kinds share, and that are a part's own.
        """
        groups = np.eye(int(self.group.max()) + 1)[self.group]
        common = np.broadcast_to(self.overall**2 * rows.sum(axis=1), rows.T.shape)
        kinds = self.shared[:, None] * (groups @ (groups.T @ (self.shared[:, None] * rows.T)))
        return np.asarray(common), kinds, self.own[:, None] ** 2 * rows.T
