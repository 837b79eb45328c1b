"""Measured prefixes → a cost for every node, so that any cut is a sum.

Between two measured prefixes the engine's own kernel times share out what lies between them. Where measurements go down
as a prefix grows (a Conv without the Relu that the engine fuses into it is the slower one), no node costs less
than nothing: the nearest monotone fit is taken instead, by relative error, in which a measurement counts for less the
further its runs lie apart.
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
    have beside their kernels.

    `anchors`: prefix (number of steps, > 0) → measured ms; the last must be all steps. `kernels` (ms a step) share out
    what lies between two anchors. `spreads`: prefix → that of its runs, as a share.
    """
    done = np.cumsum(kernels)
    scale = min(1.0, anchors[max(anchors)] / done[-1]) if done[-1] > 0 else 0.0
    fixed = max(0.0, min(ms - scale * float(done[k - 1]) for k, ms in anchors.items()))
    places = sorted(anchors)
    fitted = monotone([max(anchors[k] - fixed, 0.0) for k in places], [spreads.get(k, 0.0) for k in places])
    spans = np.diff(places, prepend=0)
    return _shared(np.diff(fitted, prepend=0.0), np.repeat(np.arange(len(places)), spans), kernels), fixed


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
