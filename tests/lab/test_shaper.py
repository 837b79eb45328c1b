"""One direction of a link as a schedule, in virtual time, and bytes that are changed on purpose."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.lab.shaper import Damage, ShapedLane


def arrivals(lane: ShapedLane[int], nbytes: int, now: float = 0.0) -> list[float]:
    """When the chunks of a message of `nbytes` arrive, each read as soon as the lane is ready for it."""
    made = []
    while nbytes > 0:
        chunk = min(nbytes, lane.chunk)
        now = max(now, lane.ready_at)
        made.append(lane.admit(now, chunk, chunk, waiting=bool(made)))
        nbytes -= chunk
    return made


@given(
    mbps=st.floats(0.01, 2000),
    delay_s=st.floats(0, 1),
    nbytes=st.integers(1, 200_000),
    now=st.floats(-1e3, 1e3),
)
def test_a_message_arrives_after_its_bytes_and_the_delay(mbps: float, delay_s: float, nbytes: int, now: float) -> None:
    lane = ShapedLane[int](mbps, delay_s)
    last = arrivals(lane, nbytes, now)[-1]
    assert last - now == pytest.approx(nbytes / (mbps * 125e3) + delay_s, rel=1e-6, abs=1e-9)


@given(st.floats(0.13, 1000), st.floats(0, 0.2), st.just(0.0) | st.floats(0, 200), st.integers(0, 99))
def test_what_a_lane_holds_is_bounded_and_stays_in_order(mbps: float, delay_s: float, jitter: float, seed: int) -> None:
    lane = ShapedLane[int](mbps, delay_s, jitter, Random(seed))
    now, last, held = 0.0, 0.0, 0
    for _ in range(100):
        now = max(now, lane.ready_at)
        held -= sum(lane.arrived(now))
        if not jitter:  # two chunks that are leaving, and what is on its way
            assert held <= lane.bytes_per_s * delay_s * (1 + 1e-9) + 2 * lane.chunk <= lane.most
        arrives = lane.admit(now, lane.chunk, lane.chunk)
        held += lane.chunk
        assert arrives >= max(last, now + delay_s)
        last = arrives
    assert sum(lane.arrived(last)) == held


def test_chunks_follow_the_rate() -> None:
    assert ShapedLane[int](0.13).chunk == 256  # 16 ms: nobody waits longer for a part
    assert ShapedLane[int](200).chunk == 25_000
    assert ShapedLane[int](10_000).chunk == 64 << 10


def test_being_late_costs_nothing_while_the_sender_waits_and_time_while_it_does_not() -> None:
    for waiting, expected in ((True, 0.002), (False, 0.011)):
        lane = ShapedLane[int](8)
        lane.admit(0.0, 1000, 0)
        assert lane.admit(0.010, 1000, 1, waiting=waiting) == pytest.approx(expected)
    lane = ShapedLane[int](8)
    lane.admit(0.0, 1000, 0)
    assert lane.admit(5.0, 1000, 1, waiting=True) == pytest.approx(5.001)  # asleep for seconds: that is lost


def test_a_new_link_holds_for_what_has_not_left() -> None:
    lane = ShapedLane[int](0.008, 0.5)  # 1 kB/s
    assert lane.admit(0.0, 1000, 7) == pytest.approx(1.5)
    lane.set(0.5, 0.8, 0.1)  # half of it has left; the rest does at 100 kB/s
    assert lane.next_at == pytest.approx(0.5 + 0.005 + 0.1)
    assert list(lane.arrived(0.6)) == []
    assert list(lane.arrived(0.61)) == [7]


def test_a_shorter_delay_overtakes_nothing() -> None:
    lane = ShapedLane[int](8, 1.0)
    first = lane.admit(0.0, 10, 1)
    lane.set(0.1, 8, 0.0)
    assert lane.admit(0.2, 10, 2) >= first
    assert list(lane.arrived(10)) == [1, 2]


def test_a_stall_delays_what_is_on_its_way_and_what_comes_after() -> None:
    lane = ShapedLane[int](8, 0.1)
    lane.admit(0.0, 1000, 1)
    lane.stall(0.05, 2.0)
    lane.admit(0.06, 1000, 2)
    assert list(lane.arrived(2.04)) == []
    assert list(lane.arrived(2.05)) == [1]
    assert lane.next_at == pytest.approx(2.05 + 0.001 + 0.1)


def test_jitter_is_the_ninetieth_percentile_of_round_trips_and_repeats_with_its_seed() -> None:
    def trips(seed: str) -> list[float]:
        up, down = (ShapedLane[int](1e6, 0.010, 20.0, Random(f"{seed}:{way}")) for way in ("up", "down"))
        made = []
        for k in range(4000):
            there = up.admit(float(k), 1, 0)
            list(up.arrived(there))
            made.append(down.admit(there, 1, 0) - k - 0.020)
            list(down.arrived(k + 1.0))
        return made

    found = trips("a")
    assert np.percentile(found, 90) == pytest.approx(0.020, rel=0.1)
    assert min(found) >= -1e-9
    assert trips("a") == found
    assert trips("b") != found


@given(
    st.lists(st.binary(max_size=30), max_size=8),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_so_many_bytes_change_by_a_bit_each_after_so_many_others(
    chunks: list[bytes], after: int, count: int, seed: int
) -> None:
    damage = Damage(Random(seed))
    damage.order(after, count)
    sent = b"".join(chunks)
    came = b"".join(damage.passed(chunk) for chunk in chunks)
    assert len(came) == len(sent)
    changed = [k for k, (a, b) in enumerate(zip(sent, came, strict=True)) if a != b]
    assert changed == list(range(after, min(after + count, len(sent))))
    assert all((sent[k] ^ came[k]).bit_count() == 1 for k in changed)
    assert damage.nbytes == len(changed)
    again = Damage(Random(seed))
    again.order(after, count)
    assert again.passed(sent) == came


def test_a_second_order_takes_the_place_of_the_first() -> None:
    damage = Damage(Random(0))
    damage.order(1000, 5)
    damage.order(0, 1)
    assert damage.passed(b"ab")[1:] == b"b"
    assert damage.passed(bytes(2000)) == bytes(2000)
