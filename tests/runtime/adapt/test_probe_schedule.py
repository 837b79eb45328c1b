"""When to probe and when to send an extra request, in virtual time."""

from __future__ import annotations

import numpy as np

from splitpoint.runtime.adapt.probe_schedule import LEAST_NBYTES, ProbeSchedule


def test_a_lookout_never_spends_more_than_its_share() -> None:
    for mbps in (0.13, 2.0, 50.0, 1000.0):
        schedule, sent = ProbeSchedule(1.0, 20), 0
        for k in range(1, 1001):
            nbytes = schedule.probe_nbytes(0.1 * k, mbps)
            if nbytes:
                assert nbytes >= LEAST_NBYTES
                schedule.sent_probe(0.1 * k, nbytes)
                sent += nbytes
            if k % 7 == 0:
                schedule.saw(0.1 * k, 10.0, 100.0)  # whatever surprises there are
        assert 0 < sent <= 0.01 * mbps * 125e3 * 100


def test_a_surprise_is_looked_at_again_soon_but_not_for_ever() -> None:
    schedule = ProbeSchedule(1.0, 20)
    moments = []
    for k in range(1, 600):
        now_s = 0.01 * k
        if nbytes := schedule.probe_nbytes(now_s, 50.0):
            schedule.sent_probe(now_s, nbytes)
            moments.append(now_s)
            if len(moments) == 2:
                schedule.saw(now_s, 30.0, 3.0)
    gaps = np.diff(moments)
    assert (gaps[1:4] < 0.2).all(), gaps
    assert (gaps[4:] > 0.95).all(), gaps


def test_a_lost_request_beside_does_not_forbid_the_next_for_ever() -> None:
    schedule = ProbeSchedule(0.0, 2)
    for _ in range(3):
        schedule.ran_alone(1.0)
    assert schedule.wants_request(1.0)
    schedule.sent_request(1.0)
    for _ in range(3):
        schedule.ran_alone(2.0)
    assert not schedule.wants_request(2.0)
    assert schedule.wants_request(12.0)
    schedule.used(2.0)
    assert schedule.wants_request(2.0)


def test_a_request_beside_that_could_not_be_sent_is_tried_again_in_a_second() -> None:
    schedule = ProbeSchedule(0.0, 2)
    for _ in range(2):
        schedule.ran_alone(1.0)
    schedule.sent_request(1.0)
    schedule.not_sent(1.0)
    assert not schedule.wants_request(1.5)
    assert schedule.wants_request(2.0)
