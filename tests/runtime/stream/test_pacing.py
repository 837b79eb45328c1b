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
from splitpoint.planning.plans import STAGES, Band, Option
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, HELD, QUEUE, Feed, FramePace, Mailbox, Relief, Thin
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.runtime.stream.stream_load import cheaper, judge, window

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


def option(throughput: float, total_ms: float = 100.0, refused: str = "", cut: str = "a") -> Option:
    band = Band(total_ms, total_ms, total_ms)
    return Option(
        kind="split", cut=cut, on_edge=(), crossing=(), total=band, stages=dict.fromkeys(STAGES, band), up_nbytes=1,
        down_nbytes=1, throughput=throughput, refused=refused,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "objective", "words"),
    [
        (10.0, "latency", "light load: 10/s arrive and 25/s are possible"),
        (25.0, "latency", "light load"),
        (30.0, "throughput", "heavy load: 30/s arrive; planned for throughput: 40/s, instead of 25/s"),
        (60.0, "throughput", "not enough for all of them"),
        (inf, "throughput", "as fast as they are answered"),
    ],
)
def test_the_load_decides_what_is_planned_for(rate: float, objective: str, words: str) -> None:
    load = judge(rate, option(25.0), option(40.0))
    assert load.objective == objective
    assert words in load.why
    assert ("not enough" in load.why) == (rate == 60.0)


def test_under_a_heavy_load_the_quicker_of_two_equals_is_kept() -> None:
    load = judge(inf, option(25.0), option(25.1))
    assert load.objective == "latency"
    assert "has the most throughput, too" in load.why


def test_a_window_keeps_the_slowest_stage_busy() -> None:
    assert window(option(50.0, total_ms=60.0)) == 4  # three stages of 20 ms: three under way, and one more
    assert window(option(100.0, total_ms=90.0)) == 10  # a long round trip
    assert window(option(1000.0, total_ms=1000.0)) == 32
    assert window(option(20.0, total_ms=50.0)) == 2  # all on the device
    assert window(option(inf)) == 2


def test_what_is_cheaper_keeps_to_the_constraints() -> None:
    best = option(10.0)
    slower, alike, better, most = option(5.0), option(10.5), option(20.0), option(30.0)
    refused = option(50.0, refused="its accuracy is not measured")
    assert cheaper([most, refused, slower, best, alike, better], best) == (better, most)
    assert cheaper([slower, refused], best) == ()
    ladder = [option(10.0 * 2**k) for k in range(1, 6)]
    assert [o.throughput for o in cheaper(ladder, best)] == [20.0, 40.0, 320.0]


# --- the pipeline -----------------------------------------------------------------------------------------------------


class Hold:
    """A step that waits for the test, and tells what came to it."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.gate = threading.Semaphore(0)

    def __call__(self, value: int) -> int:
        self.came.append(value)
        assert self.gate.acquire(timeout=10)
        return value


def test_a_slow_link_does_not_hold_up_the_next_head() -> None:
    send, heads, read = Hold(), [], []

    def items() -> Iterator[int]:
        for k in range(1, 9):
            read.append(k)
            yield k

    def head(value: int) -> int:
        heads.append(value)
        return value

    results = stream(items(), (head, send, lambda value: value), lambda value: None, 5)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(results))
    reader.start()
    assert until(lambda: len(heads) == 5), "heads of a whole window compute while the first is being sent"
    assert until(lambda: send.came == [1])
    for _ in range(8):
        send.gate.release()
    reader.join(10)
    assert got == list(range(1, 9))


def test_every_step_is_busy_at_once() -> None:
    head, send, finish = steps = [Hold(), Hold(), Hold()]
    results = stream(range(1, 100), steps, lambda value: None, 4)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(results))
    reader.start()
    head.gate.release(2)
    send.gate.release()
    assert until(lambda: [step.came[-1:] for step in steps] == [[3], [2], [1]])
    assert finish.came == [1]
    for step in steps:
        step.gate.release(200)
    reader.join(10)
    assert got == list(range(1, 100))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_failure_comes_in_its_place_and_what_follows_is_abandoned(bad: int) -> None:
    begun: list[int] = []
    abandoned: list[int] = []

    def step(k: int) -> Callable[[int], int]:
        def work(value: int) -> int:
            if k == 0:
                begun.append(value)
            if k == bad and value == 5:
                raise InputError("the fifth")
            return value

        return work

    results = stream(range(1, 100), [step(k) for k in range(3)], abandoned.append, 3)
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="the fifth"):
        next(results)
    assert until(lambda: set(begun) - set(range(1, 6)) == set(abandoned))
    assert len(begun) <= 7, "nothing is begun behind it but what was under way"


def test_leaving_early_abandons_what_has_begun() -> None:
    send, abandoned = Hold(), []
    results = stream(range(1, 100), (lambda v: v, send, lambda v: v), abandoned.append, 4)
    send.gate.release()
    assert next(results) == 1
    assert until(lambda: send.came == [1, 2])
    send.gate.release(100)
    results.close()
    assert until(lambda: set(range(3, 5)) <= {*abandoned, *send.came})
