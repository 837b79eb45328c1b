"""Many requests at once on one link, and what they show of it: in virtual time."""

from __future__ import annotations

import pytest
from serving import interruptible, nothing_leaks  # noqa: F401  # a fixture is used by its name

from splitpoint.runtime.adapt.link_belief import Carried, SharedUplink


def test_requests_of_one_connection_tell_one_by_one() -> None:
    seen = SharedUplink()
    for id in range(3):
        seen.sent(id, "a", 0.0)
    assert seen.answered(0, 0.02, 1.0, 1000) == (0.02, [Carried(1.0, 1000, 0.98)])
    # Handed over with the first one, but the link was busy until 1.0.
    start, told = seen.answered(1, 0.02, 1.5, 500)
    assert start == 1.0
    assert told == [Carried(1.5, 500, 0.5)]
    assert seen.busy_s == pytest.approx(1.48)


def test_connections_that_share_the_link_tell_together() -> None:
    seen = SharedUplink()
    seen.sent(1, "a", 0.0)
    seen.sent(2, "b", 0.1)
    seen.sent(3, "b", 5.0)
    assert seen.answered(1, 0.0, 2.0, 1000)[1] == [], "b may have had half of it"
    assert seen.answered(2, 0.1, 2.0, 1000)[1] == [Carried(2.0, 2000, 2.0)], "what begins later does not matter"
    assert seen.dropped(3) == []
