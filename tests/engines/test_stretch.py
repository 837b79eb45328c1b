"""Runs that take longer: by how much, whose, and what is refused. Time is virtual."""

from __future__ import annotations

import sys
import time
import types

import numpy as np
import pytest
from sockets import LONG_S

import nets
from splitpoint.engines import onnxruntime, open_engine, stretch
from splitpoint.engines.stretch import LIMIT, SLOWDOWN, sleep_until, slowdown, stretched
from splitpoint.errors import EngineError, InputError, UsageError
from splitpoint.profile.measure import ProfileRun

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


class Virtual:
    """A clock whose sleeps end at once, late by `late_s` or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late_s: float = 0.0) -> None:
        self.now, self.late_s = 0.0, late_s
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s


@pytest.mark.parametrize("run_s", [0.0002, 0.0025, 0.02, 0.2])
def test_a_run_of_any_length_takes_so_many_times_as_long(run_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = Virtual(monkeypatch, late_s=1e-5)
    assert stretched(lambda x: (virtual.sleep(run_s - 1e-5), x)[1], 8)("answer") == "answer"
    assert virtual.now == pytest.approx(8 * run_s, abs=2e-5)


def test_what_is_not_slowed_is_as_it_was() -> None:
    assert stretched(len, 1) is len


def test_a_wait_does_not_end_early() -> None:
    moment = time.perf_counter() + 0.003
    sleep_until(moment)
    assert moment <= time.perf_counter() < moment + LONG_S


def test_engines_heed_it_in_runs_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(stretch, "sleep_until", waits.append)
    monkeypatch.setattr(onnxruntime, "_kernel_medians", lambda *_: [("conv", 2.0)])
    monkeypatch.setenv(SLOWDOWN, "8")
    engine, model = open_engine(threads=1), nets.load(nets.residual())
    assert isinstance(engine, onnxruntime.OnnxRuntimeEngine)
    session = engine.compile(model.whole())
    plain = session.run({"x": X})
    assert len(waits) == 1
    assert engine.kernel_times(model.whole(), {"x": X}, runs=2, warm=1) == [("conv", 16.0)]
    session.close()
    monkeypatch.delenv(SLOWDOWN)
    session = open_engine(threads=1).compile(model.whole())
    waits.clear()
    np.testing.assert_array_equal(session.run({"x": X})["y"], plain["y"])
    assert waits == []
    session.close()


def test_all_of_a_run_is_stretched_and_a_failed_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(stretch, "sleep_until", waits.append)
    monkeypatch.setenv(SLOWDOWN, "8")
    session = open_engine(threads=1).compile(nets.load(nets.residual()).whole())
    with pytest.raises(InputError, match="input x is missing"):
        session.run({})
    assert waits == []
    now = [0.0]

    class Feed(dict[str, np.ndarray]):
        """What Python does before the engine computes takes a millisecond."""

        def __getitem__(self, name: str) -> np.ndarray:
            now[0] += 1e-3
            return super().__getitem__(name)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    session.run(Feed(x=X))
    assert waits == [pytest.approx(8e-3)]
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": X})


def test_an_engine_that_does_not_heed_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = types.ModuleType("heedless_engine")
    outside.Heedless = lambda device, threads: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "heedless_engine", outside)
    assert open_engine("heedless_engine:Heedless")
    monkeypatch.setenv(SLOWDOWN, "8")
    with pytest.raises(EngineError, match="heedless_engine:Heedless cannot be slowed"):
        open_engine("heedless_engine:Heedless")


def test_nothing_is_profiled_under_a_cpu_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWDOWN, LIMIT)
    assert slowdown() == 1
    with pytest.raises(UsageError, match=r"a profile would be wrong\. Slow it with --method stretched"):
        ProfileRun(nets.load(nets.residual()), open_engine(threads=1), budget_s=1)


def test_without_it_nothing_is_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SLOWDOWN, raising=False)
    assert slowdown() == 1
    for nonsense in ("fast", "0.5", "nan", "1e9"):
        monkeypatch.setenv(SLOWDOWN, nonsense)
        with pytest.raises(UsageError):
            slowdown()
