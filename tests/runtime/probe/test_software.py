"""What software adds to a request: what is counted, what is no part of it, and when it cannot be known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks

from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.profile.measure import pause_s
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.runtime.probe.software import software_ms
from splitpoint.runtime.result import Marks, Result
from splitpoint.runtime.server.server import Server

LINK = Link(1000, 1000, 0.2)
#: A request of 100 kB up and 1 kB down: milliseconds of its stages.
HEAD, QUEUE, TAIL, TRIP, BYTES = 2.0, 7.0, 4.0, 0.2, 0.808


def request(software: float, head: float = HEAD) -> Result:
    """One that took `software` ms beside all that is no part of it; the server's clock is 5 s ahead."""
    headed = 100 + head * 1e-3
    decode, up = 0.1 * software, (TRIP + BYTES) / 2 + 0.5 * software
    down = (TRIP + BYTES) / 2 + 0.3 * software
    packed = headed + 0.1e-3 * software
    received = packed + up * 1e-3
    ended = received + (decode + QUEUE + TAIL + down) * 1e-3
    times = wire.Times(received + 5, 0.0, decode * 1e-3, QUEUE * 1e-3, TAIL * 1e-3, 0.0)
    return Result(
        {}, "c", Marks(100, headed, packed, ended), up_nbytes=100_000, down_nbytes=1000, raw_times=times,
        offset=Offset(5.0, 0.0001, 100.0),
    )  # fmt: skip


def test_it_is_the_median_of_what_is_neither_computing_nor_queue_nor_link() -> None:
    # The first of a visit warms up; of the others most take 0.5 ms, and some are disturbed.
    asked = iter([9.0, 0.5, 0.5, 3.0, 0.5, 0.5, 3.0, 0.5] * 6)
    paused = list[float]()
    assert software_ms(lambda: request(next(asked)), LINK, paused.append) == pytest.approx(0.5)
    assert next(asked, None) is None
    before = pause_s(HEAD + TAIL)
    assert paused == pytest.approx([0.05, *[before] * 7] * 6), "each after a wait, like the runs of a profile"


def test_visits_that_something_disturbed_do_not_count() -> None:
    asked = iter([0.5] * 8 + [4.0] * 32 + [0.52] * 8)
    assert software_ms(lambda: request(next(asked)), LINK, lambda _: None) == pytest.approx(0.51, abs=0.011)


def test_long_requests_are_fewer() -> None:
    asked = iter([0.5] * 8)
    assert software_ms(lambda: request(next(asked), head=300.0), LINK, lambda _: None) == pytest.approx(0.5)


def test_it_is_never_below_zero() -> None:
    slower = msgspec.structs.replace(LINK, rtt_ms=3.0)
    assert software_ms(lambda: request(0.5), slower, lambda _: None) == 0.0


@pytest.mark.parametrize("why", ["busy", "answered here", "bytes", "long"])
def test_what_does_not_show_is_not_measured(why: str) -> None:
    asked = list[Result]()

    def ask() -> Result | None:
        if why == "busy":
            return None
        result = request(0.5, head=600.0 if why == "long" else HEAD)
        asked.append(result)
        return msgspec.structs.replace(result, offset=None) if why == "answered here" else result

    link = msgspec.structs.replace(LINK, up_mbps=100.0) if why == "bytes" else LINK
    assert software_ms(ask, link, lambda _: None) == 0.0
    assert len(asked) <= 1, "nor asked for again"


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as server:
        yield server


def test_an_edge_measures_it_with_requests_of_its_model_that_nobody_counts(server: Server, tmp_path: Path) -> None:
    with Edge(server.address, at="cut:input", cache=tmp_path) as edge:
        # As fast as a link can be, so that what is beside it shows on a busy machine, too.
        fast = Link(1e6, 1e6, 0.0)
        link = edge.with_software(fast)
        assert link.software_ms > 0
        assert msgspec.structs.replace(link, software_ms=0.0) == fast
        assert edge.stats().requests.asked == 0
        assert edge.cut.name == "input"
        # What does not go to the server raw shows nothing of it.
        edge.switch("cut:output")
        assert edge.with_software(fast) == fast
        edge.switch("conv1", "int8")
        assert edge.with_software(fast) == fast
