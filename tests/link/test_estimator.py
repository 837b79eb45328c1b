"""A link learnt from the requests that use it, in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, nan
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.link import Link
from splitpoint.link.estimator import LinkEstimator, _OneWay
from splitpoint.link.presets import PRESETS


class Range(NamedTuple):
    """Mbit/s, and between which they lie by two standard deviations (about 95 %)."""

    value: float
    low: float
    high: float


def range_of(way: _OneWay) -> Range:
    off = 2 * way._unsure()
    fastest = way._slope - off
    # Beyond a tenth nothing is known: "at least" is all that can be said.
    high = 8e-3 / fastest if fastest > 0.1 * way._slope else inf
    return Range(way.mbps, 8e-3 / (way._slope + off), high)


@dataclass
class Requests:
    """Requests on a link, in virtual time: what an application's timestamps would say of them."""

    estimator: LinkEstimator
    seed: int = 0
    now: float = 0.0
    interval_s: float = 0.2
    offset_ms: float = 0.0
    noise: float = 0.0
    pings: bool = True

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def send(
        self, link: Link, sizes: Iterable[int], *, down: int = 4000, late: Callable[[int], float] = lambda k: 0
    ) -> None:
        """`down` is the answers' size, 0: like the requests'."""
        for k, nbytes in enumerate(sizes):
            answer = down or nbytes
            self.now += self.interval_s
            if self.pings:
                self.estimator.ping(self.now, link.rtt_ms + self._jitter(link))
            up = link.rtt_ms / 2 + self.offset_ms + link.up_ms(nbytes) * self._noise() + self._jitter(link) + late(k)
            back = link.rtt_ms / 2 - self.offset_ms + link.down_ms(answer) * self._noise() + self._jitter(link)
            self.estimator.observe(self.now, nbytes, up, answer, back)

    def _noise(self) -> float:
        return self.random.lognormvariate(0, self.noise)

    def _jitter(self, link: Link) -> float:
        return self.random.expovariate(1) * link.jitter_ms / 2.3  # whose 90th percentile is the jitter

    @property
    def up(self) -> float:
        return self.estimator.link.up_mbps


@pytest.mark.parametrize("start", ["cat1", "wifi", "lan"])
@pytest.mark.parametrize("true", PRESETS.values(), ids=lambda link: link.name)
def test_a_constant_link_is_learnt_from_requests_of_one_size(true: Link, start: str) -> None:
    requests = Requests(LinkEstimator(PRESETS[start]))
    requests.send(true, [150_000] * 5)
    up = range_of(requests.estimator._up)
    assert up.value == pytest.approx(true.up_mbps, rel=0.1)
    assert up.low < true.up_mbps < up.high
    assert requests.estimator.link.rtt_ms == true.rtt_ms


@pytest.mark.parametrize("true", list(PRESETS.values())[:4], ids=lambda link: link.name)
def test_sizes_that_vary_tell_the_round_trip_from_bandwidth_without_pings(true: Link) -> None:
    """Here nothing but the requests says that the round trip is not 1 ms."""
    requests = Requests(LinkEstimator(Link(5, 5, 1)), pings=False)
    requests.send(true, [150_000, 10_000, 60_000, 1000] * 8, down=0)
    assert requests.up == pytest.approx(true.up_mbps, rel=0.05)
    assert requests.estimator.link.down_mbps == pytest.approx(true.down_mbps, rel=0.05)
    # Both ways' constants: the two halves of the round trip, less what is in the link already.
    assert requests.estimator.overhead_ms + 1 == pytest.approx(true.rtt_ms, rel=0.3)


def test_it_is_right_from_the_first_request_if_that_is_large() -> None:
    requests = Requests(LinkEstimator(PRESETS["wifi5"]))
    requests.send(PRESETS["3g"], [150_000])
    assert requests.up == pytest.approx(1.1, rel=0.05)


def test_a_small_request_that_woke_everybody_says_nothing_of_a_measured_link() -> None:
    """1 kB that took 20 ms more than it could: threads began, caches were cold. By itself that would be 0.4 Mbit/s."""
    wifi = PRESETS["wifi"]
    believed = []
    for measured in (True, False):
        requests = Requests(LinkEstimator(wifi, measured=measured))
        requests.send(wifi, [1077], late=lambda k: 20)
        believed.append(requests.up / wifi.up_mbps)
    assert believed[0] == pytest.approx(1, rel=0.05)
    assert believed[1] < 0.5, "else there was nothing to say"
    requests = Requests(LinkEstimator(wifi, measured=True))
    requests.send(Link(2, 18.88, 10), [100_000] * 3)
    assert requests.up == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("to", [2.0, 9.0, 60.0])
def test_a_step_is_followed_within_three_requests(to: float) -> None:
    requests = Requests(LinkEstimator(PRESETS["wifi"]), noise=0.05)
    requests.send(PRESETS["wifi"], [100_000] * 100)
    requests.send(Link(to, 18.88, 10), [100_000] * 3)
    assert requests.up == pytest.approx(to, rel=0.15)
    requests.send(Link(to, 18.88, 10), [100_000] * 20)
    assert requests.up == pytest.approx(to, rel=0.15)
    requests.send(PRESETS["wifi"], [100_000] * 3)
    assert requests.up == pytest.approx(18.88, rel=0.15)


def test_a_slow_drift_is_followed() -> None:
    requests = Requests(LinkEstimator(Link(20, 20, 10), half_life_s=2))
    for k in range(300):
        requests.send(Link(20 - 0.04 * k, 20, 10), [100_000])
    assert requests.up == pytest.approx(8, rel=0.15)


