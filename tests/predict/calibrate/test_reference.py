"""Reference networks: a device that is slower than when it was calibrated, and a latency file that is told so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from latencies import latency
from plans import model_of

import nets
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import InputError
from splitpoint.machine import this_machine
from splitpoint.models.model import Model, Segment
from splitpoint.predict.calibrate import reference as references
from splitpoint.predict.calibrate.collection import Collection, MeasuredNetwork, NetworkVisit, started
from splitpoint.predict.calibrate.random_networks import random_network
from splitpoint.predict.calibrate.reference import measure, network, speed_of, visit
from splitpoint.predict.learn.files import latency_bytes, load_latency, parse_latency, save_latency
from splitpoint.predict.learn.latency_model import Latency, Reference
from splitpoint.predict.price.prediction import linear_ms, predict_latency
from splitpoint.tensors import Array

SMALL = 1.2e8  # FLOPs: as light as strips get


def reference(seed: int = 0, family: str = "mobile", ms: float = 10.0) -> Reference:
    model = random_network(seed, family, SMALL)
    return Reference(family=family, seed=seed, work=SMALL, flops=sum(n.flops for n in model.graph.nodes), ms=ms)


THREE = tuple(reference(k, ms=10.0 * (k + 1)) for k in range(3))


# --- a file that is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_everything_in_a_slowed_file_takes_so_many_times_as_long(factor: float) -> None:
    device = latency(without=("other", "maxpool"), reference=THREE)  # pools by FLOPs and bytes
    model = model_of("zoo:efficientnet_lite0")
    before, after = predict_latency(model, device), predict_latency(model, device.slowed(factor))
    for old, new in zip(before.kernels, after.kernels, strict=True):
        assert new.ms.median == pytest.approx(factor * old.ms.median)
        assert new.ms.p10 == pytest.approx(factor * old.ms.p10)
        assert new.ms.p90 == pytest.approx(factor * old.ms.p90)
    assert after.whole.median == pytest.approx(factor * before.whole.median)
    kernels = [k.kernel for k in before.kernels]
    assert linear_ms(kernels, device.slowed(factor)) == pytest.approx(factor * linear_ms(kernels, device))
    slowed = device.slowed(factor)
    assert slowed.fixed_ms == pytest.approx(factor * device.fixed_ms)
    short = model_of("zoo:lenet5")
    assert predict_latency(short, slowed).whole.median == pytest.approx(
        factor * predict_latency(short, device).whole.median
    )
    assert [r.ms for r in slowed.reference] == pytest.approx([factor * 10 * k for k in (1, 2, 3)])
    assert slowed.slowdown == factor
    assert slowed.slowed(1 / factor).slowdown == pytest.approx(1.0)


def test_the_file_keeps_its_references_and_says_when_it_was_refreshed(tmp_path: Path) -> None:
    path = tmp_path / "d.latency.json"
    device = msgspec.structs.replace(latency(reference=THREE).slowed(1.5), refreshed="2026-02-01T00:00:00Z")
    save_latency(path, device)
    assert load_latency(path) == device
    old = msgspec.to_builtins(latency())
    for name in ("reference", "slowdown", "refreshed", "cold_ms"):  # what an earlier version wrote
        del old[name]
    assert parse_latency(msgspec.json.encode(old), "old") == latency()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda v: v["reference"][1].update(ms=0.0), r"at `\$\.reference\[1\]\.ms`"),
        (lambda v: v["reference"][0].update(work=1e30), r"at `\$\.reference\[0\]\.work`"),
        (lambda v: v["reference"][0].update(seed=-1), r"at `\$\.reference\[0\]\.seed`"),
        (lambda v: v["reference"][0].update(seed=1.5), "is not a latency file, or it is damaged"),
        (
            lambda v: v["reference"][2].update(family="vgg\x1b[2J"),
            r"control characters - at `\$\.reference\[2\]\.family`",
        ),
        (lambda v: v.update(reference=v["reference"] * 100), r"length <= 256 - at `\$\.reference`"),
        (lambda v: v.update(reference=[*v["reference"], v["reference"][1]]), "is there twice"),
        (lambda v: v.update(cold_ms=0.0), r"at `\$\.cold_ms`"),
        (lambda v: v.update(threads=4096), r"at `\$\.threads`"),
        (lambda v: v.update(slowdown=0.0), r"at `\$\.slowdown`"),
        (lambda v: v.update(refreshed="\x07"), "control characters"),
    ],
)
def test_damaged_references_are_refused(damage: Callable[[Any], None], says: str) -> None:
    content = json.loads(latency_bytes(latency(reference=THREE)))
    damage(content)
    with pytest.raises(InputError, match=says):
        parse_latency(json.dumps(content).encode(), "it")


# --- which networks ---------------------------------------------------------------------------------------------------


def collection(count: int) -> Collection:
    """`count` strips as if measured: their times rise, some are of odd families, heavy, or were come back to."""
    strips = []
    for k in range(count):
        ms = 5.0 + 0.1 * k
        visit = NetworkVisit((ms, ms, ms), (ms,))
        family = "odd" if k % 7 == 0 else "mobile"
        mb, visits = 900.0 if k % 7 == 1 else 5.0, (visit,) * (1 + (k % 7 == 2))
        strips.append(MeasuredNetwork(k, family, SMALL, mb, (("conv", (1.0,)),), visits, 0.5))
    return msgspec.structs.replace(started(nets.ENGINE), strips=tuple(strips))


def test_references_are_usual_networks_from_all_of_the_calibration() -> None:
    found = collection(150).references()
    assert len(found) == 24
    assert all(r.seed % 7 > 2 and r.family == "mobile" for r in found)
    assert all(r.ms == pytest.approx(5.0 + 0.1 * r.seed) for r in found)
    low, high = np.quantile(5.0 + 0.1 * np.arange(150), (0.1, 0.95))
    assert all(low <= r.ms <= high for r in found)
    assert found[0].seed < 22
    assert found[-1].seed > 135
    assert max(np.diff([r.seed for r in found])) <= 10
    assert network(found[3]).fingerprint == random_network(found[3].seed, "mobile", SMALL).fingerprint
    assert collection(0).references() == ()
    assert len(collection(12).references()) in range(1, 9)


def test_a_network_of_another_version_is_refused() -> None:
    with pytest.raises(InputError, match="another version of splitpoint: calibrate anew"):
        network(msgspec.structs.replace(THREE[0], flops=THREE[0].flops + 2))
    with pytest.raises(InputError, match="another version of splitpoint: calibrate anew"):
        network(msgspec.structs.replace(THREE[0], family="perceptron"))


# --- how fast it is ---------------------------------------------------------------------------------------------------


@dataclass
class Slower:
    """An engine in virtual time on which each reference network takes `factor` times what the file says."""

    factor: Mapping[int, float]
    now_s: float = 0.0

    def compile(self, segment: Segment) -> Slower:
        self.at = [network(r).whole().fingerprint for r in THREE].index(segment.fingerprint)
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.now_s += self.factor[self.at] * THREE[self.at].ms / 1e3
        return {}

    def close(self) -> None:
        pass

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


def test_the_speed_is_that_of_the_middle_network() -> None:
    engine, seen = Slower({0: 1.3, 1: 1.2, 2: 5.0}), []
    speed = measure(
        THREE, engine, on_step=lambda done, total: seen.append((done, total)), clock=engine.clock, pause=engine.pause,
    )  # type: ignore[arg-type]  # fmt: skip
    assert speed.ratio == pytest.approx(1.3)
    assert (speed.low, speed.high) == pytest.approx((1.25, 3.15))
    assert speed.count == 3
    assert seen == [(k, 9) for k in range(9)]
    assert 0.25 * 9 < engine.now_s < 0.6 * 9
    with pytest.raises(InputError, match="no reference networks"):
        measure((), engine)  # type: ignore[arg-type]


def test_visits_say_the_speed_of_those_that_were_visited() -> None:
    visits = {THREE[0].name: [[9.0, 9.1, 50.0], [8.9, 8.9, 8.9], [9.2, 9.2, 9.2]], "another-1-5": [[1.0]]}
    speed = speed_of(THREE, visits)
    assert speed is not None
    assert (speed.ratio, speed.count) == (pytest.approx(0.91), 1)
    assert speed.rounds == pytest.approx((0.91, 0.89, 0.92))
    assert str(speed) == ("1 network of the calibration takes 0.91x what the file says")
    assert speed_of(THREE, {}) is None
    two = speed_of(THREE, visits | {THREE[1].name: [[22.0]]})
    assert str(two).endswith("2 networks of the calibration take 1.00x what the file says (half of them 0.96x…1.05x)")


# --- the command ------------------------------------------------------------------------------------------------------


def refresh(*args: object) -> int:
    return main(["calibrate-kernels", "--refresh", *map(str, args)])


def here(**more: Any) -> Latency:
    return latency(machine=this_machine(), threads=1, **more)


def test_refreshing_measures_and_scales_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "REFERENCE_S", 0.01)
    path = tmp_path / "device.latency.json"
    save_latency(path, here(reference=(reference(ms=0.5), reference(1, ms=50.0), reference(2, ms=50.0))))
    assert refresh("-o", path) == 0
    said = capsys.readouterr()
    first = load_latency(path)
    assert 0.02 < first.slowdown < 1  # the first takes longer than the file says, two are much quicker
    assert first.refreshed.endswith("Z")
    assert first.reference[0].ms == pytest.approx(0.5 * first.slowdown)
    text = " ".join(said.out.split())
    assert f"now 3 networks of the calibration take {first.slowdown:.2f}x what the file says" in text
    assert "as long as when it was calibrated (2026-01-01T" in text
    assert "do not agree: --refresh once more" in said.err
    assert f"wrote {path}" in said.err
    # once more: next to what it says now, and the file remembers both
    assert refresh("-o", path, "--json") == 0
    second = parse_latency(capsys.readouterr().out.encode(), "printed")
    assert second == load_latency(path)
    assert second.slowdown / first.slowdown == pytest.approx(second.reference[0].ms / first.reference[0].ms)
    assert main(["predict", "zoo:lenet5", "--on", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"refreshed {second.refreshed}: everything takes {second.slowdown:.2f}x as long as when it was" in text


def test_what_refreshing_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "device.latency.json"
    save_latency(path, here())
    before = path.read_bytes()
    for args, status, says in (
        (("-o", path), 4, "no reference networks to measure: calibrate anew, without --refresh"),
        (("-o", path, "--budget", "1m"), 2, "takes nothing but -o FILE, which says the rest: leave out --budget"),
        (("-o", path, "--csv", tmp_path), 2, "leave out --csv"),
        (("-o", path, "--threads", "2"), 2, "leave out --threads"),
        (("-o", tmp_path / "none.latency.json"), 4, "there is no latency file"),
        (("-o", "neurosurgeon-edge"), 4, "no reference networks to measure"),
    ):  # fmt: skip
        assert (refresh(*args), says in (err := capsys.readouterr().err)) == (status, True), err
        assert "Traceback" not in err
        assert path.read_bytes() == before
    impossible = (reference(ms=1e-3), reference(1, ms=1e-3))
    for device, says in (
        (latency(reference=THREE), "is of Cortex-A72, and this is"),
        (here(reference=THREE, engine="tvm"), "was made with engine tvm, not with engine onnxruntime: calibrate anew"),
        (here(reference=(msgspec.structs.replace(THREE[0], flops=7),)), "another version of splitpoint"),
        (here(reference=impossible), "that is another machine, or a damaged file; calibrate anew"),
    ):
        save_latency(path, device)
        before = path.read_bytes()
        assert (refresh("-o", path), says in " ".join(capsys.readouterr().err.split())) == (4, True), says
        assert path.read_bytes() == before


# --- a visit to a network, in virtual time: what counts, how often, how long it waits between ----------------------


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
def lenet() -> Model:
    return model_of("zoo:lenet5")


def test_the_first_two_runs_do_not_count_and_three_are_the_least(lenet: Model) -> None:
    slow = Stopwatch(900.0, 800.0, 500.0, 501.0, 502.0)
    assert slow.visit(lenet, 0.6) == pytest.approx([500.0, 501.0, 502.0])
    assert (slow.runs, slow.closed, len(slow.pauses)) == (5, 1, 5)


def test_it_runs_until_its_time_is_over_and_no_more_than_two_hundred_times(lenet: Model) -> None:
    some = Stopwatch(10.0)
    assert len(some.visit(lenet, 2.0)) == some.runs - 2
    assert some.now == pytest.approx(2.0, abs=0.1)
    assert len(Stopwatch(1e-6).visit(lenet, 1e9)) == 200


def test_a_failed_run_closes_its_session(lenet: Model) -> None:
    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("broken")

    engine = Stopwatch(1.0)
    engine.run = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        engine.visit(lenet, 1.0)
    assert engine.closed == 1


def test_real_runs_take_time(lenet: Model) -> None:
    took = visit(lenet, open_engine(threads=1), time.perf_counter, lambda seconds: None, 0.01)
    assert min(took) > 0
