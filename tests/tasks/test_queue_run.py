"""Queues: the schedule in virtual time against brute force, files with mistakes, and small runs on a real server."""

from __future__ import annotations

import _thread
import csv
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from random import Random
from time import sleep

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import interruptible, nothing_leaks  # noqa: F401  # a fixture is used by its name

import nets
from splitpoint.cli import main
from splitpoint.engines import Session, open_engine
from splitpoint.errors import InputError, ServerError, UsageError
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.survey import Survey
from splitpoint.tasks.choices import Pace
from splitpoint.tasks.files import load_tasks
from splitpoint.tasks.fleet import Fleet, inputs_of
from splitpoint.tasks.joint_search import _Search, bound, joint
from splitpoint.tasks.monitor import Monitor, _Ratios
from splitpoint.tasks.queue_run import Run, predict
from splitpoint.tasks.random_queue import mix
from splitpoint.tasks.schedule import (
    POLICIES,
    Batch,
    Free,
    Job,
    Policy,
    Stages,
    Turn,
    fifo,
    policy,
    rehearse,
    score,
    timeline,
)
from splitpoint.tasks.task import Summary, Task, TaskResult, Usage
from splitpoint.tasks.task_rows import said
from splitpoint.tasks.uplink_estimate import Carried, Uplink
from splitpoint.tasks.uplink_order import Lane

# --- the schedule in virtual time -------------------------------------------------------------------------------------


def test_device_link_and_server_work_at_the_same_time() -> None:
    split = Job((Stages(10, 20, 30, 1, 5),))
    here = Job((Stages(40),))
    first, second, third = timeline([split, split, here], [Turn(0), Turn(1), Turn(2)])
    assert first == (Turn(0), 0, 10, 30, 35, 35, 65, 71)
    # Its head while the first one is sent; the link when that is done; the server when that is done.
    assert second == (Turn(1), 10, 20, 50, 55, 65, 95, 101)
    assert (third.started, third.ended) == (20, 60), "what stays here waits for nothing but the device"
    assert score([split, split, here], [first, second, third]) == (0, 101, (71 + 101 + 60) / 3)


def test_requests_that_go_to_the_server_whole_follow_each_other_on_the_link() -> None:
    job = Job((Stages(0, 10, 1, 0, 2),))
    assert [s.ended for s in timeline([job] * 3, [Turn(0), Turn(1), Turn(2)])] == [15, 25, 35]
    busy = timeline([job], [Turn(0)], Free(device=3, up=50, server=70))
    assert busy[0].ended == 70 + 1 + 2


def test_what_waits_for_one_tail_is_run_as_one() -> None:
    split = Job((batched(Stages(10, 20, 30, 1, 5), 0.1),))
    other, here = Job((Stages(0, 1, 70, 0, 5),)), Job((Stages(40),))
    turns = [Turn(1), Turn(0), Turn(2), Turn(3)]
    slots = timeline([split, other, here, split], turns)
    first, _, third = (slots[k] for k in (1, 2, 3))
    assert (first.arrived, third.arrived) == (35, 85), "too late: the server began with the first at 76"
    assert (first.served, third.served) == (106, 136)
    slots = timeline([split, other, here, split], [Turn(1), Turn(0), Turn(3), Turn(2)])
    first, third = slots[1], slots[2]
    assert third.arrived == 55
    assert (first.served_from, third.served_from, first.served, third.served) == (76, 76, 109, 109)
    assert (first.ended, third.ended) == (115, 116), "one after the other on the way back"
    many = timeline([other, *[split] * 20], [Turn(k) for k in range(21)], Free(server=1000))
    assert [round(s.served_from) for s in many[1:]] == [1070] * 8 + [1121] * 8 + [1172] * 4, "eight at most"


def random_jobs(random: Random, count: int, ways: int = 3, share: float = 1.0, **more: float) -> list[Job]:
    kinds = []
    for _ in range(3):
        here = random.uniform(5, 100)
        split = [
            batched(
                Stages(
                    random.uniform(0, here), random.uniform(1, 80), random.uniform(1, 40), random.uniform(0, 3), 4.0
                ),
                share,
            )
            for _ in range(random.randint(0, ways - 1))
        ]
        kinds.append((Stages(here), *split))
    return [_individual(random.choice(kinds), **more) for _ in range(count)]


