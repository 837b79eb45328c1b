"""A visit to a network, in virtual time: what counts, how often, and how long it waits between."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from splitpoint.engines import open_engine
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.predict.calibrate.network_timing import visit
from splitpoint.tensors import Array


class Stopwatch:
    """An engine whose `k`-th run takes `times[k]` ms of a clock that nothing else moves but pauses."""

    name, device, threads = "stopwatch", "cpu", 1

    def __init__(self, *times: float) -> None:
        self.now, self.times, self.runs, self.closed = 0.0, times, 0, 0
        self.pauses: list[float] = []

    def compile(self, segment: Segment) -> Stopwatch:
        self.inputs, self.outputs, self.nbytes = segment.inputs, segment.outputs, 0
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert set(inputs) == {t.name for t in self.inputs}
        self.now += self.times[min(self.runs, len(self.times) - 1)] / 1e3
        self.runs += 1
        return {}

    def close(self) -> None:
        self.closed += 1

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def visit(self, model: Model, seconds: float) -> list[float]:
        return visit(model, self, lambda: self.now, self.pause, seconds)


@pytest.fixture(scope="module")
def model() -> Model:
    return load("zoo:lenet5")


def test_the_first_two_runs_do_not_count_and_three_are_the_least(model: Model) -> None:
    slow = Stopwatch(900.0, 800.0, 500.0, 501.0, 502.0)
    assert slow.visit(model, 0.6) == pytest.approx([500.0, 501.0, 502.0])
    assert (slow.runs, slow.closed, len(slow.pauses)) == (5, 1, 5)


def test_it_runs_until_its_time_is_over_and_no_more_than_two_hundred_times(model: Model) -> None:
    some = Stopwatch(10.0)
    assert len(some.visit(model, 2.0)) == some.runs - 2
    assert some.now == pytest.approx(2.0, abs=0.1)
    assert len(Stopwatch(1e-6).visit(model, 1e9)) == 200


def test_a_failed_run_closes_its_session(model: Model) -> None:
    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("broken")

    engine = Stopwatch(1.0)
    engine.run = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        engine.visit(model, 1.0)
    assert engine.closed == 1


def test_real_runs_take_time(model: Model) -> None:
    import time

    took = visit(model, open_engine(threads=1), time.perf_counter, lambda seconds: None, 0.01)
    assert min(took) > 0
