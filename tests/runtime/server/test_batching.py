"""Whether requests may run as one batch, and whether that helps."""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from serving import affine

import nets
from splitpoint.engines import open_engine
from splitpoint.errors import EngineError
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.server.batching import Asker, Gain, alike, run_stacked, stackable, tried
from splitpoint.runtime.server.compiled_tails import Tail
from splitpoint.tensors import Array, TensorSpec


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


# --- waiting for others, in virtual time ----------------------------------------------------------------------------

#: Seconds of a run of AlexNet's tail after its features, by rows (one core): `python -m bench.batches` has such a tail.
ALEXNET = {1: 9.9e-3, 2: 11.0e-3, 3: 11.5e-3, 4: 11.8e-3, 5: 12.2e-3, 6: 12.6e-3, 7: 14.8e-3, 8: 15.1e-3}


class Answered(NamedTuple):
    asked_s: float
    answered_s: float
    together: int


class World:
    """One worker and its clients in virtual time: `waits` or runs what is there, as `worker_pool` does.

    `pause` says how long a client that was answered pauses before it asks again; None if it does not. Times of a run
    are `took`.
    """

    def __init__(
        self,
        waits: bool,
        arrivals: Sequence[tuple[float, int]],
        pause: Callable[[int], float | None],
        took: Mapping[int, float] = ALEXNET,
    ) -> None:
        self.gain, self.waits, self.pause, self.took = Gain(8), waits, pause, took
        self.gain.judge("equal", "")
        self.coming = sorted(arrivals)
        self.askers = {k: Asker() for _, k in arrivals}
        self.waiting: deque[tuple[float, int]] = deque()
        self.now, self.waited_s = 0.0, 0.0
        self.answers: list[Answered] = []

    def arrive(self, until_s: float, most: int = 1 << 30) -> None:
        """Takes what comes until then, or until so many wait."""
        while self.coming and self.coming[0][0] <= until_s and len(self.waiting) < most:
            at = self.coming.pop(0)
            self.gain.asked(self.askers[at[1]], at[0])
            self.waiting.append(at)
            self.now = max(self.now, at[0])

    def run(self, until_s: float) -> World:
        while self.now < until_s:
            self.arrive(self.now)
            at_once = not self.waiting
            if at_once:
                if not self.coming:
                    break
                self.arrive(self.coming[0][0], 1)
            if self.waits:
                began = self.now
                wanted, end_s = self.gain.company(len(self.waiting), self.now)
                if wanted > len(self.waiting):
                    self.arrive(end_s, wanted)
                    self.now = self.now if len(self.waiting) >= wanted else end_s
                    at_once = False
                self.waited_s += self.now - began
            size = self.gain.size(len(self.waiting))
            self.now += self.took[size]
            if not at_once:
                self.gain.add(size, self.took[size])
            self.arrive(self.now)
            for asked_s, k in [self.waiting.popleft() for _ in range(size)]:
                self.answers.append(Answered(asked_s, self.now, size))
                self.gain.answered(self.askers[k], self.now)
                if (pause_s := self.pause(k)) is not None:
                    insort(self.coming, (self.now + pause_s, k))
        return self

    def rate(self, since_s: float) -> float:
        """Answers a second."""
        return sum(a.answered_s > since_s for a in self.answers) / (self.now - since_s)

    def took_s(self, percent: float, since_s: float = 0.0) -> float:
        return float(np.percentile([a.answered_s - a.asked_s for a in self.answers if a.answered_s > since_s], percent))


def closed(clients: int, mean_s: float, *, waits: bool, seconds: float = 5.0) -> World:
    """Clients that ask again about `mean_s` after an answer, give or take half of it."""
    rng = np.random.default_rng(1)
    return World(waits, [(0.0, k) for k in range(clients)], lambda _: mean_s * rng.uniform(0.5, 1.5)).run(seconds)


