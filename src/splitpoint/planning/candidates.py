"""Every topological prefix with every codec: their scores on a link, and which of them the constraints allow.

The scores are a few sums over arrays. These are the candidates that the exact search is checked against, and, where
constraints do not add up (memory, accuracy, a deadline), the ones that are chosen from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce

import numpy as np

from splitpoint.codecs import open_priced
from splitpoint.link import Link
from splitpoint.planning.cost_model import CostModel, high
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.plans import Option
from splitpoint.planning.scoring import Scorer, uniform
from splitpoint.planning.solve.problem import Bools, Floats, simplex


class Candidates:
    """The prefixes of a graph by number, with one codec each for every tensor that accepts it.

    `remote` (bool[prefixes]): whether the server computes anything; `interior`: whether the device does, too.
    """

    def __init__(self, costs: CostModel, scorer: Scorer, objective: str) -> None:
        self.costs, self.objective, self.scorer = costs, objective, scorer
        self.cuts = costs.graph.prefixes()
        counts = np.array([len(c.nodes) for c in self.cuts])
        self.remote: Bools = counts < len(costs.graph.placed)
        self.interior: Bools = self.remote & (counts > 0)
        self._weights = weights_of(objective, costs.hosts)
        self._ones = weights_of("latency", costs.hosts)

    def scores(self, link: Link) -> tuple[Floats, Bools]:
        """The objective of every prefix with every codec, and which of them are allowed."""
        work, links = self.costs.grid, (link,)
        latency = work.value(links, self._ones)
        if self.objective == "throughput":
            scores = reduce(np.maximum, work.busy(links))
        elif self.objective == "latency":
            scores = latency
        else:
            scores = work.value(links, self._weights)
        deadline, allowed = self.scorer.constraints.deadline_ms, self._allowed
        if deadline is not None:
            allowed = allowed & (high(work, links, latency) <= deadline)
        # A hair of latency decides between equals: zero bytes, zero server time.
        return scores + 1e-9 * latency, allowed

    @cached_property
    def _allowed(self) -> Bools:
        """bool[prefixes, codecs]: what the constraints allow on any link."""
        scorer, codecs = self.scorer, self.costs.codecs
        cuts = np.array([not scorer.refusal(cut) for cut in self.cuts])
        allowed = np.repeat(cuts[:, None], len(codecs), axis=1)
        for c, name in enumerate(codecs):
            if not open_priced(name).exact:
                allowed[:, c] &= np.array([not scorer.lossy_refusal(cut, name) for cut in self.cuts])
            if scorer.constraints.max_bytes is not None:
                allowed[:, c] &= np.array([not scorer.too_large(cut, uniform(cut, name)) for cut in self.cuts])
        if scorer.constraints.best_that_fits:
            best = [scorer.best_that_fits(cut) for cut in self.cuts]
            allowed &= np.array([[name == one or open_priced(name).exact for name in codecs] for one in best])
        return allowed

    # --- rows ---------------------------------------------------------------------------------------------------

    def option(self, prefix: int, codec: int, link: Link) -> Option:
        """The row of a prefix with a codec, each by its number."""
        cut = self.cuts[prefix]
        return self.scorer.option(cut, uniform(cut, self.costs.codecs[codec]), link)

    def best(self, link: Link, among: Bools | None = None) -> list[Option]:
        """The row of the best allowed prefix, of those that `among` (bool[prefixes]) has; none if none is allowed."""
        scores, allowed = self.scores(link)
        scores = np.where(allowed if among is None else allowed & among[:, None], scores, np.inf)
        prefix, codec = (int(k) for k in np.unravel_index(scores.argmin(), scores.shape))
        return [self.option(prefix, codec, link)] if np.isfinite(scores[prefix, codec]) else []

    def table(self, link: Link, most: int) -> list[Option]:
        """The best `most` prefixes inside the model, one codec each: of the allowed ones, and the very best if none is
        allowed. Then the best codec for the input, if one is allowed."""
        scores, allowed = self.scores(link)
        inside = self.interior[:, None]
        chosen = _ranked(np.where(allowed & inside, scores, np.inf), most)
        if not chosen:
            chosen = _ranked(np.where(inside, scores, np.inf), 1)
        if self.remote[0] and allowed[0].any():
            chosen.append((0, int(np.where(allowed[0], scores[0], np.inf).argmin())))
        return [self.option(p, c, link) for p, c in chosen]

    def frontier(self, link: Link, most: int) -> list[Option]:
        """Rows that are allowed and the cheapest for some prices of the device's, the link's and the server's time."""
        busy = np.stack(np.broadcast_arrays(*self.costs.grid.busy((link,))), -1)
        places = np.argwhere(self.scores(link)[1])
        chosen = [places[k] for k in supported(busy[places[:, 0], places[:, 1]], most)]
        return [self.option(int(p), int(c), link) for p, c in chosen]

    def smallest(self, link: Link) -> Option | None:
        """The row with the least memory on the device that the constraints allow."""
        allowed = self.scores(link)[1]
        memory = np.where(allowed.any(axis=1), self.scorer.memory, np.inf)
        prefix = int(memory.argmin())
        return self.option(prefix, int(allowed[prefix].argmax()), link) if np.isfinite(memory[prefix]) else None


def _ranked(scores: Floats, count: int) -> list[tuple[int, int]]:
    """(prefix, codec) of the least finite scores, each prefix once, with its best codec."""
    best = scores.argmin(axis=1)
    least = scores[np.arange(len(scores)), best]
    order = np.argsort(least, kind="stable")[:count]
    return [(int(p), int(best[p])) for p in order if np.isfinite(least[p])]


def supported(costs: Floats, most: int) -> Sequence[int]:
    """At most `most` rows of `costs` (float64[ways, resources]) that are the cheapest for some prices of the resources.

    Those that are so for the most prices come first: where many requests are shared out so that no resource becomes the
    bottleneck, mixes of these are all it takes. Behind them are the nearest of those that nothing is better than.

    >>> supported(np.array([[4.0, 0.0], [0.0, 4.0], [1.0, 1.0], [3.0, 3.0], [0.5, 2.9]]), 8)
    [2, 0, 1, 4]
    """
    if not len(costs):
        return []
    # A hair of everything: of two that cost the same, the quicker one.
    paid = simplex(costs.shape[1], 8) @ costs.T + 1e-6 * costs.sum(1)
    counts = np.bincount(paid.argmin(1), minlength=len(costs))
    # Those that are nearly the cheapest fill the gaps between them: a request is not to be had in parts.
    behind = (paid / paid.min(1, keepdims=True)).min(0)
    order = np.lexsort((behind, -counts))
    return [int(k) for k in order[:most] if counts[k] or efficient(costs, k)]


def efficient(costs: Floats, row: int) -> bool:
    """Whether no other row is as cheap in everything and cheaper in something."""
    better = (costs <= costs[row]).all(1) & (costs < costs[row]).any(1)
    return not bool(better.any())