def test_one_outlier_changes_nothing_and_the_next_request_is_believed() -> None:
    requests = Requests(LinkEstimator(PRESETS["4g"]))
    requests.send(PRESETS["4g"], [150_000] * 60, late=lambda k: 3000 if k in (20, 40) else 0)
    assert requests.up == pytest.approx(5.85, rel=0.02)
    before = requests.up
    requests.send(PRESETS["4g"], [150_000], late=lambda k: 1e6)
    assert requests.up == pytest.approx(before, rel=1e-3)


def test_noise_averages_out_and_the_range_holds_the_truth() -> None:
    held = 0
    for seed in range(20):
        requests = Requests(LinkEstimator(PRESETS["wifi"], half_life_s=30), seed, noise=0.2)
        requests.send(Link(5.85, 20, 40, 5), [150_000] * 150)
        up = range_of(requests.estimator._up)
        assert up.value == pytest.approx(5.85, rel=0.15)
        assert up.high < 2 * up.low
        held += up.low < 5.85 < up.high
    assert held >= 17  # of two standard deviations


@pytest.mark.parametrize("seed", range(5))
def test_tiny_requests_say_nothing_of_bandwidth_and_it_says_so(seed: int) -> None:
    requests = Requests(LinkEstimator(Link(5.85, 20, 40)), seed)
    requests.send(Link(5.85, 20, 40, 2), [200] * 300, down=200)
    up = range_of(requests.estimator._up)
    assert 2 < up.value < 20  # as it was believed, not what 0.3 ms of 2 ms of noise would say
    assert up.low < 5.85
    assert up.high == inf


def test_tiny_requests_do_not_wear_away_what_large_ones_taught() -> None:
    requests = Requests(LinkEstimator(PRESETS["lan"]), interval_s=0.1)
    requests.send(Link(5.85, 20, 40, 1), [150_000] * 20)
    requests.send(Link(5.85, 20, 40, 1), [100] * 100, down=100)
    assert requests.up == pytest.approx(5.85, rel=0.1)


def test_recent_requests_count_more() -> None:
    """Within what noise explains, so that it is no step: the half-life decides."""
    means = []
    for half_life in (1, 100):
        ups = []
        for seed in range(10):
            requests = Requests(LinkEstimator(Link(6, 20, 40), half_life), seed, noise=0.1)
            requests.send(Link(6, 20, 40), [150_000] * 100)
            requests.send(Link(5, 20, 40), [150_000] * 20)
            ups.append(requests.up)
        means.append(sum(ups) / 10)
    assert means[0] < 5.3 < 5.5 < means[1]


def test_the_clocks_offset_does_not_look_like_bandwidth() -> None:
    """It makes one way longer and the other shorter by as much, whatever their size."""
    requests = Requests(LinkEstimator(PRESETS["wifi"]), offset_ms=2)
    requests.send(PRESETS["wifi"], [150_000, 5000, 80_000] * 10)
    assert requests.up == pytest.approx(18.88, rel=0.05)


def test_round_trip_and_jitter_come_from_pings() -> None:
    estimator = LinkEstimator(Link(1, 1, 500))
    for k in range(50):
        estimator.ping(k * 0.1, 40 + k % 10)
    assert (estimator.link.rtt_ms, estimator.link.jitter_ms) == (40, 8)
    for k in range(3):  # much later: the network has another way now, and the old pings are forgotten
        estimator.ping(1000 + k, 90 + k)
    assert estimator.link.rtt_ms == 90


def test_a_longer_way_is_not_less_bandwidth() -> None:
    requests = Requests(LinkEstimator(PRESETS["wifi"], half_life_s=5))
    requests.send(PRESETS["wifi"], [150_000, 20_000] * 20)
    requests.send(Link(18.88, 18.88, 80), [150_000, 20_000] * 60)
    assert requests.estimator.link.rtt_ms == 80
    assert requests.up == pytest.approx(18.88, rel=0.1)


def test_before_any_request_it_is_as_believed_and_unsure() -> None:
    estimator = LinkEstimator(PRESETS["4g"])
    assert estimator.link.transfer_ms(1e5, 1e4) == pytest.approx(PRESETS["4g"].transfer_ms(1e5, 1e4))
    assert estimator._up.frames == estimator._down.frames == 0
    up = range_of(estimator._up)
    assert up.low < 5.85 < up.high == inf


def test_what_software_costs_is_as_measured_until_requests_tell() -> None:
    estimator = LinkEstimator(Link(50, 50, 1, software_ms=0.6), measured=True)
    estimator.ping(0.0, 1.0)
    assert estimator.link.software_ms == 0.6
    estimator.observe(1.0, 10_000, 2.4, 1000, 0.96)
    assert estimator.link.software_ms == 0, "else it would be counted twice"
    assert estimator.overhead_ms > 0


VALUES = st.sampled_from([0.0, -1.0, nan, inf, 1e-9, 1.0, 200.0, 1e12]) | st.floats()


@given(st.lists(st.tuples(*[VALUES] * 5), max_size=12))
def test_whatever_is_observed_it_stays_a_link(rows: list[tuple[float, ...]]) -> None:
    estimator = LinkEstimator(PRESETS["4g"])
    for (now, *values), trip in zip(rows, itertools.cycle([1.0, nan, -1.0, 1e300]), strict=False):
        estimator.observe(now if now == now else 0.0, *values)
        estimator.ping(0.0, min(trip, 1e6))
        assert estimator.link.up_mbps > 0
        for way in (range_of(estimator._up), range_of(estimator._down)):
            assert way.low <= way.value <= way.high