def test_a_lone_client_never_waits() -> None:
    world, never = closed(1, 0.3e-3, waits=True), closed(1, 0.3e-3, waits=False)
    assert world.waited_s == 0.0
    assert world.answers == never.answers


@pytest.mark.parametrize("clients", [2, 3, 5, 7, 8, 32])
def test_clients_that_ask_again_at_once_meet_in_batches(clients: int) -> None:
    """It is nearly what there would be if all came back at the same time, and better than without waits for all."""
    world, never = closed(clients, 0.5e-3, waits=True), closed(clients, 0.5e-3, waits=False)
    most = min(clients, 8)
    assert world.rate(2.0) > 0.93 * most / (ALEXNET[most] + (0.75e-3 if clients <= 8 else 0))
    assert world.rate(2.0) >= 0.999 * never.rate(2.0)
    assert world.took_s(95, 2.0) <= 1.01 * never.took_s(95, 2.0)
    if clients == 8:
        assert world.rate(2.0) > 1.4 * never.rate(2.0)


@pytest.mark.parametrize(("share", "late", "rate"), [(0.05, 0.04, 480.0), (0.4, 0.2, 440.0)])
def test_who_is_held_up_with_all_others_is_waited_for(share: float, late: float, rate: float) -> None:
    """After a `share` of the runs, all that have not asked yet are held up together, for up to 5 ms."""
    rng = np.random.default_rng(0)
    ended_s, held_from_s, held_s = -1.0, inf, 0.0

    def pause(_: int) -> float:
        nonlocal ended_s, held_from_s, held_s
        if world.now != ended_s:
            ended_s, held_s = world.now, rng.uniform(1e-3, 5e-3)
            held_from_s = rng.uniform(0.0, 0.75e-3) if rng.random() < share else inf
        own_s = rng.uniform(0.25e-3, 0.75e-3)
        return own_s if own_s < held_from_s else max(own_s, held_from_s + held_s)

    world = World(True, [(0.0, k) for k in range(8)], pause)
    world.run(40.0)
    took = [a.answered_s - a.asked_s for a in world.answers if a.answered_s > 1.0]
    assert sum(s > 1.4 * ALEXNET[8] for s in took) < late * len(took), "who came when a run had just begun without them"
    assert world.rate(1.0) > rate, "without waits: 328"


@pytest.mark.parametrize("pause_s", [2e-3, 5e-3, 10e-3, 15e-3, 40e-3, 200e-3])
def test_longer_pauses_cost_nothing_either(pause_s: float) -> None:
    world, never = closed(8, pause_s, waits=True), closed(8, pause_s, waits=False)
    assert world.rate(2.0) > 0.98 * never.rate(2.0)
    assert world.took_s(95, 2.0) < 1.02 * never.took_s(95, 2.0)


@pytest.mark.parametrize("clients", [2, 8, 32])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 1.2, 2.0, 3.5])
def test_arrivals_that_nobody_can_foresee_lose_nothing(clients: int, load: float) -> None:
    """Poisson arrivals; `load`: of what one by one could do."""
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.exponential(ALEXNET[1] / load, 2000))
    arrivals = [(float(t), int(k)) for t, k in zip(times, rng.integers(0, clients, 2000), strict=True)]
    world, never = (World(waits, arrivals, lambda _: None).run(inf) for waits in (True, False))
    assert len(world.answers) == len(never.answers) == 2000
    assert world.now < 1.01 * never.now
    assert world.took_s(50) < 1.02 * never.took_s(50)
    assert world.took_s(95) < 1.02 * never.took_s(95)


@pytest.mark.parametrize("phase_s", [0.5e-3, 3e-3, 6e-3, 12e-3])
def test_two_cameras_lose_nothing(phase_s: float) -> None:
    """Their frames come at fixed times, the second one's `phase_s` after the first one's."""
    arrivals = [(n * 0.033 + k * phase_s, k) for n in range(300) for k in range(2)]
    world, never = (World(waits, arrivals, lambda _: None).run(inf) for waits in (True, False))
    assert world.took_s(95) <= 1.01 * never.took_s(95)


