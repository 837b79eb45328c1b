"""Which cuts are kept compiled for a switch that may come: few, the likely ones, compiled one at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from math import inf

import msgspec

from splitpoint.graph import Cut

#: Cuts that are kept at most, and for how long one that is no longer likely.
MOST, KEPT_S = 6, 30.0
#: One that could not be made ready is tried again after this.
RETRY_S = 30.0
#: One that was likely so recently is not freed: a request may still be on its way there.
_LEAST_S = 5.0

#: A cut, and how what crosses there travels (which compiles nothing).
Placing = tuple[Cut, Mapping[str, str]]


class _Kept(msgspec.Struct):
    """What is known of a cut: when it was last likely, whether it is ready, and until when not to try."""

    placing: Placing
    likely_s: float
    compiled: bool = False
    not_before_s: float = -inf


class LikelyCuts:
    """The cuts that were likely lately.

    >>> ready = LikelyCuts()
    >>> ready.likely(0.0, [(cut, {}) for cut in graph.chain()[:2]])
    >>> first = ready.next(0.0)
    >>> ready.compiled(first[0])
    >>> ready.has(first[0]), ready.next(0.0)[0].name
    (True, 'normalize.transpose')
    """

    def __init__(self) -> None:
        self._known: dict[Set[int], _Kept] = {}

    def likely(self, now_s: float, placings: Iterable[Placing]) -> None:
        """These are the likely ones now, the likeliest first."""
        for placing in placings:
            kept = self._known.setdefault(placing[0].nodes, _Kept(placing, now_s))
            kept.placing, kept.likely_s = placing, now_s

    def has(self, cut: Cut) -> bool:
        """Whether it is compiled, on both sides."""
        kept = self._known.get(cut.nodes)
        return kept is not None and kept.compiled

    def next(self, now_s: float) -> Placing | None:
        """What to make ready next; None if all that is likely is ready, or not to be had for a while."""
        latest = max((k.likely_s for k in self._known.values()), default=now_s)
        likeliest = (k for k in self._known.values() if k.likely_s == latest)
        return next((k.placing for k in likeliest if not k.compiled and k.not_before_s <= now_s), None)

    def compiled(self, cut: Cut) -> None:
        if (kept := self._known.get(cut.nodes)) is not None:
            kept.compiled = True

    def failed(self, now_s: float, cut: Cut) -> None:
        if (kept := self._known.get(cut.nodes)) is not None:
            kept.not_before_s = now_s + RETRY_S

    def spare(self, now_s: float, current: Cut) -> list[Cut]:
        """Those to free: not likely for long, or too many; never `current`, nor what was in use a moment ago."""
        others = [nodes for nodes in self._known if nodes != current.nodes]
        others.sort(key=lambda nodes: -self._known[nodes].likely_s)
        freed = []
        for place, nodes in enumerate(others, 1):
            unlikely_s = now_s - self._known[nodes].likely_s
            if unlikely_s > KEPT_S or (place >= MOST and unlikely_s > _LEAST_S):
                kept = self._known.pop(nodes)
                freed += [kept.placing[0]] * kept.compiled
        return freed