def _individual(ways: tuple[Stages, ...], **more: float) -> Job:
    return Job(ways, min(range(len(ways)), key=lambda w: ways[w].total), **more)  # type: ignore[arg-type]


def brute_force(jobs: list[Job]) -> float:
    """The least makespan of all orders and ways."""
    return min(
        max(s.ended for s in timeline(jobs, [Turn(k, ways[k]) for k in order]))
        for ways in product(*(range(len(j.ways)) for j in jobs))
        for order in permutations(range(len(jobs)))
    )


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_joint_is_near_the_best_of_all_orders_and_ways(share: float) -> None:
    random, gaps = Random(5), []
    for _ in range(15):
        jobs = random_jobs(random, 4, share=share)
        slots, told = rehearse(jobs, joint)
        best, found = brute_force(jobs), score(jobs, slots).makespan
        assert told <= best + 1e-6, "the bound is one"
        assert found >= best - 1e-9
        gaps.append(found / best - 1)
    assert max(gaps) < 0.10
    assert float(np.mean(gaps)) < 0.01


def test_the_bound_is_reached_where_it_can_be() -> None:
    jobs = [Job((Stages(10.0),))] * 5
    assert bound([jobs[0].ways], [5], Free())[0] == pytest.approx(50)
    jobs = [Job((Stages(0, 10, 1, 0, 2),))] * 3
    assert bound([jobs[0].ways], [3], Free())[0] == pytest.approx(35, rel=1e-5)


def batched(one: Stages, share: float) -> Stages:
    """`one`, of which the server can run several as one: each further one takes that share. 1: alone."""
    return one._replace(more=share * one.server, tail=str(one)) if share < 1 else one


