"""Pacing, overload, load and the pipeline, in virtual time; threads only where they are the point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import inf
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import until

from splitpoint.errors import InputError, UsageError
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, HELD, QUEUE, Feed, FramePace, Mailbox, Relief, Thin

# --- pace -------------------------------------------------------------------------------------------------------------


def test_frames_are_due_at_fixed_times_whatever_the_reader_does() -> None:
    pace, now, due = FramePace(4.0, drop=False), 100.0, []
    for busy_s in (0.0, 0.1, 0.6, 0.0, 0.0):  # the third takes longer than two periods
        turn = pace.next(now)
        due.append(turn.due_s)
        now += turn.wait_s + busy_s
    assert due == [100.0, 100.25, 100.5, 100.75, 101.0]


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60), st.floats(0.5, 60.0))
def test_of_the_frames_that_are_due_the_newest_is_taken(busy: list[float], rate: float) -> None:
    pace, now, seen = FramePace(rate, drop=True), 5.0, 0
    for seconds in busy:
        turn = pace.next(now)
        seen += turn.skip + 1
        assert turn.due_s == pytest.approx(5.0 + (seen - 1) / rate)
        now += turn.wait_s
        assert now - turn.due_s < 1 / rate + 1e-6, "a newer one was due"
        assert now - turn.due_s > -1e-6, "it is not due yet"
        now += seconds


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60), st.floats(0.5, 60.0))
def test_a_queue_drops_nothing(busy: list[float], rate: float) -> None:
    pace, now = FramePace(rate, drop=False), 0.0
    for k, seconds in enumerate(busy):
        turn = pace.next(now)
        assert turn.skip == 0
        assert turn.due_s == pytest.approx(k / rate)
        now += turn.wait_s + seconds


@pytest.mark.parametrize("rate", [0.0, -1.0, inf, float("nan")])
def test_a_rate_is_a_number_above_zero(rate: float) -> None:
    with pytest.raises(UsageError, match="frames a second above 0"):
        FramePace(rate, drop=True)


@pytest.mark.parametrize(("own", "asked", "taken"), [(30, 10, 100), (30, 20, 200), (25, 30, 250), (30, 0, 300)])
def test_a_camera_is_thinned_to_the_rate(own: int, asked: int, taken: int) -> None:
    thin = Thin(asked)
    found = sum(thin.takes(k / own + 0.003 * (k % 3)) for k in range(own * 10))
    assert found == pytest.approx(taken, rel=0.03)


# --- relief -----------------------------------------------------------------------------------------------------------


def simulate(relief: Relief, rate: float, seconds: float, capacity: Callable[[float, int], float]) -> list[tuple]:
    """(time, level, dropped) of every frame taken: one server, `capacity` a second at a time and level."""
    pace, now, seen = FramePace(rate, drop=True), 0.0, []
    while now < seconds:
        turn = pace.next(now)
        now += turn.wait_s
        level = relief.taken(now, turn.skip)
        seen.append((now, level, turn.skip))
        now += 1 / capacity(now, level)
    return seen


def test_it_degrades_until_it_keeps_up_and_no_further() -> None:
    seen = simulate(Relief(3), 30.0, 20.0, lambda now, level: (10.0, 20.0, 40.0, 80.0)[level])
    assert max(level for _, level, _ in seen) == 2
    assert next(now for now, level, _ in seen if level == 2) < 3.0
    steady = [dropped for now, _, dropped in seen if 3.5 < now < 6.5]
    assert steady
    assert sum(steady) == 0


def test_it_comes_back_when_there_is_room_again() -> None:
    seen = simulate(Relief(1), 30.0, 60.0, lambda now, level: 10.0 if level == 0 and now < 20 else 50.0)
    assert {level for now, level, _ in seen if 2 < now < 5} == {1}
    assert {level for now, level, _ in seen if now > 45} == {0}


def test_it_does_not_flap_where_the_better_option_stays_too_slow() -> None:
    seen = simulate(Relief(1), 30.0, 600.0, lambda now, level: (20.0, 40.0)[level])
    changes = sum(a[1] != b[1] for a, b in pairwise(seen))
    # A second or two at the better one after 5, 10, 20, 40 and then every 60 s of quiet.
    assert 6 <= changes <= 30
    assert sum(level == 1 for _, level, _ in seen) > 0.9 * len(seen)


def test_one_late_frame_is_no_overload() -> None:
    seen = simulate(Relief(1), 30.0, 60.0, lambda now, level: 5.0 if now % 10 < 0.03 else 60.0)
    assert sum(dropped for *_, dropped in seen) > 0
    assert {level for _, level, _ in seen} == {0}


# --- feed -------------------------------------------------------------------------------------------------------------


class Time:
    """A clock that only moves when told, or waited for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stopped = False

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.stopped


