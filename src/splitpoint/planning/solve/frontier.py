"""Of many ways to serve a request, those that a plan of several requests together may need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitpoint.planning.solve.problem import Floats

_STEPS = 8


def supported(costs: Floats, most: int) -> Sequence[int]:
    """At most `most` rows of `costs` (float64[ways, resources]) that are the cheapest for some prices of the resources.

    Those that are so for the most prices come first: where many requests are shared out so that no resource becomes the
    bottleneck, mixes of these are all it takes. Behind them are the nearest of those that nothing is better than.

    >>> supported(np.array([[4.0, 0.0], [0.0, 4.0], [1.0, 1.0], [3.0, 3.0], [0.5, 2.9]]), 8)
    [2, 0, 1, 4]
    """
    if not len(costs):
        return []
    prices = np.array(list(_simplex(costs.shape[1], _STEPS)), np.float64) / _STEPS
    # A hair of everything: of two that cost the same, the quicker one.
    paid = prices @ costs.T + 1e-6 * costs.sum(1)
    counts = np.bincount(paid.argmin(1), minlength=len(costs))
    # Those that are nearly the cheapest fill the gaps between them: a request is not to be had in parts.
    behind = (paid / paid.min(1, keepdims=True)).min(0)
    order = np.lexsort((behind, -counts))
    return [int(k) for k in order[:most] if counts[k] or _efficient(costs, k)]


def _efficient(costs: Floats, row: int) -> bool:
    """Whether no other row is as cheap in everything and cheaper in something."""
    better = (costs <= costs[row]).all(1) & (costs < costs[row]).any(1)
    return not bool(better.any())


def _simplex(parts: int, steps: int) -> list[tuple[int, ...]]:
    """All ways to write `steps` as a sum of `parts` whole numbers."""
    if parts == 1:
        return [(steps,)]
    return [(first, *rest) for first in range(steps + 1) for rest in _simplex(parts - 1, steps - first)]