remote = st.builds(
    Stages, *(st.floats(0, 100) for _ in range(4)), trip=st.floats(0, 20), remote=st.just(True), more=st.just(0.0),
    tail=st.just(""),
)  # fmt: skip
stages = st.builds(batched, remote, st.sampled_from([0.0, 0.3, 1.0]))
ways = st.tuples(st.floats(0.1, 100).map(lambda ms: Stages(ms)), st.lists(stages, max_size=3)).map(
    lambda found: (found[0], *found[1])
)
jobs_of = st.lists(
    st.builds(
        lambda w, due, priority: _individual(w, due=due, priority=priority),
        ways, st.sampled_from([float("inf"), 50.0, 150.0]), st.sampled_from([0, 0, 1]),
    ),
    min_size=1, max_size=9,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(jobs_of)
def test_joint_is_never_worse_than_individual_plans(jobs: list[Job]) -> None:
    one, other = (score(jobs, rehearse(jobs, p)[0]) for p in (joint, fifo))
    assert (one.missed, one.makespan) <= (other.missed, other.makespan + 1e-6)


@settings(max_examples=30, deadline=None)
@given(jobs_of, st.integers(0, 1000))
def test_neighbours_are_priced_as_the_timeline_says(jobs: list[Job], seed: int) -> None:
    random = np.random.default_rng(seed)
    tail = random.choice([s.tail for j in jobs for s in j.ways])
    free = Free(3.0, 20.0, 30.0, 5.0, Batch(str(tail), 25.0, 2, 4.0))
    search = _Search(jobs, free)
    orders = np.array([random.permutation(len(jobs)) for _ in range(4)])
    chosen = np.array([[random.integers(len(j.ways)) for j in jobs] for _ in range(4)])
    first, mean = search._priced(chosen, orders)
    for row in range(4):
        turns = [Turn(int(k), int(chosen[row][k])) for k in orders[row]]
        expected = score(jobs, timeline(jobs, turns, free))
        assert first[row] == pytest.approx(expected.missed * 1e9 + expected.makespan)
        assert mean[row] == pytest.approx(expected.mean)


def test_joint_plans_a_large_queue_and_says_how_good_it_is() -> None:
    random = Random(1)
    jobs = random_jobs(random, 300, ways=4)
    slots, told = rehearse(jobs, joint)
    found = score(jobs, slots).makespan
    assert sorted(s.turn.job for s in slots) == list(range(300))
    assert told <= found <= 1.05 * told


def test_joint_takes_a_deadline_for_more_than_the_makespan() -> None:
    slow, quick = Stages(100), Stages(10)
    jobs = [Job((slow,)), Job((quick,), due=20)]
    assert [s.turn.job for s in rehearse(jobs, joint)[0]] == [1, 0]
    assert [s.turn.job for s in rehearse(jobs, fifo)[0]] == [0, 1]


def test_a_model_is_served_in_few_ways() -> None:
    """Each is a head and a tail in memory."""
    random = Random(3)
    ways = tuple(Stages(10.0 * k, 70.0 - 8 * k, 60.0 - 7 * k, 0, 1) for k in range(8))
    jobs = [_individual(ways) for _ in range(30)] + random_jobs(random, 10)
    slots, _ = rehearse(jobs, joint)
    assert len({s.turn.way for s in slots if jobs[s.turn.job].ways is ways}) <= 3


def orders_of(p: Policy, jobs: list[Job]) -> list[int]:
    return [s.turn.job for s in rehearse(jobs, p)[0]]


def test_policies_order_the_queue() -> None:
    jobs = [
        Job((Stages(30),)),
        Job((Stages(20), Stages(5)), usual=1, due=100),
        Job((Stages(10),), due=50),
        Job((Stages(40),), priority=1),
    ]
    assert orders_of(POLICIES["fifo"], jobs) == [3, 0, 1, 2]
    assert orders_of(POLICIES["edf"], jobs) == [3, 2, 1, 0]
    assert orders_of(POLICIES["sjf"], jobs) == [3, 1, 2, 0]
    assert orders_of(POLICIES["joint"], jobs)[0] == 3
    with pytest.raises(UsageError, match="did you mean fifo"):
        policy("fifos")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_knows_only_what_has_arrived(name: str) -> None:
    long, short = (Stages(100),), (Stages(1),)
    jobs = [Job(long), Job(long), Job(short, release=10, priority=5), Job(short, release=900)]
    slots = {s.turn.job: s for s in rehearse(jobs, policy(name))[0]}
    assert slots[2].started == 100, "it came while one ran, and goes before the other"
    assert slots[3].started == 900
    assert score(jobs, list(slots.values())).makespan == 901


# --- mixes and files --------------------------------------------------------------------------------------------------


def test_a_mix_is_the_same_for_the_same_seed() -> None:
    models = ["alexnet", "vgg16_bn", "lenet", "mobilenet_v2"]
    assert mix(models, 40, 1) == mix(models, 40, 1)
    assert [t.model for t in mix(models, 40, 1)] != [t.model for t in mix(models, 40, 2)]
    assert len({t.name for t in mix(models, 40, 1)}) == 40
    assert {t.model for t in mix(models, 40, 1)} == set(models)
    for bad in (lambda: mix([""], 1), lambda: mix(models, 0), lambda: mix([], 3)):
        with pytest.raises(UsageError):
            bad()


FILE = """\
# two of one, one of the other
[[tasks]]
model = "lenet5"
count = 2
deadline = "200ms"

[[tasks]]
model = "mobilenet_v2"
weights = "random:3"
priority = 2
arrival = "1.5s"
"""


def test_a_file_has_tasks(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(FILE)
    assert load_tasks(path) == [
        Task(name="lenet5-1", model="lenet5", deadline_s=0.2),
        Task(name="lenet5-2", model="lenet5", deadline_s=0.2),
        Task(name="mobilenet_v2-1", model="mobilenet_v2", weights="random:3", priority=2, arrival_s=1.5),
    ]


WRONG = '''\
title = "x"
[[tasks]]
modle = "lenet5"
[[tasks]]
model = "lenet6"
deadline = "0ms"
note = """
[[tasks]]
count = 5
"""
[[tasks]]
model = "lenet6"
arrival = "-1s"
count = 0
priority = "high"
input = "nowhere.png"
[[tasks]]
model = "resnet"
deadline = 200
[[tasks]]
model = "lenet7"
'''


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(WRONG)
    with pytest.raises(InputError) as told:
        load_tasks(path, lambda entry: "" if entry.source[0] == "resnet" else f"no model is called {entry.source[0]}")
    lines = str(told.value).splitlines()
    assert lines[0] == f"{path} has 13 mistakes:"
    found = {int(line.split(":")[0].removeprefix("  line ")): line for line in lines[1:]}
    assert sorted(int(line.split(":")[0].removeprefix("  line ")) for line in lines[1:]) == [
        1, 2, 3, 5, 6, 7, 12, 13, 14, 15, 16, 19, 21,
    ]  # fmt: skip
    assert "unknown field title" in found[1]
    assert "a task needs a model" in found[2]
    assert "did you mean model?" in found[3]
    assert "deadline must be a time" in found[6]
    assert "above zero" in found[6]
    assert "unknown field note" in found[7]
    assert '"200ms"' in found[13]
    assert '"200ms"' in found[19]
    assert "no model is called lenet6" in found[5], "though its deadline is wrong, too"
    assert "no model is called lenet7" in found[21]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[tasks]\n", "is not TOML.*line 1"),
        ("", "there is no"),
        ("tasks = 3", "written as tables"),
        ("tasks = [{model = 3}]", "line 1: model must be a text"),
        ('[[tasks]]\nmodel="a"\ndeadline="-1s"', "line 3: deadline must be a time"),
        ('[[tasks]]\nmodel="a"\ndeadline="nan"', "line 3: deadline must be a time"),
        ('[[tasks]]\nmodel="a"\ncount=99999999', "line 3: count must be"),
    ],
)
def test_broken_files_are_mistakes(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_tasks(path)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_tasks(tmp_path / "tasks.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_tasks(tmp_path / "b.toml")


@pytest.mark.parametrize("field", ["arrival_s", "deadline_s"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_task_has_times_that_can_be(field: str, seconds: float) -> None:
    with pytest.raises(UsageError):
        Task(name="a", model="b", **{field: seconds})


# --- the link, as many requests show it -------------------------------------------------------------------------------


def test_requests_of_one_connection_tell_one_by_one() -> None:
    seen = Uplink()
    for id in range(3):
        seen.sent(id, "a", 0.0)
    assert seen.answered(0, 0.02, 1.0, 1000) == (0.02, [Carried(1.0, 1000, 0.98)])
    # Handed over with the first one, but the link was busy until 1.0.
    start, told = seen.answered(1, 0.02, 1.5, 500)
    assert start == 1.0
    assert told == [Carried(1.5, 500, 0.5)]
    assert seen.busy_s == pytest.approx(1.48)


def test_connections_that_share_the_link_tell_together() -> None:
    seen = Uplink()
    seen.sent(1, "a", 0.0)
    seen.sent(2, "b", 0.1)
    seen.sent(3, "b", 5.0)
    assert seen.answered(1, 0.0, 2.0, 1000)[1] == [], "b may have had half of it"
    assert seen.answered(2, 0.1, 2.0, 1000)[1] == [Carried(2.0, 2000, 2.0)], "what begins later does not matter"
    assert seen.dropped(3) == []


def test_uploads_leave_in_their_order_one_after_the_other() -> None:
    now, order, mbit_s = [0.0], list[tuple[int, float]](), [8.0]
    lane = Lane(lambda nbytes: nbytes * 8e-6 / mbit_s[0], lambda: now[0])
    tickets = [lane.ticket() for _ in range(5)]
    lane.enter(tickets[0], "a", 100_000)
    lane.enter(tickets[1], "a", 100_000)  # the same connection: behind it in any case

    def enter(k: int, connection: str) -> threading.Thread:
        def run() -> None:
            lane.enter(tickets[k], connection, 50_000)
            order.append((k, now[0]))

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    fourth = enter(3, "b")
    lane.leave(tickets[2])  # failed before it was to be sent
    now[0] = 0.185
    fourth.join(0.1)
    assert fourth.is_alive(), "the link is taken until 0.2, but for the last tenth of that upload"
    now[0] = 0.195
    fourth.join(5)
    fifth = enter(4, "a")
    now[0] = 0.2
    fifth.join(0.1)
    assert fifth.is_alive(), "the link is taken until 0.245"
    mbit_s[0] = 800.0  # the link is another one than it was taken for: everything has long left
    fifth.join(5)
    assert order == [(3, 0.195), (4, 0.2)]


# --- on a real server -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def soon_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are sent together before the start only once."""
    monkeypatch.setattr("splitpoint.tasks.batch_trial.BUDGET_S", 0.02)


#: As fast as this, a slow device sends everything.
FAST = Link(1e5, 1e5, 0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    folder = tmp_path_factory.mktemp("nets")
    nets.saved(nets.residual(), folder / "residual.onnx")
    return {"lenet5": load("zoo:lenet5"), "residual": load(folder / "residual.onnx")}


@pytest.fixture
def server(models: Mapping[str, Model]) -> Iterator[Server]:
    with nothing_leaks(), Server(list(models.values()), engine=open_engine(threads=1), port=0) as made:
        yield made


@pytest.fixture(scope="module")
def profiles(models: Mapping[str, Model]) -> Mapping[str, Profile]:
    return {name: profile_model(model, open_engine(threads=1), budget_s=0.3) for name, model in models.items()}


@pytest.fixture
def fleet(server: Server, profiles: Mapping[str, Profile], tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.address, engine=open_engine(threads=1), cache=tmp_path) as made:
        for name, profile in profiles.items():
            made.add((name, ""), name)
            made.know((name, ""), Survey(profile, profile, FAST))
        yield made


def slow_device(fleet: Fleet, profiles: Mapping[str, Profile]) -> None:
    """So slow that a fast link is always taken."""
    for name, profile in profiles.items():
        fleet.know((name, ""), Survey(profile.slowed(500), profile, FAST))


def whole(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = nets.ENGINE.compile(model.whole())
    try:
        return session.run(inputs)
    finally:
        session.close()


@pytest.mark.parametrize("name", POLICIES)
def test_every_answer_is_the_whole_models(name: str, fleet: Fleet, models: Mapping[str, Model]) -> None:
    tasks = mix(["lenet5", "residual"], 12, seed=3)
    tasks += [Task(name="late", model="lenet5", arrival_s=0.1, deadline_s=60)]
    inputs = {t.name: samples_for(models[t.model], 1, k)[0] for k, t in enumerate(tasks)}
    answers: dict[str, Result] = {}
    run = Run(fleet, tasks, name, inputs)
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


def test_the_bound_is_compared_with_what_it_came_to() -> None:
    common = {"policy": "joint", "tasks": 6, "link": FAST, "mean_ms": 9.0, "p95_ms": 20.0, "usage": Usage(0.2, 0, 0)}
    summary = Summary(**common, makespan_ms=435.0, met=0, missed=0, predicted_ms=315.0, bound_ms=300.0)
    (line,) = [line for line in said(summary) if "no order" in line]
    assert line == "no cuts and no order are predicted to take less than 300 ms: this is within 45.0%"


def test_a_deadline_that_cannot_be_kept_is_missed_and_answered(fleet: Fleet) -> None:
    tasks = [Task(name="a", model="lenet5", deadline_s=1e-6)]
    run = Run(fleet, tasks, "edf", inputs_of(fleet, tasks))
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
    monkeypatch.setattr(Monitor, "pace", property(lambda self: Pace(Link(0.9 * FAST.up_mbps, FAST.down_mbps, 0.0))))
    tasks = [Task(name=f"{k}", model="lenet5", arrival_s=0.02 * k) for k in range(4)]
    run = Run(fleet, tasks, "joint", inputs_of(fleet, tasks))
    run.prepare()
    found.clear()
    rows = run.run()
    assert found == [], "only before the start: the link is hardly another"
    assert [r.up_mbps for r in sorted(rows, key=lambda r: r.started_ms)][1:] == [0.9 * FAST.up_mbps] * 3


def test_what_gains_by_running_together_is_known_before_the_start(
    models: Mapping[str, Model], profiles: Mapping[str, Profile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitpoint.tasks.batch_trial.BUDGET_S", 0.5)
    engine = open_engine(threads=1)
    compiled, told, answers = engine.compile, list[str](), dict[str, Result]()

    def compile_slow(segment: Segment) -> Session:
        """A run takes 50 ms more, however many requests it has."""
        session = compiled(segment)
        run = session.run
        session.run = lambda given: (sleep(0.05), run(given))[1]  # type: ignore[method-assign]
        return session

    engine.compile = compile_slow  # type: ignore[method-assign]
    tasks = [Task(name=f"t{k}", model="lenet5") for k in range(9)]
    inputs = {t.name: samples_for(models["lenet5"], 1, k)[0] for k, t in enumerate(tasks)}
    with (
        Server([models["lenet5"]], engine=engine, port=0, on_event=lambda e: told.append(e.kind)) as server,
        Fleet(server.address, engine=Stretched(open_engine(threads=1), 1000), cache=tmp_path) as fleet,
    ):
        fleet.add(("lenet5", ""), "lenet5")
        known = profiles["lenet5"]
        fleet.know(("lenet5", ""), Survey(known.slowed(1000), known.slowed(50 / known.whole.median), FAST))
        run = Run(fleet, tasks, "fifo", inputs)
        planned = run.prepare()
        assert "batched" in told, "the server has found out that it may"
        found = fleet.shares["lenet5", ""]
        assert found, "nine requests at once cost what one costs"
        assert all(option.kind != "device" and share < 0.8 for option, share in found)
        run.on_answer = lambda row, result: answers.update({row.task.name: result})
        run.run()
        fleet.shares.clear()
        assert predict(fleet, tasks, "fifo").summary.makespan_ms > planned.summary.makespan_ms, "it counted on that"
    for task in tasks:
        for output, expected in whole(models["lenet5"], inputs[task.name]).items():
            np.testing.assert_allclose(answers[task.name].outputs[output], expected, rtol=1e-4, atol=1e-5)


def test_those_that_ran_as_one_say_nothing_of_the_servers_speed() -> None:
    seen = _Ratios()
    for run, ratio in ((1.0, 0.2), (1.0, 0.2), (1.0, 0.2), (2.0, 3.0), (3.0, 2.0)):
        seen.add(run, ratio)
    assert seen.middle == 1.0, "two are too few"
    seen.add(4.0, 5.0)
    assert seen.middle == 3.0


class Changing:
    """A monitor for which the link is another one after some answers."""

    def __init__(self, run: Run, after: int, link: Link) -> None:
        self._real, self._run, self._after, self._link = run.monitor, run, after, link

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    @property
    def pace(self) -> Pace:
        return Pace(self._link if len(self._run.rows) >= self._after else FAST)


def test_another_bandwidth_is_another_plan(
    fleet: Fleet, profiles: Mapping[str, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitpoint.tasks.queue_run._SETTLE_MS", 0.0)
    slow_device(fleet, profiles)
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.02 * k) for k in range(30)]
    run = Run(fleet, tasks, "fifo", inputs_of(fleet, tasks))
    run.monitor = Changing(run, 3, Link(0.001, 0.001, 2.0))  # type: ignore[assignment]
    rows = sorted(run.run(), key=lambda r: r.started_ms)
    assert "server" in rows[0].option
    assert rows[-1].option == "all on the device"
    assert run.replans >= 1
    assert rows[-1].up_mbps == 0.001


def test_a_server_that_ends_is_an_error_after_what_was_answered(
    server: Server, fleet: Fleet, profiles: Mapping[str, Profile]
) -> None:
    slow_device(fleet, profiles)
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.01 * k) for k in range(50)]
    run = Run(fleet, tasks, "fifo", inputs_of(fleet, tasks))

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
    planned = Run(fleet, tasks, "fifo", inputs_of(fleet, tasks)).prepare()
    device, server = (host.profile for host in fleet.planners["lenet5", ""].hosts)
    assert device.whole.median < told.whole.median / 5
    assert server.whole.median > told.whole.median, "no run said anything of the server"
    assert planned.summary.makespan_ms < 3 * told.whole.median / 5
    assert "200x" in fleet.note, "what is emulated stays labelled"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_answers_what_is_under_way(fleet: Fleet) -> None:
    tasks = [Task(name=f"t{k}", model="lenet5", arrival_s=0.01 * k) for k in range(500)]
    run = Run(fleet, tasks, "fifo", inputs_of(fleet, tasks))
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
        run = Run(fleet, tasks, "joint", inputs)

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


def test_a_plan_is_predicted_without_running(fleet: Fleet) -> None:
    tasks = mix(["lenet5", "residual"], 10, seed=1)
    plans = {name: predict(fleet, tasks, name).summary for name in POLICIES}
    assert plans["joint"].makespan_ms <= plans["fifo"].makespan_ms + 1e-6
    assert 0 < plans["joint"].bound_ms <= plans["joint"].makespan_ms + 1e-6
    assert plans["fifo"].bound_ms == 0, "it does not say"


# --- the command ------------------------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    assert main(["tasks", *map(str, args)]) == status
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--cloud HOST" in fails(capsys, 2, "--mix", "lenet5")
    assert "a file of tasks" in fails(capsys, 2, "--cloud", "localhost")
    assert "a file of tasks" in fails(capsys, 2, "x.toml", "--mix", "lenet5", "--cloud", "localhost")
    assert "from 1 to" in fails(capsys, 2, "--mix", "lenet5", "--count", 0, "--cloud", "127.0.0.1:1")
    assert "policy" in fails(capsys, 2, "--mix", "lenet5", "--policy", "lifo", "--cloud", "127.0.0.1:1")
    wrong = tmp_path / "tasks.toml"
    wrong.write_text('[[tasks]]\nmodel = "lenet5"\n[[tasks]]\nmodel = "a"\ndeadlne = "1s"\n')
    assert "line 5: unknown field deadlne" in fails(capsys, 4, wrong, "--cloud", "127.0.0.1:1"), "without a server, too"


def test_the_command_names_all_models_that_are_not_there(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = fails(capsys, 3, "--mix", "lenet6,resnet,lenet5", "--cloud", server.address, "--cache", tmp_path)
    assert "lenet6" in text
    assert "resnet" in text
    file = tmp_path / "tasks.toml"
    entries = ('model = "lenet6"', 'model = "lenet5"\npriority = 1.5', 'model = "x"\ncount = 0')
    file.write_text("".join(f"[[tasks]]\n{entry}\n" for entry in entries))
    text = fails(capsys, 4, file, "--cloud", server.address, "--cache", tmp_path)
    assert "has 4 mistakes" in text
    for line, hint in ((2, "did you mean lenet5"), (5, "whole number"), (7, "no model x"), (8, "whole number")):
        assert any(f"line {line}:" in row and hint in row for row in text.splitlines())


def test_the_command_runs_a_file(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, rows = tmp_path / "tasks.toml", tmp_path / "rows.csv"
    file.write_text(
        '[[tasks]]\nmodel = "lenet5"\ncount = 3\ndeadline = "1min"\n[[tasks]]\nmodel = "residual"\npriority = 1\n'
    )
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--budget", "300ms", "--threads", "1"]
    assert main(["tasks", str(file), *common, "--csv", str(rows)]) == 0
    text = capsys.readouterr().out
    assert "4 tasks by joint in" in text
    assert "deadlines: 3 met, 0 missed" in text
    assert "busy: device" in text
    written = list(csv.DictReader(rows.read_text().splitlines()))
    assert sorted(r["task"] for r in written) == ["lenet5-1", "lenet5-2", "lenet5-3", "residual-1"]
    assert all(float(r["total_ms"]) > 0 and r["answer"] for r in written)
    assert main(["tasks", str(file), *common, "--json", "--policy", "sjf"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["policy"] == "sjf"
    assert len(found["tasks"]) == 4
    assert main(["tasks", str(file), *common, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "predicted: 4 tasks by joint" in text
    assert "by policy: fifo" in text


def test_a_model_with_weights_must_be_the_servers(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, models: Mapping[str, Model]
) -> None:
    other = nets.saved(nets.residual(), tmp_path / "other.onnx")
    file = tmp_path / "tasks.toml"
    file.write_text('[[tasks]]\nmodel = "other.onnx"\n')
    common = ["--cloud", server.address, "--cache", str(tmp_path), "--budget", "300ms", "--threads", "1"]
    assert main(["tasks", str(file), *common]) == 0, "the same model under another name: its fingerprint counts"
    capsys.readouterr()
    nets.saved(nets.flattening(), other)
    assert "line 2: the server does not have this other" in fails(capsys, 4, file, *common)
    file.write_text('[[tasks]]\nmodel = "other.onnx"\nweights = "w.pth"\n')
    assert "line 2:" in fails(capsys, 4, file, *common)