def test_who_stays_away_is_waited_for_once() -> None:
    leaves = [False]

    def pause(k: int) -> float | None:
        return None if leaves[0] and k else 0.5e-3

    world = World(True, [(0.0, k) for k in range(4)], pause).run(5.0)
    leaves[0] = True
    world.run(5.1)
    waited_s = world.waited_s
    world.run(7.0)
    assert world.waited_s == waited_s
    assert world.answers[-1].together == 1


def test_nobody_waits_where_batches_gain_nothing() -> None:
    rng = np.random.default_rng(1)
    took = {size: size * 9.5e-3 for size in range(1, 9)}
    world = World(True, [(0.0, k) for k in range(8)], lambda _: 0.5e-3 * rng.uniform(0.5, 1.5), took).run(2.0)
    waited_s = world.waited_s
    world.run(6.0)
    assert world.waited_s == waited_s
    mixing = Gain(8)
    mixing.judge("different", "a reason")
    assert mixing.company(1, 0.0) == (1, 0.0)


def test_an_asker_is_expected_when_it_has_usually_asked_again() -> None:
    gain, asker = filled(Gain(8), {1: 0.010, 2: 0.011}), Asker()
    gain.judge("equal", "")
    now = 0.0
    for pause_s in (0.001, 0.002, 0.001):
        gain.answered(asker, now)
        assert gain.company(1, now) == (1, now), "not known yet"
        gain.asked(asker, now + pause_s)
        now += 1.0
    gain.answered(asker, now)
    nearly_s = (1 + 1 / 3 + 4 * 4 / 9) / 1e3
    assert gain.company(1, now) == (2, pytest.approx(now + nearly_s)), "mostly within 1 ms"
    assert gain.company(1, now + 0.002) == (2, pytest.approx(now + nearly_s)), "late: as long again"
    assert gain.company(1, now + 0.0028) == (2, pytest.approx(now + nearly_s))
    assert gain.company(1, now + 0.0055) == (1, now + 0.0055), "4.5 ms more are too long"
    assert gain.company(1, now + 0.009) == (1, now + 0.009), "it has not come"
    assert gain.company(1, now) == (1, now), "and is not waited for any more"
    gain.asked(asker, now + 9.0)
    for _ in range(8):  # one long pause among eight says nothing
        now += 20.0
        gain.answered(asker, now)
        gain.asked(asker, now + 0.001)
    gain.answered(asker, now + 1.0)
    assert gain.company(1, now + 1.0) == (2, pytest.approx(now + 1.001))
    assert gain.company(8, now + 1.0)[0] == 8, "no batch is larger"


def test_sizes_between_those_that_are_known_lie_between_them() -> None:
    gain = filled(Gain(8), {1: 1.0})
    assert [gain.seconds(n) for n in (1, 8)] == [1.0, 1.0], "as good as it can be, until it was measured"
    filled(gain, {2: 1.2, 4: 1.4})
    assert [gain.seconds(n) for n in (1, 2, 3, 4, 8)] == pytest.approx([1.0, 1.2, 1.3, 1.4, 1.8])
    gain.judge("equal", "")
    assert gain.size(3) == 3
    assert Gain(8).seconds(3) == 0.0


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


def batchable(segment: Segment) -> bool:
    return Tail(segment, most=2).most > 1


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
    for feed, got in zip(feeds, run_stacked(session.run, feeds), strict=True):
        want = session.run(feed)["logits"]
        np.testing.assert_allclose(got["logits"], want, atol=1e-4)
        assert got["logits"].base is None
    assert tried(session.run, [TensorSpec(name, "float32", shape)]) == ("equal", "")


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
    verdict, why = tried(session.run, [spec("x", 1, 64)])
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

    verdict, why = tried(Fixed().run, [spec("x", 1, 4)])
    assert verdict == "different"
    assert "cannot be reshaped" in why


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)
