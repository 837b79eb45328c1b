"""The schedule of a queue in virtual time."""

from __future__ import annotations

from queues import batched, score

from splitpoint.tasks.schedule import (
    Free,
    JobTurn,
    QueuedJob,
    StageTimes,
    timeline,
)


def test_device_link_and_server_work_at_the_same_time() -> None:
    split = QueuedJob((StageTimes(10, 20, 30, 1, 5),))
    here = QueuedJob((StageTimes(40),))
    first, second, third = timeline([split, split, here], [JobTurn(0), JobTurn(1), JobTurn(2)])
    assert first == (JobTurn(0), 0, 10, 30, 35, 35, 65, 71)
    # Its head while the first one is sent; the link when that is done; the server when that is done.
    assert second == (JobTurn(1), 10, 20, 50, 55, 65, 95, 101)
    assert (third.started, third.ended) == (20, 60), "what stays here waits for nothing but the device"
    assert score([split, split, here], [first, second, third]) == (0, 101, (71 + 101 + 60) / 3)


def test_requests_that_go_to_the_server_whole_follow_each_other_on_the_link() -> None:
    job = QueuedJob((StageTimes(0, 10, 1, 0, 2),))
    assert [s.ended for s in timeline([job] * 3, [JobTurn(0), JobTurn(1), JobTurn(2)])] == [15, 25, 35]
    busy = timeline([job], [JobTurn(0)], Free(device=3, up=50, server=70))
    assert busy[0].ended == 70 + 1 + 2


def test_heads_and_tails_that_share_cores_make_each_other_later() -> None:
    remote, here = QueuedJob((StageTimes(0, 0, 100, 0, 0, True),)), QueuedJob((StageTimes(60),))
    both = [remote, here]
    turns = [JobTurn(0), JobTurn(1)]
    assert [s.ended for s in timeline(both, turns)] == [100, 60]
    assert [s.ended for s in timeline(both, turns, Free(shared=1.5))] == [130, 90], "60 of each take 90 for both"
    assert [s.ended for s in timeline(both, turns, Free(shared=2.0))] == [160, 120], "as if one after the other"
    assert [s.ended for s in timeline(both, turns[::-1], Free(shared=2.0))] == [60, 160], "what was not there is not"
    # The server is idle until 50: ten of the head lie beside its work.
    late = QueuedJob((StageTimes(0, 50, 100, 0, 0, True),))
    assert [s.ended for s in timeline([late, here], turns, Free(shared=2.0))] == [160, 70]


def test_what_waits_for_one_tail_is_run_as_one() -> None:
    split = QueuedJob((batched(StageTimes(10, 20, 30, 1, 5), 0.1),))
    other, here = QueuedJob((StageTimes(0, 1, 70, 0, 5),)), QueuedJob((StageTimes(40),))
    turns = [JobTurn(1), JobTurn(0), JobTurn(2), JobTurn(3)]
    slots = timeline([split, other, here, split], turns)
    first, _, third = (slots[k] for k in (1, 2, 3))
    assert (first.arrived, third.arrived) == (35, 85), "too late: the server began with the first at 76"
    assert (first.served, third.served) == (106, 136)
    slots = timeline([split, other, here, split], [JobTurn(1), JobTurn(0), JobTurn(3), JobTurn(2)])
    first, third = slots[1], slots[2]
    assert third.arrived == 55
    assert (first.served_from, third.served_from, first.served, third.served) == (76, 76, 109, 109)
    assert (first.ended, third.ended) == (115, 116), "one after the other on the way back"
    many = timeline([other, *[split] * 20], [JobTurn(k) for k in range(21)], Free(server=1000))
    assert [round(s.served_from) for s in many[1:]] == [1070] * 8 + [1121] * 8 + [1172] * 4, "eight at most"
