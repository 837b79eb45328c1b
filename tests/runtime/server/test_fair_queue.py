"""Whose turn it is, and what may run together: in virtual time, and once with real sockets and a real engine."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper
from serving import Gate, affine, evaluate, nothing_leaks, until

import nets
from splitpoint import wire
from splitpoint.cli.serve import command
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, EngineError, UsageError
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.batching import Gain, alike, batchable, run_stacked, stackable, tried
from splitpoint.runtime.server.fair_queue import Client, FairQueue, Gauge, RecentWait, WaitingJob
from splitpoint.runtime.server.server import Server
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.tensors import Array, TensorSpec
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import PIPELINED, Kind, Limits


def nothing(_waited: float) -> None:
    """A job that nobody runs."""


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values))


# --- whose turn it is -----------------------------------------------------------------------------------------------


class World:
    """A queue, workers and clients that keep `window` requests waiting or running, in virtual time."""

    def __init__(
        self, costs: Sequence[Callable[[], float]], windows: Sequence[int], workers: int = 1, *, fair: bool = True
    ) -> None:
        self.queue = FairQueue(10_000)
        # One client's requests keep their order: with one for all, it is first come, first served.
        self.clients = [Client() for _ in costs] if fair else [Client()] * len(costs)
        self.costs, self.workers = costs, workers
        self.served_s = [0.0] * len(costs)
        self.answers = [0] * len(costs)
        self.running: list[tuple[float, int, WaitingJob, float]] = []
        self.now = 0.0
        for k, window in enumerate(windows):
            for _ in range(window):
                self.ask(k)

    def ask(self, k: int) -> None:
        assert self.queue.push(self.now, WaitingJob(self.clients[k], nothing, what=k))

    def run(self, until_s: float) -> None:
        while self.now < until_s:
            while len(self.running) < self.workers and self.queue.waiting:
                job = self.queue.take(self.now)
                k = cast(int, job.what)
                cost = self.costs[k]()
                self.running.append((self.now + cost, k, job, cost))
            self.running.sort(key=lambda r: r[0])
            self.now, k, job, cost = self.running.pop(0)
            self.queue.end(job.client, cost, job.charged_s)
            self.served_s[k] += cost
            self.answers[k] += 1
            self.ask(k)


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_demands_get_equal_time_whatever_the_windows(workers: int) -> None:
    world = World([lambda: 0.01] * 8, [1 + workers, 2 + workers, 60, 8, 16, 5, 5, 30], workers)
    world.run(40.0)
    assert jain(world.served_s) > 0.999
    assert jain(world.answers) > 0.999


def test_a_first_come_first_served_queue_would_not_have_been_fair() -> None:
    """What the test above is worth: the same world, served in order of arrival."""
    world = World([lambda: 0.01] * 8, [1, 2, 60, 8, 16, 5, 5, 30], fair=False)
    world.run(40.0)
    assert jain(world.served_s) < 0.5


def test_heavy_tails_get_no_more_time_than_light_ones() -> None:
    rng = np.random.default_rng(0)
    costs = [lambda: 0.05, lambda: 0.002, lambda: float(rng.exponential(0.01)), lambda: 0.02]
    world = World(costs, [8] * 4)
    world.run(60.0)
    assert jain(world.served_s) > 0.999
    assert world.answers[1] > 20 * world.answers[0]


def test_one_large_request_at_a_time_is_charged_too() -> None:
    """The account outlives an empty queue: with one request under way the queue is empty each time it is served."""
    world = World([lambda: 0.05, lambda: 0.005], [1, 20])
    asked = world.ask
    late: list[int] = []
    world.ask = lambda k: late.append(k) if k == 0 else asked(k)  # type: ignore[method-assign]

    def step() -> None:  # the first client asks again one light job later
        world.run(world.now + 1e-9)
        while late:
            late.pop()
            asked(0)

    while world.now < 30.0:
        step()
    assert world.served_s[0] / world.served_s[1] == pytest.approx(1.0, rel=0.1)


def test_who_was_away_does_not_save_up_and_who_comes_is_served_soon() -> None:
    world = World([lambda: 0.01] * 3, [20, 20, 0])
    world.run(10.0)
    for _ in range(50):
        world.ask(2)
    before = list(world.answers)
    world.run(10.9)
    late = [b - a for a, b in zip(before, world.answers, strict=True)]
    assert max(late) - min(late) <= 8, (
        "but for the slack of a few jobs, a third each, not all for the one that had nothing for ten seconds"
    )


def test_a_client_s_own_requests_stay_in_order() -> None:
    queue, a, b = FairQueue(100), Client(), Client()
    for k in range(10):
        queue.push(k * 1.0, WaitingJob(a, nothing, what=("a", k)))
        queue.push(k * 1.0, WaitingJob(b, nothing, what=("b", k)))
    taken = []
    for k in range(20):
        job = queue.take(20.0)
        queue.end(job.client, 0.1 * (k % 3), job.charged_s)
        taken.append(job.what)
    assert [w for w in taken if w[0] == "a"] == [("a", k) for k in range(10)]
    assert [w for w in taken if w[0] == "b"] == [("b", k) for k in range(10)]


def test_among_equals_who_came_first_is_first() -> None:
    queue = FairQueue(100)
    clients = [Client() for _ in range(5)]
    for k in (3, 1, 4, 0, 2):
        queue.push(float(k), WaitingJob(clients[k], nothing, what=k))
    assert [queue.take(9.0).what for _ in range(5)] == [0, 1, 2, 3, 4]


def test_an_idle_server_makes_all_accounts_even() -> None:
    queue, a, b = FairQueue(100), Client(), Client()
    queue.begin(a)
    queue.end(a, 10.0)
    queue.rest()
    queue.push(20.0, WaitingJob(a, nothing, what="a"))
    queue.push(21.0, WaitingJob(b, nothing, what="b"))
    assert [queue.take(22.0).what for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("costs", "load"), [([0.01], 0.7), ([0.001, 0.005, 0.01, 0.015], 0.7), ([0.01], 0.9)]
)  # fmt: skip
def test_fairness_costs_little_of_the_longest_waits(costs: Sequence[float], load: float) -> None:
    """32 clients with Poisson arrivals, against the same arrivals first come first served."""
    rng = np.random.default_rng(1)
    each = [costs[k % len(costs)] for k in range(32)]
    arrivals = np.cumsum(rng.exponential(float(np.mean(each)) / load, 20_000))
    who = rng.integers(0, 32, len(arrivals))
    queue, clients = FairQueue(10_000), [Client() for _ in each]
    free_s, fair, plain = 0.0, [], []
    for due_s, k in zip(arrivals, who, strict=True):
        free_s = max(free_s, due_s) + each[k]
        plain.append(free_s - due_s)
    now, given = 0.0, 0
    while given < len(arrivals) or queue.waiting:
        if not queue.waiting:
            queue.rest()
            now = max(now, float(arrivals[given]))
        while given < len(arrivals) and arrivals[given] <= now:
            k = int(who[given])
            queue.push(float(arrivals[given]), WaitingJob(clients[k], nothing, what=k))
            given += 1
        job = queue.take(now)
        now += each[cast(int, job.what)]
        queue.end(job.client, each[cast(int, job.what)], job.charged_s)
        fair.append(now - job.queued_s)
    assert np.mean(fair) < 1.05 * np.mean(plain)
    assert np.percentile(fair, 99) < 1.2 * np.percentile(plain, 99)


def test_no_client_can_fill_the_queue_for_all() -> None:
    queue, flood, others = FairQueue(64), Client(), [Client() for _ in range(3)]
    assert sum(queue.push(0.0, WaitingJob(flood, nothing)) for _ in range(1000)) == 32
    counts = [sum(queue.push(0.0, WaitingJob(other, nothing)) for _ in range(1000)) for other in others]
    assert counts == [16, 8, 4]
    assert queue.room(Client())
    assert [queue.push(0.0, WaitingJob(Client(), nothing)) for _ in range(5)] == [True] * 4 + [False]
    assert queue.waiting == 64


def test_retry_after_is_from_the_client_s_own_backlog_and_about_right() -> None:
    for light_alone in (True, False):
        world = World([lambda: 0.01, lambda: 0.01], [0, 0])
        world.queue.limit = 64
        light, heavy = world.clients
        while world.queue.room(heavy):
            world.ask(1)
        if not light_alone:
            while world.queue.room(light):
                world.ask(0)
        asked = heavy if light_alone else light
        world.ask = lambda k: None  # type: ignore[method-assign]
        for _ in range(4):
            world.run(world.now + 1e-9)
        own = len(asked.jobs)
        retry_s = world.queue.retry_after_s(asked, 1)
        world.run(world.now + retry_s)
        assert world.queue.room(asked)
        done = own - len(asked.jobs)
        assert own // 4 - 1 <= done <= own // 4 + 2, "not much later than it said either"


def test_one_without_a_backlog_is_not_told_to_wait_for_the_flood() -> None:
    queue, flood = FairQueue(100), Client()
    flood.mean_s = queue._mean_s = 0.1
    for _ in range(50):
        queue.push(0.0, WaitingJob(flood, nothing))
    assert queue.retry_after_s(flood, 1) == pytest.approx(1.2)
    assert queue.retry_after_s(flood, 4) == pytest.approx(0.3)


def test_the_jobs_of_one_that_left_are_not_run() -> None:
    queue, a, b = FairQueue(10), Client(), Client()
    for client in (a, b, a):
        queue.push(0.0, WaitingJob(client, nothing))
    assert len(queue.drop(a)) == 2
    assert queue.waiting == 1
    assert queue.take(0.0).client is b
    assert queue.drop(a) == []


def test_what_clients_are_told_of_the_load() -> None:
    gauge = Gauge(2, 0.0)
    assert gauge.at(100.0) == 0.0
    gauge.change(100.0, 1)
    assert gauge.at(110.0) == pytest.approx(0.5, abs=1e-3)
    gauge.change(110.0, 1)
    assert gauge.at(120.0) == pytest.approx(1.0, abs=1e-3)
    gauge.change(120.0, -2)
    assert gauge.at(120.7) == pytest.approx(0.5, abs=0.01), "it fades while nobody asks, too"
    for k in range(1000):  # three quarters of the time one of two
        gauge.change(130.0 + k * 0.02, 1)
        gauge.change(130.0 + k * 0.02 + 0.015, -1)
    assert gauge.at(150.0) == pytest.approx(0.375, abs=0.01)

    light, heavy = RecentWait(), RecentWait()
    for k in range(100):
        light.add(k * 0.1, 0.005)
        heavy.add(k * 0.1, 2.0)
    assert light.queue_s == pytest.approx(0.005)
    assert heavy.queue_s == pytest.approx(2.0)
    heavy.add(30.0, 0.0)  # after a quiet time what was before it says nothing
    assert heavy.queue_s == pytest.approx(0.0, abs=1e-6)


# --- what may run together ------------------------------------------------------------------------------------------


class Key:
    """Jobs of one kind; `most` of them run as one."""

    def __init__(self, most: int) -> None:
        self.most = most

    def size(self, waiting: int) -> int:
        return min(self.most, waiting)

    def wanted(self) -> int:
        return self.most


def test_jobs_of_one_key_are_taken_together_and_others_are_not_passed_by_their_own_client() -> None:
    queue, key, other = FairQueue(100), Key(8), Key(8)
    a, b, c = (Client() for _ in range(3))
    for client, k, name in ((a, key, "a0"), (b, other, "b0"), (b, key, "b1"), (c, key, "c0"), (a, key, "a1")):
        queue.push(0.0, WaitingJob(client, nothing, k, name))
    first = queue.take(0.0)
    assert first.what == "a0"
    assert queue.count_like(key, 99) == 2
    assert [j.what for j in queue.take_like(0.0, key, 99)] == ["a1", "c0"], "b1 waits behind b0"
    assert [queue.take(0.0).what for _ in range(2)] == ["b0", "b1"]


def test_the_pool_runs_what_waits_together_and_charges_each_its_share() -> None:
    key, ran, done, gate = Key(3), [], threading.Semaphore(0), threading.Event()

    def together(jobs: Sequence[WaitingJob]) -> None:
        ran.append([j.what for j in jobs])
        time.sleep(0.03)
        done.release()

    def alone(_: float) -> None:
        ran.append("alone")
        done.release()

    pool = Compute(1, 100, together)
    a, b = Client(), Client()
    try:
        assert pool.submit(WaitingJob(Client(), lambda _: gate.wait(5) and None))
        assert until(lambda: not pool.waiting)
        for k in range(2):
            pool.submit(WaitingJob(a, alone, key, f"a{k}"))
            pool.submit(WaitingJob(b, alone, key, f"b{k}"))
        began = time.perf_counter()
        gate.set()
        for _ in range(2):
            assert done.acquire(timeout=5)
        assert ran == [["a0", "b0", "a1"], "alone"]
        assert until(lambda: pool.begin(a))
        wall_s = time.perf_counter() - began
        assert 0.02 <= a.turn_s < wall_s, "two thirds of the batch, not twice all of it"
    finally:
        gate.set()
        pool.close()


@pytest.mark.parametrize("companion", [True, False])
def test_a_wait_for_company_ends_with_the_company_or_the_time(companion: bool) -> None:
    key, ran, done = Key(2), [], threading.Semaphore(0)

    def together(jobs: Sequence[WaitingJob]) -> None:
        ran.append(len(jobs))
        done.release()

    def alone(waited: float) -> None:
        ran.append(waited)
        done.release()

    pool = Compute(1, 100, together, max_wait_s=30.0 if companion else 0.05)
    try:
        pool.submit(WaitingJob(Client(), alone, key))
        if companion:
            assert until(lambda: bool(pool._gathering))
            pool.submit(WaitingJob(Client(), alone, key))
        assert done.acquire(timeout=5)
        assert ran == [2] if companion else ran[0] >= 0.05
    finally:
        pool.close()


def test_nobody_else_waits_for_a_batch_to_fill() -> None:
    key, done = Key(8), threading.Semaphore(0)
    pool = Compute(1, 100, lambda jobs: None, max_wait_s=30.0)
    try:
        pool.submit(WaitingJob(Client(), lambda _: done.release(), key))
        assert until(lambda: bool(pool._gathering))
        pool.submit(WaitingJob(Client(), lambda _: done.release()))
        assert done.acquire(timeout=5)
        assert done.acquire(timeout=5)
    finally:
        pool.close()


def filled(gain: Gain, times: Mapping[int, float], runs: int = 4) -> Gain:
    for size, seconds in times.items():
        for _ in range(runs):
            gain.add(size, seconds)
    return gain


def test_a_batch_is_used_where_it_gains_a_tenth() -> None:
    gain = Gain(8)
    gain.judge("equal", "")
    assert gain.size(8) == 1, "how long one takes is not known yet"
    filled(gain, {1: 1.0})
    assert [gain.size(8) for _ in range(3)] == [2, 2, 2], "tried, the smallest first"
    filled(gain, {2: 1.7, 4: 3.7, 8: 7.9})
    assert [gain.size(n) for n in (1, 2, 3, 4, 8, 100)] == [1, 2, 2, 2, 2, 2]
    assert gain.wanted() == 2
    slow = filled(Gain(8), {1: 1.0, 2: 1.85, 4: 3.7, 8: 7.3})
    slow.judge("equal", "")
    assert slow.size(8) == 1
    assert slow.wanted() == 1


def test_the_first_run_of_a_size_and_single_outliers_do_not_count() -> None:
    gain = Gain(2)
    gain.judge("equal", "")
    filled(gain, {1: 1.0}, runs=9)
    for seconds in (50.0, 1.2, 1.2, 9.0, 1.2):
        gain.add(2, seconds)
    assert gain.size(2) == 2


def test_what_does_not_help_now_is_tried_again_later() -> None:
    gain = filled(Gain(4), {1: 1.0, 2: 2.0, 4: 4.0})
    gain.judge("equal", "")
    sizes = Counter(gain.size(4) for _ in range(1000))
    assert 0 < sizes[2] + sizes[4] < 20
    for _ in range(9):
        gain.add(4, 1.5)
    assert gain.size(4) == 4


def test_a_tail_that_mixes_requests_is_never_run_together() -> None:
    gain = Gain(8)
    assert gain.size(8) == 2, "to be tried"
    gain.judge("inconclusive", "a reason")
    assert gain.verdict == "", "a trial can only add doubt"
    gain.judge("different", "another")
    gain.judge("equal", "")
    assert gain.verdict == "another"
    assert (gain.size(8), gain.wanted()) == (1, 1)


def test_a_row_is_computed_again_now_and_then() -> None:
    gain = Gain(8)
    again = [k + 1 for k in range(1024) if gain.look_again()]
    assert again == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]


def one_op(tmp_path: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[object], out: Sequence[object]) -> Model:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out))],
        [onnx.numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return load(path)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def segment(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Segment:
    return Segment("f", tuple(inputs), tuple(outputs), ModelProto(), None)  # type: ignore[arg-type]


def test_only_tails_with_one_free_first_dimension_everywhere_are_batchable() -> None:
    x, y = spec("x", "batch", 3, 8), spec("y", "batch", 10)
    assert alike(segment([x], [y]))
    assert alike(segment([spec("x", "batch", "n"), spec("m", "batch", "n")], [spec("y", "batch", "n", 4)]))
    for inputs, outputs in (
        ([spec("x", 1, 3)], [spec("y", 1, 10)]),
        ([x], [spec("y", 1, 10)]),
        ([x], [spec("y", "batch", "y.1")]),
        ([x], [spec("y", "y.0", 10)]),
        ([x, spec("m", 3)], [y]),
        ([x, spec("m")], [y]),
        ([spec("x", 3, "batch")], [spec("y", 10, "batch")]),
        ([spec("x", "batch", "batch")], [y]),
        ([x], []),
        ([], [y]),
    ):
        assert not alike(segment(inputs, outputs)), (inputs, outputs)


def test_what_the_zoo_has_is_batchable_at_every_cut() -> None:
    for name in ("zoo:lenet5", "zoo:efficientnet_lite0"):
        model = load(name)
        tails = [model.tail(cut) for cut in model.graph.chain()]
        assert all(batchable(t) for t in tails if t.outputs), name


def test_requests_are_copied_together_only_if_they_are_small_and_alike() -> None:
    assert stackable(["float32"], [(1, 100)])
    assert not stackable(["float32"], [(1, 100, 1 << 20)])
    assert not stackable(["float32", "float32"], [(1, 100), (2, 100)])
    assert not stackable(["float32"], [(0, 100)])


def test_a_batch_of_a_real_tail_gives_what_single_runs_give() -> None:
    model = load("zoo:lenet5")
    tail = model.tail(model.graph.cut("pool1"))
    session = open_engine(threads=1).compile(tail)
    rng = np.random.default_rng(0)
    name = tail.inputs[0].name
    shape = tail.inputs[0].bind({"batch": 1}).shape
    feeds = [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(5)]
    for feed, got in zip(feeds, run_stacked(session, feeds), strict=True):
        want = session.run(feed)["logits"]
        np.testing.assert_allclose(got["logits"], want, atol=1e-4)
        assert got["logits"].base is None
    assert tried(session, [TensorSpec(name, "float32", shape)]) == ("equal", "")


MIXING = {
    "a mean over the batch": [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ],
    "a scale found at run time": [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ],
    "a softmax over the batch": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
}


@pytest.mark.parametrize("kind", MIXING)
def test_operators_that_mix_what_is_in_a_batch_are_found_out(tmp_path: Path, kind: str) -> None:
    model = one_op(tmp_path, MIXING[kind], ["batch", 64], ["batch", 64])
    assert alike(model.whole())
    assert not batchable(model.whole())
    session = open_engine(threads=1).compile(model.whole())
    verdict, why = tried(session, [spec("x", 1, 64)])
    assert verdict in ("different", "inconclusive")
    assert "y" in why


def branch(op: str) -> Any:
    return helper.make_graph([helper.make_node(op, ["t"], [op])], op, [], [nets.value(op, None)])


DECIDING = {
    "a branch": [
        helper.make_node("ReduceSum", ["t"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Exp")),
    ],
    "a count": [
        helper.make_node("NonZero", ["t"], ["found"]),
        helper.make_node("Size", ["found"], ["count"]),
        helper.make_node("Cast", ["count"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Where", ["c", "n", "t"], ["y"]),
    ],
    "a choice": [
        helper.make_node("ReduceMax", ["t"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "nought"], ["c"]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Where", ["c", "n", "t"], ["y"]),
    ],
}


@pytest.mark.parametrize("kind", DECIDING)
def test_what_a_whole_batch_may_decide_never_runs_as_one(kind: str) -> None:
    """A trial would show nothing if both of it decided the same."""
    nodes = [helper.make_node("Tanh", ["x"], ["t"]), *DECIDING[kind]]
    nought = [nets.weight("nought", 0, np.float32)]
    model = nets.load(nets.proto(nodes, [nets.value("x", ["N", 64])], [nets.value("y", None)], nought))
    whole = model.whole()
    assert whole.outputs[0].shape == ("N", 64)
    tails = [model.tail(cut) for cut in model.graph.prefixes()]
    assert not any(batchable(t) for t in tails if {"t", "x"} & {i.name for i in t.inputs} and len(t.inputs) == 1)


def test_a_shape_that_is_fixed_inside_is_found_out(tmp_path: Path) -> None:
    class Fixed:
        inputs, outputs, nbytes = (spec("x", "batch", 4),), (spec("y", "batch", 4),), 0

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            if len(inputs["x"]) != 1:
                raise EngineError("cannot be reshaped to 1")
            return {"y": inputs["x"]}

        def close(self) -> None: ...

    verdict, why = tried(Fixed(), [spec("x", 1, 4)])
    assert verdict == "different"
    assert "cannot be reshaped" in why


# --- over real sockets ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


class Raw:
    """A client that sends requests for the whole of a model without waiting for answers."""

    def __init__(self, server: Server, model: Model, source: str = "127.0.0.1") -> None:
        host, _, port = server.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), source_address=(source, 0))
        self.connection = TcpConnection(sock, server.address, Limits())
        self.send(wire.encode(Kind.HELLO, 1, wire.Hello()))
        assert self.receive().kind == Kind.WELCOME
        whole = model.whole()
        names = [tuple(t.name for t in side) for side in (whole.inputs, whole.outputs)]
        self.send(wire.encode(Kind.OPEN, 2, wire.OpenRequest(model.fingerprint, *names)))
        opened = self.receive().header
        assert isinstance(opened, wire.Opened)
        self.packer = wire.Packer(Kind.INFER, lambda tensors: wire.Infer(opened.segment, tensors))
        self.id = 100

    def send(self, packet: wire.Packet) -> None:
        self.connection.send(packet)

    def receive(self) -> wire.Frame:
        return self.connection.receive(timeout_s=10)

    def ask(self, x: Array) -> int:
        self.id += 1
        self.send(self.packer.pack(self.id, [x], flags=PIPELINED))
        return self.id

    def close(self) -> None:
        self.connection.close()


class Slow(Gate):
    """A gate whose runs take 2 ms more, so that what waits shows; `seen` is told the first number of each."""

    seen: Callable[[float], object] = float

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        session = super().compile(segment)
        run = session.run
        session.run = lambda inputs: (self.seen(inputs["x"][0, 0]), time.sleep(0.002), run(inputs))[2]  # type: ignore[method-assign]
        return session


def test_a_flood_does_not_hold_up_the_others(model: Model) -> None:
    """Fifty requests of one client wait when another's ten come: these are not the last to be served."""
    engine, order = Slow(is_open=False), list[float]()
    engine.seen = order.append
    with Server([model], engine=engine, port=0, max_batch=1) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        for _ in range(50):
            flood.ask(np.full((1, 1024), 1, np.float32))
        assert until(lambda: server.runner.compute.waiting == 49)
        for _ in range(10):
            modest.ask(np.full((1, 1024), 2, np.float32))
        assert until(lambda: server.runner.compute.waiting == 59)
        engine.open.set()
        assert [modest.receive().kind for _ in range(10)] == [Kind.RESULT] * 10
        assert [flood.receive().kind for _ in range(50)] == [Kind.RESULT] * 50
        flood.close()
        modest.close()
    # The one that was held up, and at most as many as the slack of six mean jobs and a job's noise allow.
    assert order.index(2.0) <= 8, "who has had nothing is soon next"
    assert len(order) - order[::-1].index(2.0) <= 50, "in order of arrival they would have been the last ten of sixty"