def feed(frames: object, time: Time, **options: object) -> Feed:
    choices = {"live": False, "rate": 0.0, "policy": QUEUE} | options
    return Feed(frames, clock=time.clock, wait=time.wait, **choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [QUEUE, DROP_OLDEST])
def test_a_paced_folder_counts_every_frame(policy: str) -> None:
    time = Time()
    made = feed(range(40), time, rate=10.0, policy=policy)
    taken = []
    for one in made:
        assert one.due_s == pytest.approx(1000.0 + one.frame / 10)
        assert one.due_s <= time.now + 1e-9
        assert one.level == 0
        taken.append(one.frame)
        time.now += 0.25
    assert (made.counts.taken, made.counts.captured) == (len(taken), 40)
    if policy == QUEUE:
        assert taken == list(range(40))
        assert time.now == pytest.approx(1010.0)
    else:
        assert made.counts.dropped == 40 - len(taken) > 20
        assert taken[-1] == 39, "the last one is not dropped for frames that never come"
        assert time.now == pytest.approx(1004.0, abs=0.3)


def test_without_a_rate_frames_come_as_they_are_taken() -> None:
    time = Time()
    made = feed(range(5), time)
    assert [(t.frame, t.due_s) for t in made] == [(k, 0.0) for k in range(5)]
    assert not made.paced
    assert time.now == 1000.0


def test_degrading_is_told_and_counted() -> None:
    time, levels = Time(), []
    made = feed(range(60), time, rate=10.0, policy=DEGRADE, levels=1, moved=levels.append)
    seen = []
    for taken in made:
        seen.append(taken.level)
        time.now += 0.05 if levels else 0.3
    assert levels == [1]
    assert made.counts.degraded == sum(seen) > 30
    assert made.counts.captured == 60


def test_stopping_ends_the_wait_for_the_next_frame() -> None:
    made: Feed[int] = Feed(range(10), live=False, rate=1e-3, policy=QUEUE)
    frames = iter(made)
    assert next(frames).frame == 0
    rest: list[object] = []
    waiting = threading.Thread(target=lambda: rest.extend(frames))
    waiting.start()
    made.stop()
    waiting.join(5)
    assert not waiting.is_alive()
    assert rest == []
    assert made.counts.captured == 1


class Camera:
    """Frames when the test says so."""

    def __init__(self) -> None:
        self.said: SimpleQueue[object] = SimpleQueue()

    def __iter__(self) -> Iterator[object]:
        while (said := self.said.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said

    def gives(self, *frames: object) -> None:
        for frame in frames:
            self.said.put(frame)


def test_a_camera_does_not_wait() -> None:
    camera = Camera()
    made: Feed[object] = Feed(camera, live=True, rate=0.0, policy=DROP_OLDEST)
    frames = iter(made)
    camera.gives("a")
    assert next(frames).frame == "a"
    camera.gives("b", "c", "d")
    assert until(lambda: made._mailbox.dropped == 2)
    assert next(frames).frame == "d", "the newest"
    assert (made.counts.taken, made.counts.dropped) == (2, 2)
    camera.gives("e", InputError("unplugged"))
    assert next(frames).frame == "e", "what came before is not lost"
    with pytest.raises(InputError, match="unplugged"):
        next(frames)


def test_a_camera_with_a_queue_keeps_what_it_can() -> None:
    camera = Camera()
    made: Feed[object] = Feed(camera, live=True, rate=0.0, policy=QUEUE)
    frames = iter(made)
    camera.gives(0)
    assert next(frames).frame == 0
    camera.gives(*range(1, HELD + 4), None)
    assert until(lambda: made._mailbox.dropped == 3)
    assert [t.frame for t in frames] == list(range(4, HELD + 4))
    assert made.counts.captured == HELD + 4


def test_stopping_a_camera_that_is_silent() -> None:
    camera = Camera()
    made: Feed[object] = Feed(camera, live=True, rate=0.0, policy=DROP_OLDEST)
    ended: list[object] = []
    reader = threading.Thread(target=lambda: ended.append(list(made)))
    reader.start()
    made.stop()
    reader.join(5)
    assert ended == [[]]
    camera.gives(None)


def test_a_mailbox_of_one_holds_the_newest() -> None:
    box: Mailbox[int] = Mailbox(1)
    for k in range(5):
        box.put(k)
    box.end()
    assert (box.take(), box.take(), box.dropped) == (4, None, 4)


def test_a_policy_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="queue, drop-oldest, degrade, not panic"):
        feed([], Time(), policy="panic")


# --- load -------------------------------------------------------------------------------------------------------------


# --- the pipeline -----------------------------------------------------------------------------------------------------
