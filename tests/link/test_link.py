"""Links as values, as text and as files; the transfer model; the estimator in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint import wire
from splitpoint.errors import InputError, StorageError, UsageError
from splitpoint.link import Link
from splitpoint.link.estimator import LinkEstimator
from splitpoint.link.files import load_link, load_trace, save_link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.link.presets import PRESETS, nearest_preset
from splitpoint.link.transfer import (
    ANSWER_NBYTES,
    REQUEST_NBYTES,
    entry_nbytes,
    request_ms,
    unvalidated_slow_start_ms,
)
from splitpoint.tensors import ITEM_SIZES

# --- values, presets, text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["up_mbps", "down_mbps"])
@pytest.mark.parametrize("rate", [0.0, -1.0, nan, inf, -inf])
def test_a_rate_must_be_one(field: str, rate: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from .* Mbit/s, not"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: rate})


@pytest.mark.parametrize("field", ["rtt_ms", "jitter_ms"])
@pytest.mark.parametrize("time", [-0.001, nan, inf])
def test_a_time_must_be_one(field: str, time: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from 0"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: time})


def test_presets_are_those_of_the_papers() -> None:
    ups = {name: (link.up_mbps, link.rtt_ms) for name, link in PRESETS.items()}
    assert ups == {
        "cat1": (0.13, 100),
        "3g": (1.1, 60),
        "4g": (5.85, 40),
        "wifi": (18.88, 10),
        "wifi5": (100, 3),
        "lan": (1000, 0.3),
    }
    assert all(link.name == name and link.down_mbps >= link.up_mbps for name, link in PRESETS.items())


@pytest.mark.parametrize(
    ("up", "name"), [(0.01, "cat1"), (2, "3g"), (3, "4g"), (40, "wifi"), (50, "wifi5"), (1e5, "lan")]
)
def test_the_nearest_preset_is_so_as_a_factor(up: float, name: str) -> None:
    assert nearest_preset(Link(up, 1, 1)) == name


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4g", (5.85, 20, 40, 0)),
        (" WiFi ", (18.88, 18.88, 10, 0)),
        ("10mbit/20mbit,40ms", (10, 20, 40, 0)),
        ("10mbit,40ms", (10, 10, 40, 0)),
        ("130kbit/0.5Mbit, 0.1s, 5ms", (0.13, 0.5, 100, 5)),
        ("1gbit/2.5Gbit/s,300us", (1000, 2500, 0.3, 0)),
        ("1e2mbps,.5ms", (100, 100, 0.5, 0)),
    ],
)
def test_text_is_parsed(text: str, numbers: tuple[float, ...]) -> None:
    link = parse_link(text)
    assert isinstance(link, Link)
    assert (link.up_mbps, link.down_mbps, link.rtt_ms, link.jitter_ms) == pytest.approx(numbers)
    assert link.name.lower() == text.strip().lower()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4gg", "did you mean 4g?"),
        ("wify", "did you mean wifi"),
        ("", "no link is called nothing"),
        ("moon", "there are cat1, 3g, 4g, wifi, wifi5, lan"),
        ("10mbit", "lacks the round trip"),
        ("10mbit/20mbit", "lacks the round trip"),
        ("10/20mbit,40ms", "10 is no rate"),
        ("10MB,40ms", "is no rate"),
        ("10mbit/,40ms", "nothing is no rate"),
        ("10mbit,40", "40 is no time"),
        ("10mbit,", "nothing is no time"),
        ("10mbit,1ms,2ms,3ms", "too many parts"),
        ("0mbit,40ms", "up_mbps must be"),
        ("10mbit/-1mbit,40ms", "down_mbps must be"),
        ("nanmbit,40ms", "up_mbps must be"),
        ("infmbit,40ms", "up_mbps must be"),
        ("1e300gbit,40ms", "up_mbps must be"),
        ("10mbit,-1ms", "rtt_ms must be"),
        ("10mbit,nanms", "rtt_ms must be"),
        ("10mbit,1ms,infs", "jitter_ms must be"),
    ],
)
def test_wrong_text_is_one_clear_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_link(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=30))
def test_any_text_is_a_link_or_a_clear_error(text: str) -> None:
    with suppress(UsageError, InputError):
        assert isinstance(parse_link(text), Link)


# --- traces --------------------------------------------------------------------------------------------------------


def test_a_trace_is_a_step_function_whose_last_row_holds() -> None:
    one, two, three = (Link(up, 10, 20) for up in (1, 2, 3))
    trace = LinkTrace((0, 10, 15), (one, two, three))
    assert [trace.at(t) for t in (-5, 0, 9.99, 10, 14, 15, 1e9)] == [one, one, one, two, two, three, three]
    assert trace.duration == 22.5


def test_the_mean_of_a_trace_takes_as_long_as_its_requests_do() -> None:
    links = (Link(8, 1, 10), Link(2, 4, 30), Link(5, 9, 20))
    trace = LinkTrace((0, 4, 6), links)
    moments = np.linspace(0, trace.duration, 9000, endpoint=False)
    taken = np.mean([trace.at(t).transfer_ms(1e5, 1e4) for t in moments])
    assert trace.mean.transfer_ms(1e5, 1e4) == pytest.approx(taken, rel=1e-6)


@pytest.mark.parametrize("times", [(), (0, 0), (0, -1), (1, 2), (0, nan), (0, inf), (0, 1, 2)])
def test_times_of_a_trace_must_rise_from_0(times: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        LinkTrace(times, (Link(1, 1, 1),) * 2)


def test_a_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufefftime, up, down, rtt, jitter\r\n1000.5,10,20,40,5\r\n1002.5, .5,2e1,0,\r\n")
    trace = parse_link(str(path))
    assert isinstance(trace, LinkTrace)
    assert trace.times == (0, 2)
    assert trace.links == (Link(10, 20, 40, 5), Link(0.5, 20, 0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line must be time,up,down,rtt"),
        ("time,up,down\n1,2,3\n", "its first line must be time,up,down,rtt"),
        ("time,up,down,rtt\n", "without rows"),
        ("time,up,down,rtt\n0,1,2\n", "line 2: rtt is missing"),
        ("time,up,down,rtt\n0,1,x,3\n", "line 2: down is x, not a number"),
        ("time,up,down,rtt\n0,1,1,1\n1,0,1,1\n", "line 3: a link's up_mbps must be"),
        ("time,up,down,rtt\n0,1,nan,1\n", "line 2: a link's down_mbps must be"),
        ("time,up,down,rtt\n0,1,1,-1\n", "line 2: a link's rtt_ms must be"),
        ("time,up,down,rtt\nnan,1,1,1\n", "line 2: time must be a finite"),
        ("time,up,down,rtt\n0,1,1,1\n0,1,1,1\n", "line 3: time 0 does not come after 0"),
        ('time,up,down,rtt\n0,"1,1,1\n', "is not CSV"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
    ],
)
def test_a_broken_trace_names_the_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as raised:
        load_trace(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_link_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "home.link.json"
    link = Link(5.851, 19.9, 40.2, 1.5, "server:3277")
    save_link(path, link)
    assert load_link(path) == link
    assert parse_link(str(path)) == link
    assert '"up_mbps": 5.851' in path.read_text()


def test_a_link_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_link(tmp_path / "no" / "x.link.json", PRESETS["4g"])
    assert list(tmp_path.iterdir()) == []


GOOD = {"format": 1, "up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"format": 1, "up_mbps": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "a link file is a JSON object"),
        ({"format": 1, "fingerprint": "ab"}, "a link file is a JSON object"),
        ({**GOOD, "format": 2}, "has the format 2, but this version reads 1"),
        ({k: v for k, v in GOOD.items() if k != "format"}, "has the format None"),
        ({k: v for k, v in GOOD.items() if k != "rtt_ms"}, "rtt_ms"),
        ({**GOOD, "up_mbps": "fast"}, "$.up_mbps"),
        ({**GOOD, "down_mbps": 0}, "down_mbps must be"),
        ({**GOOD, "up_mbps": -1}, "up_mbps must be"),
        ({**GOOD, "rtt_ms": -1}, "rtt_ms must be"),
    ],
)
def test_a_broken_file_names_itself_and_the_field(tmp_path: Path, data: object, words: str) -> None:
    path = tmp_path / "x.link.json"
    path.write_bytes(data if isinstance(data, bytes) else msgspec.json.encode(data))
    with pytest.raises(InputError) as raised:
        load_link(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["no.csv", "no.link.json"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no file"):
        parse_link(str(tmp_path / name))


# --- the transfer model --------------------------------------------------------------------------------------------

SHAPES = st.lists(st.lists(st.integers(0, 300), max_size=5), min_size=1, max_size=4)


@given(SHAPES, st.sampled_from(sorted(ITEM_SIZES)))
def test_framing_is_what_the_wire_really_adds(shapes: Sequence[Sequence[int]], dtype: str) -> None:
    shapes = [s if np.prod(s, dtype=np.int64) < 1 << 20 else s[:2] for s in shapes]
    arrays = [np.zeros(s, dtype) for s in shapes]
    body = sum(a.nbytes for a in arrays)
    entries = sum(entry_nbytes(dtype, a.shape, a.nbytes) for a in arrays)
    request = wire.Packer(wire.Kind.INFER, lambda tensors, vectors, s: wire.Infer(3, tensors, vectors, s))
    assert request.pack(7, arrays, ((), 0.5)).nbytes == REQUEST_NBYTES + entries + body
    answer = wire.Packer(wire.Kind.RESULT, wire.ResultData)
    assert answer.pack(7, arrays, (), wire.Times()).nbytes == ANSWER_NBYTES + entries + body


@pytest.mark.parametrize("nbytes", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32])
def test_framing_of_encoded_tensors(nbytes: int) -> None:
    tensor = wire.Tensor("float32", (1, nbytes, 200), nbytes, "int8+zstd")
    assert entry_nbytes("float32", (1, nbytes, 200), nbytes, "int8+zstd") == len(msgspec.msgpack.encode(tensor))


def simulated_ms(nbytes: int, mbps: float, rtt_ms: float) -> float:
    """TCP by segment: the window begins with ten and grows by one with every acknowledgement."""
    segment_ms = 1448 * 8e-3 / mbps
    acks: list[float] = []
    free = 0.0
    for k in range(-(-nbytes // 1448)):
        begin = max(free, acks[(k - 10) // 2] if k >= 10 else 0.0)
        free = begin + segment_ms
        acks.append(free + rtt_ms)
    return free


@pytest.mark.parametrize("nbytes", [1000, 14_480, 100_000, 1_000_000, 5_000_000])
@pytest.mark.parametrize("link", PRESETS.values(), ids=lambda link: link.name)
def test_slow_start_is_that_of_a_simulated_tcp(link: Link, nbytes: int) -> None:
    plain = nbytes * 8e-3 / link.up_mbps
    slow = unvalidated_slow_start_ms(nbytes, link.up_mbps, link.rtt_ms)
    want = simulated_ms(nbytes, link.up_mbps, link.rtt_ms)
    # Each round's first window is a segment's time longer or shorter in one than in the other.
    assert plain + slow == pytest.approx(want, rel=0.1, abs=0.1 * link.rtt_ms + 2 * 1448 * 8e-3 / link.up_mbps)


def test_slow_start_is_off_by_default() -> None:
    link = PRESETS["wifi5"]
    assert request_ms(link, 150_000, 4000) == link.transfer_ms(150_000, 4000)
    assert request_ms(link, 150_000, 4000, unvalidated_slow_start=True) > link.transfer_ms(150_000, 4000) + 2


# --- the estimator -------------------------------------------------------------------------------------------------


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
    up = requests.estimator.estimate().up_mbps
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
    assert requests.estimator.estimate().overhead_ms + 1 == pytest.approx(true.rtt_ms, rel=0.3)


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
        up = requests.estimator.estimate().up_mbps
        assert up.value == pytest.approx(5.85, rel=0.15)
        assert up.high < 2 * up.low
        held += up.low < 5.85 < up.high
    assert held >= 17  # of two standard deviations


@pytest.mark.parametrize("seed", range(5))
def test_tiny_requests_say_nothing_of_bandwidth_and_it_says_so(seed: int) -> None:
    requests = Requests(LinkEstimator(Link(5.85, 20, 40)), seed)
    requests.send(Link(5.85, 20, 40, 2), [200] * 300, down=200)
    up = requests.estimator.estimate().up_mbps
    assert 2 < up.value < 20  # as it was believed, not what 0.3 ms of 2 ms of noise would say
    assert up.low < 5.85
    assert up.high == inf


def test_tiny_requests_do_not_wear_away_what_large_ones_taught() -> None:
    requests = Requests(LinkEstimator(PRESETS["lan"]), interval_s=0.1)
    requests.send(Link(5.85, 20, 40, 1), [150_000] * 20)
    requests.send(Link(5.85, 20, 40, 1), [100] * 100, down=100)
    assert requests.up == pytest.approx(5.85, rel=0.1)


def test_it_grows_unsure_while_nothing_is_heard() -> None:
    requests = Requests(LinkEstimator(PRESETS["4g"], half_life_s=10))
    requests.send(PRESETS["4g"], [150_000] * 20)
    widths = []
    for seconds in (0, 20, 60, 600):
        up = requests.estimator.estimate(requests.now + seconds).up_mbps
        assert up.value == pytest.approx(5.85, rel=0.02)
        widths.append(1 / up.low - 1 / up.high)
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


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
    estimate = LinkEstimator(PRESETS["4g"]).estimate()
    assert estimate.link.transfer_ms(1e5, 1e4) == pytest.approx(PRESETS["4g"].transfer_ms(1e5, 1e4))
    assert estimate.frames == 0
    assert estimate.up_mbps.low < 5.85 < estimate.up_mbps.high == inf


VALUES = st.sampled_from([0.0, -1.0, nan, inf, 1e-9, 1.0, 200.0, 1e12]) | st.floats()


@given(st.lists(st.tuples(*[VALUES] * 5), max_size=12))
def test_whatever_is_observed_it_stays_a_link(rows: list[tuple[float, ...]]) -> None:
    estimator = LinkEstimator(PRESETS["4g"])
    for (now, *values), trip in zip(rows, itertools.cycle([1.0, nan, -1.0, 1e300]), strict=False):
        estimator.observe(now if now == now else 0.0, *values)
        estimator.ping(0.0, min(trip, 1e6))
        estimate = estimator.estimate()
        assert estimate.up_mbps.low <= estimate.up_mbps.value <= estimate.up_mbps.high
        assert estimate.down_mbps.low <= estimate.down_mbps.value <= estimate.down_mbps.high