def test_what_a_client_that_left_had_waiting_is_not_computed(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, max_batch=1) as server:
        gone, modest = Raw(server, model), Raw(server, model)
        modest.ask(x)
        assert gate.entered.acquire(timeout=5)
        for _ in range(20):
            gone.ask(x)
        assert until(lambda: server.runner.compute.waiting == 20)
        gone.close()
        assert until(lambda: server.runner.compute.waiting == 0)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        modest.close()
        assert until(lambda: not server._peers)
        assert server.ledger.held_nbytes == 0, "it gave its room back"
    assert not gate.entered.acquire(blocking=False)


def test_busy_says_how_many_of_ones_own_wait_and_leaves_room_for_others(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(queue=8)) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        flood.ask(x)
        assert gate.entered.acquire(timeout=5)
        for _ in range(10):
            flood.ask(x)
        frames = [flood.receive() for _ in range(6)]
        assert {f.kind for f in frames} == {Kind.BUSY}
        busy = frames[0].header
        assert isinstance(busy, wire.Busy)
        assert "4 of yours wait" in busy.message
        assert busy.retry_after_s > 0
        modest.ask(x)
        assert until(lambda: server.runner.compute.waiting == 5)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        assert [flood.receive().kind for _ in range(5)] == [Kind.RESULT] * 5
        flood.close()
        modest.close()


