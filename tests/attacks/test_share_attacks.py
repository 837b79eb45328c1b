"""What of a model leaves a server that shares a head of it: these weights, whatever anyone asks for, and no others."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacking import Attacker
from serving import nothing_leaks

import nets
from nets import node, normal, value, weight
from splitpoint import wire
from splitpoint.cli.verbs import main
from splitpoint.engines import open_engine
from splitpoint.errors import RefusedError, UsageError
from splitpoint.models import load
from splitpoint.models.model import Model, from_graph
from splitpoint.models.soundness import nbytes
from splitpoint.models.weights import ModelWeights
from splitpoint.models.withheld_graph import FEW
from splitpoint.planning.constraints import Constraints
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.catalogue import Sharing
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind

GRAPH, BLOB, OPEN = int(Kind.GRAPH), int(Kind.BLOB), int(Kind.OPEN)


def branched() -> Model:
    """x → a → b, and a + b → c → y, with weights in the graph (biases) and beside it, and a shape that travels."""
    nodes = [
        node("Gemm", ["x", "wa", "ba"], ["a"], name="a"),
        node("Gemm", ["a", "wb", "bb"], ["b"], name="b"),
        node("Add", ["a", "b"], ["s"], name="s"),
        node("Gemm", ["s", "wc", "bc"], ["c"], name="c"),
        node("Shape", ["a"], ["size"], name="size"),
        node("Expand", ["c", "size"], ["y"], name="y"),
        node("Sigmoid", ["b"], ["z"], name="z"),
    ]
    weights = [w for n in "abc" for w in (normal(f"w{n}", 32, 32), normal(f"b{n}", 32))]
    return nets.load(nets.proto(nodes, [value("x", [1, 32])], [value("y", [1, 32]), value("z", [1, 32])], weights))


@pytest.fixture
def shared() -> Iterator[tuple[Server, Model, Attacker]]:
    model = branched()
    with nothing_leaks(), Server([model], engine=open_engine(threads=1), port=0, share="head:b") as server:
        attacker = Attacker(server.address)
        yield server, model, attacker
        attacker.close()


def handed_out(attacker: Attacker, model: Model) -> set[str]:
    """The names of all weights, in blobs and in the graph, that the server gives when it is asked for each."""
    attacker.send(GRAPH, 7, {"fingerprint": model.fingerprint})
    _, _, _, graph = attacker.receive()
    found = set()
    for t in model.skeleton.graph.initializer:
        data = t.raw_data or bytes(model.blob(nets.blob_hashes(model.whole())[t.name]))
        attacker.send(BLOB, 8, {"fingerprint": model.fingerprint, "hash": hashlib.sha256(data).hexdigest()})
        kind, _, header, body = attacker.receive()
        if body == data or data in graph:
            found.add(t.name)
        else:
            assert (kind, header["code"]) == (Kind.ERROR, "refused"), header
    return found


def opened(
    attacker: Attacker, model: Model, inputs: list[str], outputs: list[str], vectors: tuple[str, ...] = ()
) -> str:
    """Why a tail is not made; empty if it is."""
    asked = {"fingerprint": model.fingerprint, "inputs": inputs, "outputs": outputs, "vectors": vectors}
    attacker.send(OPEN, 9, asked)
    kind, _, header, _ = attacker.receive()
    assert kind == Kind.OPENED or header["code"] in ("refused", "model"), header
    return "" if kind == Kind.OPENED else str(header["message"])


def test_what_leaves_is_settled_and_nothing_that_is_opened_adds_to_it(shared: tuple[Server, Model, Attacker]) -> None:
    _, model, attacker = shared
    head = {"wa", "ba", "wb", "bb"}
    assert handed_out(attacker, model) == head, "before anything is opened"
    inside = [t for t in model.specs if t not in ("y", "z")]
    for tensor, output in itertools.product([*model.specs, "wc", "bc", "size"], ["y", "z", *inside, "wc", "nothing"]):
        words = opened(attacker, model, [tensor], [output]) if output != tensor else "-"
        if output not in ("y", "z"):
            assert words == "-" or "own outputs" in words or "no tensor" in words, (tensor, output)
        elif tensor not in ("x", "a", "b"):
            assert words == "-" or "not deeper" in words or "no tensor" in words, (tensor, output)
    assert handed_out(attacker, model) == head, "after everything was"


def test_how_much_may_leave_counts_the_weights_in_the_graph_too() -> None:
    """All of LeNet-5's first layer is in its graph: 600 bytes of kernels, 24 of biases, and the input's two scales."""
    model = load("zoo:lenet5")
    said = Sharing("head:pool1", {model.fingerprint: model}, {model.fingerprint: ["lenet5"]}).said
    inline = sum(nbytes(t) for t in model.head(model.graph.cut("pool1")).proto.graph.initializer)
    assert 624 <= inline < 700
    assert said == [f"lenet5: the head up to pool1 may leave, {inline} B of its weights; the rest stays"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "vectors", "says"),
    [
        (["a", "b"], ["y"], (), ""),
        (["x"], ["y", "z"], (), ""),
        (["a"], ["z"], (), ""),
        (["s"], ["y"], ("size",), "not deeper"),  # one tensor behind it
        (["a", "b", "c"], ["y"], (), "not deeper"),  # between others that are not
        (["a", "b"], ["y", "s"], (), "own outputs"),
        (["x"], ["b"], (), "own outputs"),  # the server's work, for weights that the device has
        (["a", "b"], ["y"], ("size",), "not deeper"),  # a shape that follows from what crosses
    ],
)
def test_tails_begin_in_the_head_and_end_at_the_outputs(
    shared: tuple[Server, Model, Attacker], inputs: list[str], outputs: list[str], vectors: tuple[str, ...], says: str
) -> None:
    _, model, attacker = shared
    words = opened(attacker, model, inputs, outputs, vectors)
    assert says in words
    assert bool(words) == bool(says)


def test_the_graph_that_is_handed_out_has_the_fingerprint_and_no_weight_of_the_tail(
    shared: tuple[Server, Model, Attacker],
) -> None:
    _, model, attacker = shared
    attacker.send(GRAPH, 7, {"fingerprint": model.fingerprint})
    _, _, _, graph = attacker.receive()
    device = from_graph(graph, ModelWeights(), name="net", expected=model.fingerprint)
    told = {t.name: bool(t.raw_data) for t in device.skeleton.graph.initializer}
    assert told == {"wa": False, "ba": True, "wb": False, "bb": True, "wc": False, "bc": False}
    assert device.graph.tensors == model.graph.tensors, "a device still knows all shapes"


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Constant", [], ["k"], name="k", value_floats=[0.5] * 32), node("Mul", ["a", "k"], ["y"], name="y")],
        [
            node("If", ["yes"], ["y"], name="if", then_branch=nets.helper.make_graph(
                [node("Mul", ["a", "w"], ["t"])], "then", [], [value("t", [1, 32])], [normal("w", 32)]),
                else_branch=nets.helper.make_graph(
                [node("Identity", ["a"], ["e"])], "else", [], [value("e", [1, 32])])),
        ],
    ],
)  # fmt: skip
def test_weights_that_a_graph_cannot_do_without_are_refused_at_the_start(nodes: list[Any]) -> None:
    weights = [normal("wa", 32, 32), normal("wz", 32, 32), weight("yes", np.array(True))]
    nodes = [node("MatMul", ["x", "wa"], ["a"], name="a"), *nodes, node("MatMul", ["a", "wz"], ["z"], name="z")]
    outputs = [value("y", [1, 32]), value("z", [1, 32])]
    model = nets.load(nets.proto(nodes, [value("x", [1, 32])], outputs, weights))
    with pytest.raises(UsageError, match=r"cannot keep the weights.*settings of node"):
        Server([model], engine=open_engine(threads=1), port=0, share="head:a")


def test_few_numbers_are_settings_and_more_are_weights() -> None:
    def graph(count: int) -> bytes:
        k = weight("k", np.linspace(0.1, 0.9, count, dtype=np.float32))
        nodes = [node("MatMul", ["x", "w"], ["a"], name="a"), node("Mul", ["a", "k"], ["y"], name="y"),
                 node("MatMul", ["y", "w2"], ["z"], name="z")]  # fmt: skip
        weights = [normal("w", 32, count, seed=1), normal("w2", count, 300, seed=2), k]
        model = nets.load(nets.proto(nodes, [value("x", [1, 32])], [value("z", [1, 300])], weights))
        data, _ = Sharing("head:a", {model.fingerprint: model}, {model.fingerprint: ["net"]}).graph(model)
        return k.raw_data if k.raw_data in data else b""

    assert graph(FEW)
    assert not graph(FEW + 1)


@pytest.mark.parametrize("made", [branched, lambda: nets.load(nets.residual()), lambda: load("zoo:lenet5")])
def test_every_cut_up_to_the_shared_one_is_open_to_a_device_and_its_weights_leave(made: Callable[[], Model]) -> None:
    model = made()
    cuts = model.graph.prefixes()
    for deepest in cuts[:-1]:
        try:
            found = Sharing(f"head:{deepest.name}", {model.fingerprint: model}, {model.fingerprint: [model.name]})
        except UsageError:  # all the weights are before it
            assert set(model.head(deepest).blobs) == set(model.blobs)
            continue
        for cut in cuts:
            outputs = tuple(t.name for t in model.outputs if t.name not in cut.results)
            request = wire.OpenRequest(model.fingerprint, tuple(t.name for t in cut.crossing), outputs, cut.shapes)
            if cut.nodes <= deepest.nodes:
                found.check_tail(model, request)
                for hash in model.head(cut).blobs:
                    assert found.nbytes_of(model, hash) == found.open(model, hash).nbytes
            elif not set(cut.boundary) <= model.graph.before(deepest):
                with pytest.raises(RefusedError, match="not deeper"):
                    found.check_tail(model, request)


def test_a_server_that_shares_nothing_answers_for_no_tensor_inside() -> None:
    model = branched()
    with nothing_leaks(), Server([model], engine=open_engine(threads=1), port=0, share="none") as server:
        attacker = Attacker(server.address)
        assert "not at a tensor inside" in opened(attacker, model, ["x"], ["a"])
        assert not opened(attacker, model, ["x"], ["y", "z"])
        attacker.close()


def test_the_input_is_a_cut_whose_head_has_no_weights() -> None:
    model = branched()
    with nothing_leaks(), Server([model], engine=open_engine(threads=1), port=0, share="head:input") as server:
        attacker = Attacker(server.address)
        assert handed_out(attacker, model) == set()
        assert not opened(attacker, model, ["x"], ["y", "z"])
        assert opened(attacker, model, ["a"], ["z"])
        attacker.close()


# --- what an operator says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "says"),
    [
        ("head", r"--share head needs the deepest cut.*such as --share head:"),
        ("head:", r"needs the deepest cut"),
        ("head:bb1", r"no layer, node or tensor bb1"),
        ("head:output", r"would hand out all the weights of net"),
        ("head:z", ""),
        ("heads:b", r"model, head:CUT or none"),
        ("model:b", r"model, head:CUT or none"),
        ((), r"model, head:CUT or none"),
        (("head:a", "model"), r"model, head:CUT or none"),
        (("head:a", "head:b"), r"names 2 cuts \(a, b\): say whose"),
        (("head:net=a", "head:net=b"), r"two cuts for net: a and b"),
        (("head:other=a",), r"no layer, node or tensor other=a"),
    ],
)
def test_shares_that_make_no_sense_are_said_at_the_start(share: str | tuple[str, ...], says: str) -> None:
    model = branched()
    if not says:
        Server([model], engine=open_engine(threads=1), port=0, share=share)
        return
    with pytest.raises(UsageError, match=says):
        Server([model], engine=open_engine(threads=1), port=0, share=share)


def test_each_of_several_models_has_its_own_cut() -> None:
    one, two = branched(), load("zoo:lenet5")
    models, names = {m.fingerprint: m for m in (one, two)}, {one.fingerprint: ["net"], two.fingerprint: ["lenet5"]}
    found = Sharing(("head:net=b", "head:lenet5=tanh2"), models, names)
    assert found.heads == {one.fingerprint: one.graph.name_of(one.graph.cut("b").nodes), two.fingerprint: "tanh2"}
    assert Sharing(("head:tanh2", "head:net=b"), models, names).heads == found.heads
    with pytest.raises(UsageError, match=r"says nothing of lenet5: add --share head:lenet5=CUT"):
        Sharing(("head:net=b",), models, names)


def test_the_command_line_wants_a_cut_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "zoo:lenet5", "--port", "0", "--share", "head"]) == 2
    assert "such as --share head:" in capsys.readouterr().err


# --- an honest device -----------------------------------------------------------------------------------------------


def test_a_device_goes_as_deep_as_it_may_and_is_told_where_that_ends(tmp_path: Path) -> None:
    model = load("zoo:lenet5")
    x = np.full((1, 32, 32, 1), 77, np.uint8)
    engine = open_engine(threads=1)
    right = engine.compile(model.whole()).run({"image": x})["logits"]
    with Server([model], engine=engine, port=0, share="head:conv1") as server:
        with Edge(server.address, engine=engine, cache=tmp_path) as edge:
            assert edge.cut.name == "conv1", "the middle is deeper"
            np.testing.assert_allclose(edge.infer(x).outputs["logits"], right, rtol=1e-4, atol=1e-5)
            with pytest.raises(RefusedError, match=r"shares the head up to conv1, and fc1 is deeper"):
                edge.switch("fc1")
            with pytest.raises(RefusedError, match=r"shares the head up to conv1, and output is deeper"):
                edge.pull("output")
            with pytest.raises(RefusedError, match=r"give --at conv1"):
                edge.pull()
            assert edge.switch("input").name == "input"
            assert not edge.holds(edge.model.graph.cut("fc1"))
        with Edge(server.address, model, engine=engine, at="output") as edge:  # with the model's own file
            assert edge.infer(x).outputs
            with pytest.raises(RefusedError, match="fc1 is deeper"):
                edge.switch("fc1")


def test_a_graph_that_was_kept_without_weights_serves_where_all_is_shared(tmp_path: Path) -> None:
    model = load("zoo:lenet5")
    engine = open_engine(threads=1)
    for share, at in (("head:conv1", "conv1"), ("head:fc2", "fc2"), ("model", "output")):
        with (
            Server([model], engine=engine, port=0, share=share) as server,
            Edge(server.address, engine=engine, cache=tmp_path, at=at) as edge,
        ):
            x = np.full((1, 32, 32, 1), 77, np.uint8)
            want = engine.compile(model.whole()).run({"image": x})["logits"]
            np.testing.assert_allclose(edge.infer(x).outputs["logits"], want, rtol=1e-4, atol=1e-5)


def test_plans_leave_out_what_the_server_does_not_share_and_say_so() -> None:
    from splitpoint.link import Link
    from splitpoint.planning.constraints import Shared
    from splitpoint.planning.planner import Planner
    from splitpoint.profile.measure import profile_model

    model = load("zoo:lenet5")
    profile = profile_model(model, open_engine(threads=1), budget_s=0.05)
    graph, slow = model.graph, profile.slowed(1e-3)  # a device that is a thousand times faster than the server
    deepest = graph.cut("pool1")
    for whole in (False, True):
        limits = Constraints(shared=Shared(deepest, whole=whole))
        for objective in ("latency", "throughput", "bytes"):
            planner = Planner(graph, (slow, profile), objective=objective, constraints=limits)
            plan = planner.plan(Link(100, 100, 1), sensitivity=False)
            for option in (plan.best, *plan.options, planner.remote(plan.link)):
                assert option is not None
                deeper = not set(option.on_edge) <= deepest.nodes
                alone = whole and option.kind == "device"
                assert ("no more than the head up to pool1" in option.refused) == (deeper and not alone)
            assert not plan.best.refused
        assert any("no cut behind pool1" in said for said in plan.constraints)
