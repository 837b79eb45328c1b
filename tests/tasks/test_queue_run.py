"""Queues that run for real: on a server with two models, in few seconds."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from queues import FAST, whole
from relays import ThreadRelay

from splitpoint.engines import open_engine
from splitpoint.errors import ServerError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.survey import Survey
from splitpoint.tasks.fleet import _PATIENCE, Fleet, inputs_of
from splitpoint.tasks.monitor import QueueMonitor, Spent
from splitpoint.tasks.policies import POLICIES
from splitpoint.tasks.queue_run import QueueRun, _slower, predict
from splitpoint.tasks.schedule import Free
from splitpoint.tasks.task import Task, TaskResult, mix


def slow_device(fleet: Fleet, profiles: Mapping[str, Profile]) -> None:
    """So slow that a fast link is always taken."""
    for name, profile in profiles.items():
        fleet.know((name, ""), Survey(profile.slowed(500), profile, FAST))


@pytest.mark.parametrize("name", POLICIES)
def test_every_answer_is_the_whole_models(name: str, fleet: Fleet, models: Mapping[str, Model]) -> None:
    tasks = mix(["lenet5", "residual"], 12, seed=3)
    tasks += [Task(name="late", model="lenet5", arrival_s=0.1, deadline_s=60)]
    inputs = {t.name: samples_for(models[t.model], 1, k)[0] for k, t in enumerate(tasks)}
    answers: dict[str, Result] = {}
    run = QueueRun(fleet, tasks, name, inputs)
    run.on_answer = lambda row, result: answers.update({row.task.name: result})
    rows = run.run()
    assert sorted(r.task.name for r in rows) == sorted(t.name for t in tasks), "each once"
    for task in tasks:
        for output, expected in whole(models[task.model], inputs[task.name]).items():
            np.testing.assert_allclose(answers[task.name].outputs[output], expected, rtol=1e-4, atol=1e-5)
    for row in rows:
        parts = row.edge_ms + row.transfer_ms + row.server_ms + row.waiting_ms
        assert parts == pytest.approx(row.total_ms, abs=0.01)
        assert row.waiting_ms >= 0
    late = next(r for r in rows if r.task.name == "late")
    assert late.started_ms >= 100
    assert late.met is True
    summary = run.summary
    assert summary.tasks == 13
    assert (summary.met, summary.missed) == (1, 0)
    assert 0 < summary.usage.device <= 1
    assert max(r.total_ms for r in rows) <= summary.makespan_ms


@pytest.mark.parametrize(("expected_s", "compiled"), [(1e-9, True), (1e3, False)])
def test_what_is_compiled_earns_its_time_back(
    expected_s: float, compiled: bool, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = mix(["lenet5", "residual"], 40, seed=3)
    run = QueueRun(fleet, tasks, "joint", inputs_of(fleet, tasks))
    planned = run.prepare()
    begun = {source: len(ways) for source, ways in fleet.ready.items()}
    own = QueueRun(fleet, tasks, "fifo", inputs_of(fleet, tasks)).prepare()
    assert {source: len(ways) for source, ways in fleet.ready.items()} == begun, "it begins with what fifo needs"
    assert planned.summary.makespan_ms <= own.summary.makespan_ms + 1e-6
    monkeypatch.setattr(Fleet, "expected_s", lambda self, source, option: expected_s)
    free = Free(shared=1.0)
    ready, turns = planned.menu.jobs(tasks), list(run._turns)
    worth = run._worth(planned.every, ready, turns, free)
    assert bool(worth) == compiled
    assert not any(fleet.is_ready(*way) for way in worth)
    run._wish(planned.every, ready, turns, free)
    assert sum(map(len, fleet.ready.values())) == sum(begun.values()) + len(worth)
    assert run._fresh.is_set() == compiled
    assert len(run.run()) == 40


def test_a_fleet_for_many_queues_has_all_compiled_before(fleet: Fleet) -> None:
    tasks = mix(["lenet5", "residual"], 40, seed=3)
    QueueRun(fleet, tasks, "joint", inputs_of(fleet, tasks)).prepare(ahead=True)
    wanted = predict(fleet, tasks, "joint")
    assert all(fleet.is_ready(*way) for way in wanted.options)


def test_a_deadline_that_cannot_be_kept_is_missed_and_answered(fleet: Fleet) -> None:
    tasks = [Task(name="a", model="lenet5", deadline_s=1e-6)]
    run = QueueRun(fleet, tasks, "edf", inputs_of(fleet, tasks))
    [row] = run.run()
    assert row.met is False
    assert run.summary.missed == 1


def test_what_arrives_is_not_held_up_by_finding_options_anew(
    fleet: Fleet, profiles: Mapping[str, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_device(fleet, profiles)
    found: list[float] = []
    frontier = Planner.frontier

    def counted(self: Planner, link: Link, most: int = 8) -> Sequence[Option]:
        found.append(link.up_mbps)
        return frontier(self, link, most)

    monkeypatch.setattr(Planner, "frontier", counted)
    link = Link(0.9 * FAST.up_mbps, FAST.down_mbps, 0.0)
    monkeypatch.setattr(QueueMonitor, "conditions", property(lambda self: Conditions(link=link)))
    tasks = [Task(name=f"{k}", model="lenet5", arrival_s=0.02 * k) for k in range(4)]
    run = QueueRun(fleet, tasks, "joint", inputs_of(fleet, tasks))
    run.prepare()
    found.clear()
    rows = run.run()
    assert found == [], "only before the start: the link is hardly another"
    assert [r.up_mbps for r in sorted(rows, key=lambda r: r.started_ms)][1:] == [0.9 * FAST.up_mbps] * 3


class Changing:
    """A monitor for which the link is another one after some answers."""

    def __init__(self, run: QueueRun, after: int, link: Link) -> None:
        self._real, self._run, self._after, self._link = run.monitor, run, after, link

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    @property
    def conditions(self) -> Conditions:
        return Conditions(link=self._link if len(self._run.rows) >= self._after else FAST)


def test_another_bandwidth_is_another_plan(
    fleet: Fleet, profiles: Mapping[str, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitpoint.tasks.queue_run._SETTLE_MS", 0.0)
    slow_device(fleet, profiles)
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.02 * k) for k in range(30)]
    run = QueueRun(fleet, tasks, "fifo", inputs_of(fleet, tasks))
    run.monitor = Changing(run, 3, Link(0.001, 0.001, 2.0))  # type: ignore[assignment]
    rows = sorted(run.run(), key=lambda r: r.started_ms)
    assert "server" in rows[0].option
    assert rows[-1].option == "all on the edge"
    assert run.replans >= 1
    assert rows[-1].up_mbps == 0.001


def test_a_server_that_ends_is_an_error_after_what_was_answered(
    server: Server, fleet: Fleet, profiles: Mapping[str, Profile]
) -> None:
    slow_device(fleet, profiles)
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.01 * k) for k in range(50)]
    run = QueueRun(fleet, tasks, "fifo", inputs_of(fleet, tasks))

    def on_answer(row: TaskResult, result: Result) -> None:
        if len(run.rows) == 3:
            threading.Thread(target=server.close).start()

    run.on_answer = on_answer
    with pytest.raises(ServerError):
        run.run()
    assert 3 <= len(run.rows) < 50
    assert run.summary.tasks == len(run.rows)


def test_a_profile_that_runs_contradict_is_corrected_before_the_start(
    fleet: Fleet, profiles: Mapping[str, Profile]
) -> None:
    told = profiles["lenet5"].slowed(200)
    fleet.know(("lenet5", ""), Survey(told, profiles["lenet5"].slowed(1e5), FAST))
    tasks = [Task(name=f"t{k}", model="lenet5") for k in range(3)]
    planned = QueueRun(fleet, tasks, "fifo", inputs_of(fleet, tasks)).prepare()
    device, server = (host.profile for host in fleet.planners["lenet5", ""].hosts)
    assert device.whole.median < told.whole.median / 5
    assert server.whole.median > told.whole.median, "no run said anything of the server"
    assert planned.summary.makespan_ms < 3 * told.whole.median / 5
    assert "200x" in fleet.note, "what is emulated stays labelled"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_answers_what_is_under_way(fleet: Fleet) -> None:
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.01 * k) for k in range(500)]
    run = QueueRun(fleet, tasks, "fifo", inputs_of(fleet, tasks))
    begun: list[int] = []
    serve = run._serve

    def counted(id: int, *more: object) -> None:
        begun.append(id)
        serve(id, *more)  # type: ignore[arg-type]

    run._serve = counted  # type: ignore[method-assign]
    run.on_answer = lambda row, result: _thread.interrupt_main() if len(run.rows) == 2 else None
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert 2 <= len(run.rows) == len(begun) < 500
    assert run.summary.tasks == len(run.rows)


def test_what_the_server_does_not_answer_is_finished_here(
    server: Server, models: Mapping[str, Model], profiles: Mapping[str, Profile], tmp_path: Path
) -> None:
    answers: dict[str, Result] = {}
    with Fleet(server.address, engine=open_engine(threads=1), cache=tmp_path, fallback="auto") as fleet:
        for name, model in models.items():
            fleet.add((name, ""), model)
        slow_device(fleet, profiles)
        tasks = [
            Task(name=f"t{k}", model=name, arrival_s=0.01 * k) for k, name in enumerate(["lenet5", "residual"] * 15)
        ]
        inputs = {t.name: samples_for(models[t.model], 1, k)[0] for k, t in enumerate(tasks)}
        run = QueueRun(fleet, tasks, "joint", inputs)

        def on_answer(row: TaskResult, result: Result) -> None:
            answers[row.task.name] = result
            if len(answers) == 3:
                threading.Thread(target=server.close).start()

        run.on_answer = on_answer
        run.run()
        assert run.summary.local > 0
    assert len(answers) == len(tasks)
    for task in tasks:
        for output, expected in whole(models[task.model], inputs[task.name]).items():
            np.testing.assert_allclose(answers[task.name].outputs[output], expected, rtol=1e-4, atol=1e-5)


def test_a_server_that_falls_silent_is_given_up_as_soon_as_an_answer_is_late(
    server: Server, models: Mapping[str, Model], profiles: Mapping[str, Profile], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("splitpoint.tasks.fleet._PATIENCE", msgspec.structs.replace(_PATIENCE, pong_s=0.1))
    monkeypatch.setattr("splitpoint.tasks.monitor.EVERY_S", 0.02)
    with (
        ThreadRelay(server.address, FAST) as relay,
        Fleet(relay.address, engine=open_engine(threads=1), cache=tmp_path, fallback="local") as fleet,
    ):
        for name, model in models.items():
            fleet.add((name, ""), model)
        slow_device(fleet, profiles)
        tasks = [Task(name=f"t{k}", model=name) for k, name in enumerate(["lenet5", "residual"] * 5)]
        inputs = {t.name: samples_for(models[t.model], 1, k)[0] for k, t in enumerate(tasks)}
        run = QueueRun(fleet, tasks, "fifo", inputs)
        run.prepare()
        relay.stall(3600)
        rows = run.run()
    assert len(rows) == len(tasks)
    assert all(row.fallback.startswith("the server is gone") for row in rows), "none waited until it was late"


def test_only_what_is_beyond_noise_contradicts_the_profiles() -> None:
    def slower(factors: Sequence[float], planned: float = 10.0, shared: float = 1.0) -> float:
        spent = [Spent(planned * f / 2, 9.0, planned * f / 2, 0.0, 0.0, 0.0, 0.0, planned) for f in factors]
        return _slower(spent, shared)

    assert slower([1.8, 2.2, 2.0, 1.9, 2.1, 2.0]) == pytest.approx(2.0)
    assert slower([2.0] * 5) == 1.0, "too few"
    assert slower([2.0] * 5 + [1.0] * 4) == 1.0, "some were as profiled"
    assert slower([2.0] * 9, planned=1.0) == 1.0, "too short to say anything"
    assert slower([2.0] * 9, shared=1.8) == 1.0, "while both computed"
    assert slower([1.1] * 9) == 1.0


def test_a_plan_is_predicted_without_running(fleet: Fleet) -> None:
    tasks = mix(["lenet5", "residual"], 10, seed=1)
    plans = {name: predict(fleet, tasks, name).summary for name in POLICIES}
    assert plans["joint"].makespan_ms <= plans["fifo"].makespan_ms + 1e-6
    assert 0 < plans["joint"].bound_ms <= plans["joint"].makespan_ms + 1e-6
    assert plans["fifo"].bound_ms == 0, "it does not say"