def test_one_client_cannot_take_all_the_memory_for_requests(model: Model) -> None:
    gate, x = Gate(is_open=False), np.ones((64, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(memory_bytes=10 * x.nbytes)) as server:
        flood, modest = Raw(server, model), Raw(server, model)
        for _ in range(8):
            flood.ask(x)
        assert [flood.receive().kind for _ in range(3)] == [Kind.BUSY] * 3
        modest.ask(x)
        assert until(lambda: server.ledger.held_nbytes > 6 * x.nbytes)
        gate.open.set()
        assert modest.receive().kind == Kind.RESULT
        assert [flood.receive().kind for _ in range(5)] == [Kind.RESULT] * 5
        flood.close()
        modest.close()


class Batching(Gate):
    """An engine for `affine` models that notes the batches it runs; one costs as much as a request alone."""

    def __init__(self) -> None:
        super().__init__()
        self.real = open_engine(threads=1)
        self.batches: list[int] = []
        self.fails_at = 0.0

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        session, inner = super().compile(segment), self.real.compile(segment)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            x = inputs["x"]
            self.entered.release()
            assert self.open.wait(10)
            self.batches.append(len(x))
            time.sleep(0.003)
            if self.fails_at and self.fails_at in x:
                raise EngineError("this one cannot be computed")
            return inner.run(inputs)

        session.run = run  # type: ignore[method-assign]
        return session


def test_what_waits_at_the_same_time_runs_as_a_batch_and_every_answer_is_its_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Gain.add  # what a run has waited for the others to come is none of its time
    monkeypatch.setattr(Gain, "add", lambda gain, size, _seconds: add(gain, size, 0.003))
    engine, told = Batching(), list[Event]()
    rng = np.random.default_rng(0)
    with Server([model], engine=engine, port=0, max_batch=4, on_event=told.append) as server:
        raws = [Raw(server, model) for _ in range(4)]
        for _ in range(30):  # until it is known that batches help
            asked = []
            engine.open.clear()
            for raw in raws:
                x = rng.normal(size=(1, 1024)).astype(np.float32)
                for _ in range(3):
                    raw.ask(x)
                asked.append(x)
            assert until(lambda: sum(p.account.unanswered for p in server._peers) == 12), "they meet, all of them"
            engine.open.set()
            for raw, x in zip(raws, asked, strict=True):
                for _ in range(3):
                    np.testing.assert_allclose(raw.receive().tensors[0], evaluate(model, x), rtol=1e-4, atol=1e-4)
        assert max(engine.batches) == 4
        assert any(e.kind == "batched" and "may be run together" in e.sentence for e in told)
        assert Counter(engine.batches)[4] > 10

        engine.fails_at = 77.0
        engine.open.clear()
        wrong = np.full((1, 1024), 77, np.float32)
        right = [rng.normal(size=(1, 1024)).astype(np.float32) for _ in raws]
        for raw, x in zip(raws, right, strict=True):
            raw.ask(x)
        raws[0].ask(wrong)
        assert until(lambda: sum(p.account.unanswered for p in server._peers) == 5)
        engine.open.set()
        for raw, x in zip(raws, right, strict=True):
            np.testing.assert_allclose(raw.receive().tensors[0], evaluate(model, x), rtol=1e-4, atol=1e-4)
        error = raws[0].receive()
        assert error.kind == Kind.ERROR, "the one that cannot be computed, and no other"
        for raw in raws:
            raw.close()
        assert until(lambda: not server._peers)
        assert server.ledger.held_nbytes == 0


def test_a_tail_that_mixes_is_served_one_by_one(tmp_path: Path) -> None:
    model = one_op(tmp_path, MIXING["a softmax over the batch"], ["batch", 64], ["batch", 64])
    told: list[Event] = []
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    with Server([model], engine=open_engine(threads=1), port=0, max_wait_s=60.0, on_event=told.append) as server:
        raws = [Raw(server, model) for _ in range(3)]
        assert [
            e.sentence for e in told if e.kind == "batched" and "one by one: Softmax_0 (Softmax) normal" in e.sentence
        ]
        for k, raw in enumerate(raws):
            raw.ask(x * (k + 1))
            raw.ask(x * (k + 1))
        for raw in raws:
            for _ in range(2):
                assert (raw.receive().tensors[0] == 1).all(), "one request has all the weight"
            raw.close()


def test_an_edge_that_asks_once_is_not_slowed_by_batching(model: Model, tmp_path: Path) -> None:
    with (
        Server([model], engine=Gate(), port=0, max_wait_s=0.0) as server,
        Edge(server.address, at="input", cache=tmp_path / "cache") as edge,
    ):
        result = edge.infer(np.ones((1, 1024), np.float32))
        assert result.times.load_queue_s == 0.0, "it was run by the thread that received it"
        assert not server.runner.compute.waiting


@pytest.mark.parametrize(("batch", "wait"), [(0, 0.0), (-1, 0.0), (8, -1.0), (8, float("nan")), (8, float("inf"))])
def test_batches_of_nothing_and_endless_waits_are_refused(model: Model, batch: int, wait: float) -> None:
    with pytest.raises(UsageError):
        Server([model], engine=Gate(), port=0, max_batch=batch, max_wait_s=wait)


@pytest.mark.parametrize("arguments", [["--max-wait", "soon"], ["--max-wait", "-1ms"], ["--max-batch", "0"]])
def test_nonsense_on_the_command_line_is_refused_in_one_sentence(arguments: list[str]) -> None:
    said = CliRunner().invoke(command, ["zoo:lenet5", "--port", "0", *arguments])
    assert said.exit_code != 0
    assert arguments[0] in f"{said.exception} {said.output}"


def test_load_in_replies_is_the_client_s_own(model: Model, tmp_path: Path) -> None:
    """A busy server says so to the client that waits, and a quiet minute later no more."""
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=Slow(), port=0, max_batch=1) as server:
        flood = Raw(server, model)
        for _ in range(60):
            flood.ask(x)
        times = [wire.Times(*np.frombuffer(flood.receive().times, "<f8")) for _ in range(60)]
        assert times[-1].queue_s > 0.05
        assert times[-1].load_queue_s > 0.02
        assert times[-1].utilisation > 0.05
        assert times[0].utilisation < times[-1].utilisation <= 1
        with Edge(server.address, at="input", cache=tmp_path / "cache") as edge:
            assert edge.infer(x).times.load_queue_s < times[-1].load_queue_s / 2, "the flood's wait is not its own"
        flood.close()


def test_a_busy_answer_to_an_edge_carries_the_time(model: Model, tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=gate, port=0, limits=Limits(queue=1)) as server:
        edges = [Edge(server.address, at="input", cache=tmp_path / "cache") for _ in range(3)]
        threads = [threading.Thread(target=e.infer, args=(x,)) for e in edges[:2]]
        threads[0].start()
        assert gate.entered.acquire(timeout=5)
        threads[1].start()
        assert until(lambda: server.runner.compute.full())
        with pytest.raises(BusyError) as caught:
            edges[2].infer(x)
        assert caught.value.retry_after_s >= 0.01
        gate.open.set()
        for thread in threads:
            thread.join()
        for edge in edges:
            edge.close()
