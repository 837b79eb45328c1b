"""Measured prefixes → a cost for every node, so that any cut is a sum.

Between two measured prefixes the engine's own kernel times share out what lies between them. Where measurements go down
as a prefix grows (a Conv without the Relu that the engine fuses into it is the slower one), no node costs less
than nothing: the nearest monotone fit is taken instead, by relative error, in which a measurement counts for less the
further its runs lie apart.

How far off that is, where nothing was measured, is learned from where something was: each measured cut is compared with
what the two beside it say of it. What other models showed counts as much as some measured cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitpoint.graph import Graph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NodeCosts:
    """Milliseconds of each node of a graph (float64[len(graph.nodes)], ≥ 0; 0 for copied ones) in its two roles.

    ``head(cut) ≈ head_fixed + head[cut.nodes].sum()`` and, over the placed nodes that are left,
    ``tail(cut) ≈ tail_fixed + tail[rest].sum()``. The fixed parts are paid by a side that has a node at all.
    """

    head: Floats
    tail: Floats
    head_fixed: float = 0.0
    tail_fixed: float = 0.0


#: Medians of two visits differ by so much (share) even where the runs of each are alike: no point counts for more.
_LEAST_SPREAD = 0.02
#: What is so short (ms) is nothing: sums in ratio to it would overflow.
_NOTHING_MS = 1e-9


def monotone(values: Sequence[float], spreads: Sequence[float] = ()) -> Floats:
    """The non-decreasing sequence nearest to `values` (> 0) by squared relative error: pool adjacent violators.

    With `spreads` (of each value, as a share of it) errors count in units of these, from 2 % on.

    >>> monotone([1.0, 3.0, 3.0, 2.0]).round(2).tolist()
    [1.0, 2.47, 2.47, 2.47]
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, spread in zip(values, spreads or [_LEAST_SPREAD] * len(values), strict=True):
        block = (value, (_LEAST_SPREAD / max(spread, _LEAST_SPREAD) / max(value, 1e-6)) ** 2, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, weight, count = blocks.pop()
            total = weight + block[1]
            block = ((mean * weight + block[0] * block[1]) / total, total, count + block[2])
        blocks.append(block)
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


def step_costs(anchors: Mapping[int, float], kernels: Floats, spreads: Mapping[int, float]) -> tuple[Floats, float]:
    """What each step costs (ms), and what a segment costs however small it is: as much as all of the measured ones
    have beside their kernels; nothing where only the whole was measured.

    `anchors`: prefix (number of steps, > 0) → measured ms; the last must be all steps. `kernels` (ms a step) share out
    what lies between two anchors. `spreads`: prefix → that of its runs, as a share.
    """
    done = np.cumsum(kernels)
    scale = min(1.0, anchors[max(anchors)] / done[-1]) if done[-1] > 0 else 0.0
    places = sorted(anchors)
    # What the whole has beside its kernels is fixed only if a shorter one has it, too: the profiler runs it otherwise.
    short = [anchors[k] - scale * float(done[k - 1]) for k in places[:-1]]
    fixed = max(0.0, min([*short, anchors[places[-1]] - scale * float(done[-1])])) if short else 0.0
    fitted = monotone([max(anchors[k] - fixed, 0.0) for k in places], [spreads.get(k, 0.0) for k in places])
    spans = np.diff(places, prepend=0)
    return _shared(np.diff(fitted, prepend=0.0), np.repeat(np.arange(len(places)), spans), kernels), fixed


#: How far off a modelled time is, with nothing to compare: ms of an engine's call, shares of the whole's time and of
#: its own (a cut undoes fusions), and of what lies between it and the measured cuts beside it (their geometric mean).
_CALL_MS, _OF_WHOLE, _OF_ITS_OWN, _OF_STRETCH = 0.075, 0.003, 0.03, 0.1
#: Of the whole's time a call takes at most so much.
_MOST_CALL = 1 / 3
#: Errors in that unit, each as likely as the others, and for how many measured cuts they count: of twelve networks
#: whose cuts were measured and left out (``python -m bench.profile``).
_PRIOR = np.array([-2.0, -1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 0.9, 1.5, 3.0])
_PRIOR_COUNT = 15.0


@dataclass(frozen=True)
class Growing:
    """The heads of all prefixes, or, from the other end, the tails: fitted `ms` (float64[steps + 1], 0 to all steps),
    `kernels` of each step, and `known`: number of steps → ms, or None where that is a prediction, too.
    """

    ms: Floats
    kernels: Floats
    known: Mapping[int, float | None]

    @property
    def _places(self) -> Ints:
        return np.array(sorted({0, *self.known, len(self.kernels)}))

    def _unit(self, ms: Floats, low: Floats, high: Floats) -> Floats:
        """How far off `ms` may be where `low` and `high` are the nearest that are known."""
        stretch = np.maximum((ms - low) * (high - ms), 0.0)
        whole = self.ms[-1]
        fixed = min(_CALL_MS, _MOST_CALL * whole) ** 2 + (_OF_WHOLE * whole) ** 2
        unit: Floats = np.sqrt(fixed + (_OF_ITS_OWN * ms) ** 2 + _OF_STRETCH**2 * stretch)
        return unit

    def errors(self) -> Floats:
        """How far (in units) each measured time lies from what those beside it say of it."""
        left, inner, right = (self._places[k : k - 2 or None] for k in range(3))
        done = np.concatenate([[0.0], np.cumsum(self.kernels)])
        stretch = done[right] - done[left]
        share = np.where(stretch > 0, (done[inner] - done[left]) / np.where(stretch > 0, stretch, 1.0), 0.5)
        low, high = self.ms[left], self.ms[right]
        said = low + share * (high - low)
        measured = np.array([np.nan if (ms := self.known[k]) is None else ms for k in inner.tolist()], np.float64)
        off = (measured - said) / self._unit(said, low, high)
        return off[~np.isnan(off)]

    def doubts(self, low: float, high: float) -> tuple[Floats, Floats]:
        """How far (ms) below and above `ms` four of five measurements are, where `errors` lie from `low` to `high`."""
        places, every = self._places, np.arange(len(self.ms))
        if len(places) < 2:
            return np.zeros(1), np.zeros(1)
        after = np.searchsorted(places, every).clip(1)
        begun, ended = self.ms[places[after - 1]], self.ms[places[after]]
        unit = self._unit(self.ms, begun, ended)
        # Nobody knows, before the first measured cut, whether what is beside the kernels is paid there already.
        first = np.where(every < places[1], (ended - self.ms) / np.maximum(ended - self.ms[0], _NOTHING_MS), 0.0)
        unbooked = max(0.0, self.ms[-1] - float(self.kernels.sum())) if len(places) == 2 else 0.0
        return np.hypot(low * unit, self.ms[0] * first), np.hypot(high * unit, unbooked * first)


def likely(errors: Floats) -> tuple[float, float]:
    """Between which two values (≤ 0, ≥ 0) four in five further ones lie, by `errors` and by what other models showed.

    >>> [round(error, 2) for error in likely(np.array([]))]
    [-1.5, 2.25]
    """
    values = np.concatenate([errors, _PRIOR])
    counts = np.concatenate([np.ones(len(errors)), np.full(len(_PRIOR), _PRIOR_COUNT / len(_PRIOR))])
    order = np.argsort(values)
    below = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
    low, high = np.interp((0.1, 0.9), below, values[order]).tolist()
    return min(low, 0.0), max(high, 0.0)


def _shared(totals: Floats, owner: Ints, parts: Floats) -> Floats:
    """Each of `totals` shared out among the `parts` it owns, in proportion; equally where they are all 0."""
    sums = np.bincount(owner, parts, len(totals))
    empty = sums == 0
    parts = np.where(empty[owner], 1.0, parts)
    sums = np.where(empty, np.bincount(owner, minlength=len(totals)), sums)
    shares: Floats = totals[owner] * parts / sums[owner]
    return shares


def fit(
    graph: Graph,
    heads: Mapping[int, float],
    tails: Mapping[int, float],
    whole: float,
    nodes: Floats,
    head_spreads: Mapping[int, float],
    tail_spreads: Mapping[int, float],
) -> NodeCosts:
    """The costs behind measured `heads` and `tails`: place in ``graph.prefixes()`` → median ms.

    The spreads are those of their runs, as shares of the medians.
    """
    steps = graph.order
    nodes = np.where(nodes < _NOTHING_MS, 0.0, nodes)
    if not steps:
        nothing = np.zeros(len(graph.nodes))
        return NodeCosts(nothing, nothing)
    flat = np.array([i for step in steps for i in step])
    owner = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
    kernels = np.bincount(owner, nodes[flat], len(steps)).astype(np.float64)
    # From the other end a tail is a prefix, too: of the steps in reverse.
    n = len(steps)
    ahead = {n: whole} | {k: ms for k, ms in heads.items() if k}
    back = {n: whole} | {n - k: ms for k, ms in tails.items() if k < n}
    head_steps, head_fixed = step_costs(ahead, kernels, head_spreads)
    back_steps, tail_fixed = step_costs(back, kernels[::-1], {n - k: spread for k, spread in tail_spreads.items()})
    head, tail = np.zeros(len(graph.nodes)), np.zeros(len(graph.nodes))
    head[flat] = _shared(head_steps, owner, nodes[flat])  # a group shares its time as its kernels do
    tail[flat] = _shared(back_steps[::-1], owner, nodes[flat])
    return NodeCosts(head, tail, head_fixed, tail_fixed)
