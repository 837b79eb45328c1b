"""Many requests at once on one link, and what they show of it: in virtual time."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from splitpoint.link import Link
from splitpoint.runtime.adapt.link_belief import Carried, FrameTime, LinkBelief, SharedUplink


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


def believed(belief: LinkBelief, frames: int, noise: float, mbps: float = 10.0) -> list[float]:
    """What is believed after each of `frames` of 60 kB, which differ by `noise` (of the logarithm)."""
    random, rates, now_s = Random(5), list[float](), 0.0
    for _ in range(frames):
        up_ms = 10 + 60_000 * 8e-3 / mbps * random.lognormvariate(0, noise)
        now_s += (up_ms + 10) * 1e-3
        belief.observe(now_s, FrameTime(60_000, up_ms), FrameTime(100, 10.0), 20.0, up_ms + 10)
        rates.append(belief.at(now_s)[0].up_mbps)
    return rates


def test_on_a_noisy_link_a_patient_belief_stays_where_a_hasty_one_wanders() -> None:
    link = Link(10, 40, 20)
    patient, hasty = (believed(LinkBelief(link, measured=True, hasty=h), 300, 0.3)[20:] for h in (False, True))
    assert np.mean(patient) == pytest.approx(10, rel=0.3), "frames of one size say little of what is beside them"
    assert np.std(patient) < 0.5 * np.std(hasty)


def test_answers_in_another_order_than_their_requests_say_nothing_of_who_waited() -> None:
    seen = SharedUplink()
    assert seen.answered(None, 0.0, 2.0, 1000)[0] == 0.0
    assert seen.answered(None, 0.5, 1.0, 1000) == (0.5, [Carried(1.0, 1000, 0.5)])
    assert seen.answered(None, 0.0, 3.0, 500) == (2.0, [Carried(3.0, 500, 1.0)])
    assert seen.arrived_s == 3.0
