"""Which cuts are kept compiled, in virtual time."""

from __future__ import annotations

import virtual

from splitpoint.runtime.adapt.prewarm import KEPT_S, MOST, RETRY_S, LikelyCuts


def test_ready_makes_the_likeliest_first_keeps_few_and_tries_again() -> None:
    chain = virtual.planner().graph.chain()
    ready = LikelyCuts()
    ready.likely(0.0, [(cut, {}) for cut in chain[:4]])
    first = ready.next(0.0)
    assert first is not None
    assert first[0] == chain[0]
    ready.failed(0.0, chain[0])
    second = ready.next(0.0)
    assert second is not None
    assert second[0] == chain[1]
    assert ready.next(RETRY_S + 1)[0] == chain[0]  # type: ignore[index]
    for cut in chain[:4]:
        ready.compiled(cut)
    assert ready.next(1.0) is None
    ready.likely(20.0, [(cut, {}) for cut in chain[4:10]])
    for cut in chain[4:10]:
        ready.compiled(cut)
    gone = ready.spare(20.0, chain[4])
    assert len(gone) == 10 - 1 - (MOST - 1)
    assert chain[4] not in gone
    assert not set(c.nodes for c in gone) & set(c.nodes for c in chain[4:9])
    assert {c.nodes for c in ready.spare(21.0 + KEPT_S, chain[4])} == {c.nodes for c in chain[5:10]}
