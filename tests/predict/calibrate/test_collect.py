"""Collecting in virtual time with an engine whose kernels take what the test says, and once for real."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import nets
from splitpoint.cli import calibrate_device, main
from splitpoint.errors import EngineError, InputError, MissingExtraError, UsageError
from splitpoint.models.model import Segment
from splitpoint.predict.calibrate.collect import collect
from splitpoint.predict.calibrate.collection import Collection, NetworkVisit, load_collection, save_collection, started
from splitpoint.predict.calibrate.random_networks import FAMILIES, strip
from splitpoint.predict.calibrate.reference import network
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import read_tables, write_tables
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.predict.price.prediction import predict
from splitpoint.segments import samples_for
from splitpoint.tensors import Array, TensorSpec

#: What each node takes in virtual time, and what the whole takes more than its nodes.
NODE_MS, FIXED_MS, COMPILE_S = 0.2, 0.05, 0.5


@dataclass
class VirtualEngine:
    """Runs nothing: every node takes `NODE_MS`, or `slow` times as long for the segments (by number) that are named."""

    name: str = "onnxruntime"
    device: str = "cpu"
    threads: int = 1
    now_s: float = 0.0
    compiled: int = 0
    profiled: int = 0
    slow: Mapping[int, float] = field(default_factory=dict)

    def compile(self, segment: Segment) -> VirtualSession:
        self.now_s += COMPILE_S
        self.compiled += 1
        return VirtualSession(self, len(segment.proto.graph.node) * NODE_MS + FIXED_MS, segment.inputs)

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        factor = self.slow.get(self.profiled, 1.0)
        self.profiled += 1
        times = [(node.name, NODE_MS * factor) for node in segment.proto.graph.node]
        self.now_s += COMPILE_S + (runs + warm) * sum(ms for _, ms in times) / 1e3
        return times

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class VirtualSession:
    engine: VirtualEngine
    ms: float
    inputs: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert all(t.name in inputs for t in self.inputs)
        self.engine.now_s += self.ms / 1e3
        return {}

    def close(self) -> None:
        pass


def collected(engine: VirtualEngine, budget_s: float, begun: Collection | None = None, **options: Any) -> Collection:
    found = begun or started(engine)  # type: ignore[arg-type]
    for latest in collect(found, engine, budget_s=budget_s, clock=engine.clock, pause=engine.pause, **options):  # type: ignore[arg-type]
        found = latest
    return found


# --- the survey ---------------------------------------------------------------------------------------------------


def test_a_round_has_a_strip_of_every_family_and_the_budget_ends_it() -> None:
    engine = VirtualEngine()
    found = collected(engine, 30.0)
    assert 27.0 < found.spent_s <= 32.0
    assert found.spent_s == pytest.approx(engine.now_s)
    assert [s.family for s in found.strips][: len(FAMILIES)] == list(FAMILIES)[: len(found.strips)]
    for s in found.strips:
        assert min(s.kernels_ms()) > 0
    assert found.rows == sum(len(s.rows) for s in found.strips)


def test_the_whole_is_its_kernels_and_what_is_fixed() -> None:
    engine = VirtualEngine()
    found = collected(engine, 10.0)
    for s in found.strips:
        # Placed nodes alone have times of their own; what is copied runs as part of the whole.
        assert s.whole_ms - FIXED_MS == pytest.approx(float(s.kernels_ms().sum()), rel=0.02)


def test_the_same_seed_measures_the_same_strips() -> None:
    one, other = (collected(VirtualEngine(), 8.0) for _ in range(2))
    assert [s.rows for s in one.strips] == [s.rows for s in other.strips]
    third = collected(VirtualEngine(), 8.0, started(VirtualEngine(), seed=1))  # type: ignore[arg-type]
    assert [s.work for s in third.strips] != [s.work for s in one.strips]


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "device.strips.json"
    save_collection(path, collected(VirtualEngine(), 6.0))
    begun = load_collection(path)
    done = collected(VirtualEngine(), 14.0, begun)
    assert done.strips[: len(begun.strips)] == begun.strips
    whole = collected(VirtualEngine(), 14.0)
    both = min(len(done.strips), len(whole.strips))
    assert both > len(begun.strips)
    assert [s.rows for s in done.strips[:both]] == [s.rows for s in whole.strips[:both]]
    assert collected(VirtualEngine(), 5.0, begun) == begun  # nothing is left of a smaller budget


def test_a_disturbed_strip_is_measured_again_and_the_disturbance_left_out() -> None:
    # While the third strip's kernels are timed, something else runs.
    found = collected(VirtualEngine(slow={2: 3.0}), 18.0)
    third = found.strips[2]
    assert len(third.visits) == 2
    assert sum(third.visits[0].kernels) > 2.5 * sum(third.visits[1].kernels)
    assert float(third.kernels_ms().sum()) == pytest.approx(sum(third.visits[1].kernels))
    assert max(len(s.visits) for s in found.strips if s is not third) == 1


def test_a_slow_visit_does_not_count() -> None:
    found = collected(VirtualEngine(), 4.0).strips[0]
    visit = found.visits[0]
    slow = msgspec.structs.replace(
        visit, whole=tuple(2 * ms for ms in visit.whole), kernels=tuple(9 * ms for ms in visit.kernels)
    )
    both = msgspec.structs.replace(found, visits=(slow, visit))
    assert both.whole_ms == found.whole_ms
    assert (both.kernels_ms() == found.kernels_ms()).all()


def test_what_is_least_known_for_its_cost_is_measured_next() -> None:
    """Only layer norm is not known: networks with it are taken more often than they are drawn."""
    learned = []

    def fit(tables: Mapping[str, Any]) -> Any:
        learned.append(sum(len(t) for t in tables.values()))
        return lambda kind, configs: np.full(len(next(iter(configs.values()))), 1.0 if kind == "layernorm" else 0.0)

    def share(found: Collection) -> float:
        return float(np.mean(["layernorm" in dict(s.rows) for s in found.strips[len(FAMILIES) :]]))

    chosen, drawn = collected(VirtualEngine(), 44.0, fit=fit), collected(VirtualEngine(), 44.0)
    assert len(chosen.strips) >= len(FAMILIES) + 8
    assert share(chosen) >= 1.3 * share(drawn)
    assert learned == sorted(learned)
    assert all(b >= a * 1.3 for a, b in pairwise(learned))  # not anew for every strip


def test_progress_is_told_before_every_strip() -> None:
    told: list[Any] = []
    found = collected(VirtualEngine(), 8.0, on_progress=told.append)
    assert len(told) == sum(len(s.visits) for s in found.strips)
    assert [p.done for p in told] == list(range(len(told)))
    assert told[0].what == next(iter(FAMILIES))
    assert told[-1].left_s < told[0].left_s


def test_an_engine_that_says_nothing_of_its_kernels_cannot_be_calibrated() -> None:
    class Silent:
        name, device, threads = "silent", "cpu", 1

    with pytest.raises(EngineError, match="does not say what its kernels take"):
        next(collect(started(VirtualEngine()), Silent(), budget_s=1.0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="above 0"):
        next(collect(started(VirtualEngine()), VirtualEngine(), budget_s=0.0))  # type: ignore[arg-type]


# --- strips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_strips_run_and_carry_signal(family: str) -> None:
    """What comes out depends on what goes in, and is neither infinite nor so small that it slows a processor down."""
    model = strip(3, family, 1e8)
    kernels = kernels_of(model)
    assert sorted(i for k in kernels for i in k.nodes) == sorted(model.graph.placed)
    assert {k.kind for k in kernels} <= KINDS.keys() - {"other"}
    session = nets.ENGINE.compile(model.whole())
    try:
        outs = [next(iter(session.run(sample).values())) for sample in samples_for(model, 2)]
    finally:
        session.close()
    assert all(np.isfinite(y).all() for y in outs)
    assert not np.allclose(outs[0], outs[1], rtol=1e-4)
    assert not any(((np.abs(y) > 0) & (np.abs(y) < 1e-30)).any() for y in outs)


def test_strips_are_the_same_for_the_same_arguments_and_differ_else() -> None:
    one, same, other = strip(1, "mobile", 5e8), strip(1, "mobile", 5e8), strip(2, "mobile", 5e8)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_strips_have_about_the_work_that_is_asked_for() -> None:
    for family in ("bottleneck", "resnet", "inception"):
        made = [sum(n.flops for n in strip(k, family, work).graph.nodes) for k in range(2) for work in (4e8, 4e9)]
        assert 2e8 < made[0] < made[1] < 1e10


# --- the file -----------------------------------------------------------------------------------------------------


def test_rows_become_tables_and_tables_files(tmp_path: Path) -> None:
    found = collected(VirtualEngine(), 12.0)
    tables = found.tables()
    assert sum(len(t) for t in tables.values()) == found.rows
    assert {"conv", "dw_conv", "linear", "maxpool"} <= tables.keys()
    for kind, table in tables.items():
        assert tuple(table.columns) == KINDS[kind].columns
        assert table.origin is not None
    strip_0 = sum(float(t.latency_ms[t.origin == 0].sum()) for t in tables.values() if t.origin is not None)
    assert strip_0 == pytest.approx(float(found.strips[0].kernels_ms().sum()))
    write_tables(tmp_path, tables)
    again, said = read_tables(tmp_path)
    assert said == []
    assert again.keys() == tables.keys()
    for kind, table in tables.items():
        np.testing.assert_allclose(again[kind].latency_ms, table.latency_ms)
        assert (again[kind].origin == table.origin).all()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("format",), 99, "another version"),
        (("columns", "conv"), ["HW"], "another version"),
        (("spent_s",), -1.0, "its time"),
        (("strips", 0, "family"), "../x", "cannot have been measured"),
        (("strips", 0, "visits"), [], "cannot have been measured"),
        (("strips", 0, "visits", 0, "whole"), [-1.0], "a time that makes no sense"),
        (("strips", 0, "visits", 0, "kernels", 0), 1e12, "a time that makes no sense"),
        (("strips", 0, "visits", 0, "kernels"), [1.0], "1 kernel"),
        (("strips", 0, "rows", 0, 0), "nothing", "a row of nothing"),
        (("strips", 0, "rows", 0, 1, 0), -5.0, "a size that makes no sense"),
        (("strips", 0, "work"), 0.0, "operations"),
        (("threads",), "many", "Expected `int`"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, place: tuple[Any, ...], value: Any, says: str) -> None:
    path = tmp_path / "device.strips.json"
    save_collection(path, collected(VirtualEngine(), 3.0))
    content = json.loads(path.read_bytes())
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        load_collection(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b'{"format": 1'])
def test_what_is_no_collection_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "device.strips.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"no calibration under way.*remove it to begin anew"):
        load_collection(path)


def test_measurements_of_another_machine_or_engine_are_refused() -> None:
    found = started(VirtualEngine(), seed=3)  # type: ignore[arg-type]
    found.require(VirtualEngine(), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another number of threads: 1, not 2"):
        found.require(VirtualEngine(threads=2), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another device: cpu, not cuda"):
        found.require(VirtualEngine(device="cuda"), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another seed: 3, not 4"):
        found.require(VirtualEngine(), 4)  # type: ignore[arg-type]
    machine = dataclasses.replace(found.machine, processor="Z80")
    with pytest.raises(InputError, match="another processor: Z80"):
        msgspec.structs.replace(found, machine=machine).require(VirtualEngine(), 3)  # type: ignore[arg-type]


def test_a_file_says_of_its_references_what_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from splitpoint.predict.learn import training as learn

    monkeypatch.setattr(learn, "FULL", learn.QUICK)
    found = collected(VirtualEngine(), 40.0)
    latency = found.learned()
    assert [r.name for r in latency.reference] == [r.name for r in found.references()]
    assert len(latency.reference) > 5
    for r in latency.reference:
        assert r.ms == predict(network(r), latency).whole.median
    # one strip that was disturbed is not what the device is measured by
    slow, other = found.references()[0], list(found.strips)
    k = next(k for k, s in enumerate(other) if s.seed == slow.seed)
    disturbed = NetworkVisit(tuple(1.2 * ms for ms in other[k].visits[0].whole), other[k].visits[0].kernels)
    other[k] = msgspec.structs.replace(other[k], visits=(disturbed,))
    again = msgspec.structs.replace(found, strips=tuple(other)).learned()
    assert {r.seed: r.ms for r in again.reference}.get(slow.seed, slow.ms) < 1.1 * slow.ms


# --- the command line ---------------------------------------------------------------------------------------------


def run(*args: object) -> int:
    return main(["calibrate-device", "--threads", "1", *map(str, args)])


def test_the_command_measures_learns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from splitpoint.predict.learn import training as learn
    from splitpoint.predict.learn.files import load_latency

    monkeypatch.setattr(learn, "FULL", learn.QUICK)
    output = tmp_path / "device.latency.json"
    assert run("--budget", "1s", "-o", output, "--name", "a box") == 0
    said = capsys.readouterr()
    assert "a box" in said.out
    assert "conv" in said.out
    assert f"next: splitpoint predict MODEL --on {output}" in said.out
    latency = load_latency(output)
    found = load_collection(tmp_path / "device.strips.json")
    assert (latency.engine, latency.device, latency.threads) == ("onnxruntime", "cpu", 1)
    assert latency.rows == found.rows > 10
    assert run("--budget", "1s", "-o", output) == 2
    assert "a larger --budget measures on" in capsys.readouterr().err
    assert run("--budget", "1s", "-o", output, "--threads", "2") == InputError.exit_code
    assert "another number of threads: 1, not 2" in capsys.readouterr().err
    output.unlink()  # as if training had been interrupted
    assert run("--budget", "1s", "-o", output) == 0
    assert "going on with" in capsys.readouterr().err


def test_without_scikit_learn_it_only_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = tmp_path / "device.latency.json"
    assert run("--budget", "1s", "-o", output) == MissingExtraError.exit_code
    assert "install 'scikit-learn>=1.5' 'threadpoolctl>=3.5'" in capsys.readouterr().err
    assert run("--budget", "1s", "-o", output, "--csv", tmp_path / "csv") == 0
    assert "splitpoint predict train" in capsys.readouterr().err
    assert not output.exists()
    tables, said = read_tables(tmp_path / "csv")
    assert said == []
    assert "conv" in tables


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = collected(VirtualEngine(), 3.0)

    def interrupted(*args: object, **options: object) -> Any:
        yield begun
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_device, "collect", interrupted)
    assert run("-o", tmp_path / "device.latency.json") == 130
    assert " kept in " in (said := capsys.readouterr().err)
    assert "the same command goes on" in said
    assert load_collection(tmp_path / "device.strips.json") == begun


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--budget", "soon"], "budget"),
        (["-o", "/nowhere/device.latency.json"], "no folder"),
        (["--seed", "-1"], "--seed"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_sentence(
    args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [] if "-o" in args else ["-o", str(tmp_path / "d.latency.json")]
    assert run(*before, *args) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
