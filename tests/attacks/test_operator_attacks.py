"""Which operators a graph may have that is read from a file, served or fetched: an engine runs them as C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacking import Attacker
from serving import nothing_leaks

import nets
from nets import helper, node, normal, value, weight
from splitpoint.cli.verbs import main
from splitpoint.engines import open_engine
from splitpoint.errors import ModelError
from splitpoint.models import load, reading
from splitpoint.models.operators import _COMPUTING
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind

DOMAINS = {"com.microsoft": 1, "org.acme": 1, "com.microsoft.nchwc": 1, "org.pytorch.aten": 1, "ai.onnx.training": 1}


def plain(*nodes: Any, inputs: Any = (), weights: Any = ()) -> Any:
    return nets.proto(nodes, [value("x", [1, 4]), *inputs], [value("y", None)], weights, domains=DOMAINS)


def branch(inner: Any) -> Any:
    """`inner` (a → b) in one of the branches of an If."""
    other = helper.make_graph([node("Identity", ["x"], ["o"])], "other", [], [value("o", None)])
    then = helper.make_graph([node("Identity", ["x"], ["a"]), inner], "then", [], [value("b", None)])
    return node("If", ["yes"], ["y"], name="if", then_branch=then, else_branch=other)


def check(proto: Any, *allowed: str) -> None:
    copy = type(proto).FromString(proto.SerializeToString())
    reading.parse_skeleton(reading.skeleton_of(copy, Path(), "net.onnx", (), allowed)[0].SerializeToString(), allowed)


@pytest.mark.parametrize(
    ("domain", "op"),
    [
        ("org.acme", "Relu"),
        ("com.microsoft.nchwc", "Conv"),
        ("org.pytorch.aten", "ATen"),
        ("ai.onnx.training", "Gradient"),
        ("com.microsoft", "BeamSearch"),
        ("com.microsoft", "Tokenizer"),
        ("com.microsoft", "SampleOp"),
        ("com.microsoft", "NotYetThere"),
        ("Com.Microsoft", "Gelu"),
        ("ai.onnx ", "Relu"),
        ("com.microsoft", "EPContext"),
        ("com.microsoft", "PythonOp"),
    ],
)
def test_operators_beside_the_list_are_refused_wherever_they_are(domain: str, op: str) -> None:
    says = rf"node foreign \({domain}\.{op}\)"
    forever = op in ("EPContext", "PythonOp")
    yes = [weight("yes", np.array(True))]
    function = helper.make_function(
        "local", "F", ["p"], ["q"], [helper.make_node(op, ["p"], ["q"], "inside", domain=domain)],
        [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)],
    )  # fmt: skip
    deep = branch(node(op, ["a"], ["b"], "foreign", domain=domain))
    deeper = branch(helper.make_node("If", ["yes"], ["b"], **{
        f"{side}_branch": helper.make_graph([node(op, ["a"], [side], "foreign", domain=domain)], side, [],
                                            [value(side, None)])
        for side in ("then", "else")
    }))  # fmt: skip
    called = nets.proto([node("F", ["x"], ["y"], "call", domain="local")], [value("x", [1, 4])], [value("y", None)],
                        domains={"local": 1, domain: 1}, functions=[function])  # fmt: skip
    for proto in (
        plain(node(op, ["x"], ["y"], "foreign", domain=domain)), plain(deep, weights=yes), plain(deeper, weights=yes),
    ):  # fmt: skip
        proto.opset_import.add(domain=domain, version=1)
        with pytest.raises(ModelError, match=says + (".*never run" if forever else f".*--allow-domain {domain}")):
            check(proto)
        if forever:
            with pytest.raises(ModelError, match="never run"):
                check(proto, domain)
        else:
            check(proto, domain)
    with pytest.raises(ModelError, match=rf"{domain}\.{op}"):
        check(called)


def test_what_exporters_and_quantisers_write_is_run() -> None:
    for op in ("Gelu", "QLinearAdd", "MatMulNBits", "GroupQueryAttention", "FusedConv", "QAttention"):
        assert op in _COMPUTING
        check(plain(node(op, ["x"], ["y"], domain="com.microsoft")))
    check(plain(node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])))
    check(plain(node("Relu", ["x"], ["y"], domain="ai.onnx")))


def test_a_domain_that_is_only_named_is_nothing_to_refuse() -> None:
    check(plain(node("Relu", ["x"], ["y"])))


def test_a_model_is_served_and_fetched_only_with_operators_that_both_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"], "h"), node("MurmurHash3", ["n"], ["k"], "hash", domain="com.microsoft"),
             node("Cast", ["h"], ["n"], "cast", to=6), node("Cast", ["k"], ["y"], "back", to=1)]  # fmt: skip
    nodes = [nodes[0], nodes[2], nodes[1], nodes[3]]
    proto = nets.proto(nodes, [value("x", [1, 4])], [value("y", [1, 300])], [normal("w", 4, 300)], domains=DOMAINS)
    path = nets.saved(proto, tmp_path / "net.onnx")
    assert main(["serve", str(path), "--port", "0"]) == 3
    assert "node hash (com.microsoft.MurmurHash3)" in capsys.readouterr().err
    model = load(path, allow_domains=("com.microsoft",))
    engine = open_engine(threads=1)
    with nothing_leaks(), Server([model], engine=engine, port=0) as server:
        cache = tmp_path / "cache"
        with pytest.raises(ModelError, match=r"the graph that came has the node hash .*--allow-domain com.microsoft"):
            Edge(server.address, engine=engine, cache=cache)
        assert main(["pull", "--cloud", server.address, "--cache", str(cache)]) == 3
        assert main(["pull", "--cloud", server.address, "--cache", str(cache), "--allow-domain", "com.microsoft"]) == 0
        with Edge(
            server.address, engine=engine, cache=cache, at="output", models=ModelPolicy(allow_domains=["com.microsoft"])
        ) as edge:
            assert edge.infer(np.ones((1, 4), np.float32)).outputs["y"].shape == (1, 300)
        with pytest.raises(ModelError, match="--allow-domain"):  # what was kept is looked at again
            Edge(server.address, engine=engine, cache=cache)
        attacker = Attacker(server.address)
        attacker.send(int(Kind.GRAPH), 1, {"fingerprint": model.fingerprint})
        assert attacker.receive()[0] == Kind.GRAPH_DATA  # its own operator has allowed it
        attacker.close()


# --- an STFT whose frames have no length ends the process (SIGFPE, ONNX Runtime 1.32) -------------------------------


def stft(*inputs: str, **weights: np.ndarray[Any, Any]) -> Any:
    made = [weight(n, w) for n, w in weights.items()]
    return nets.proto([node("STFT", ["x", *inputs], ["y"], "stft")], [value("x", [1, 64, 1]), value("n", [], 7)],
                      [value("y", None)], [weight("step", np.array(8)), *made])  # fmt: skip


LENGTHS = {"sound": np.array(16), "none": np.array(0), "less": np.array(-4), "ones": np.ones(16, np.float32)}
LENGTHS |= {"nothing": np.ones(0, np.float32)}


@pytest.mark.parametrize(
    ("inputs", "runs"),
    [
        (("step", "", "sound"), True),
        (("step", "ones"), True),
        (("step", "ones", "sound"), True),
        (("step", "", "none"), False),
        (("step", "", "less"), False),
        (("step", "nothing"), False),
        (("step", "", "n"), False),  # as whoever asks says
        (("step",), False),
    ],
)
def test_frames_of_no_length_are_refused(inputs: tuple[str, ...], runs: bool) -> None:
    proto = stft(*inputs, **LENGTHS)
    if runs:
        check(proto)
        return
    with pytest.raises(ModelError, match=r"node stft \(STFT\) without a constant length of its frames"):
        check(proto)


def test_a_length_that_is_made_or_covered_by_another_is_refused() -> None:
    proto = stft("step", "", "zero", sixteen=np.array(16))
    proto.graph.node.insert(0, node("Sub", ["sixteen", "sixteen"], ["zero"], "sub"))
    with pytest.raises(ModelError, match="STFT"):
        check(proto)
    inner = helper.make_graph(
        [node("Sub", ["sound", "sound"], ["length"]), node("STFT", ["x", "step", "", "length"], ["b"], "inner")],
        "then", [], [value("b", None)],
    )  # fmt: skip
    other = helper.make_graph([node("Identity", ["x"], ["o"])], "other", [], [value("o", None)])
    proto = nets.proto(
        [node("If", ["yes"], ["y"], "if", then_branch=inner, else_branch=other)], [value("x", [1, 64, 1])],
        [value("y", None)], [weight("yes", np.array(True)), weight("step", np.array(8)), weight("sound", np.array(16)),
                             weight("length", np.array(16))],
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"node inner \(STFT\)"):
        check(proto)


# --- an output that has no name, of an operator that writes to it all the same, ends the process (SIGSEGV) ----------


@pytest.mark.parametrize("outputs", [["b", "", ""], ["b", "mean", ""], ["b", "", "variance"]])
def test_a_batch_normalization_names_what_it_writes(outputs: list[str]) -> None:
    statistics = [weight(n, np.ones(4, np.float32)) for n in ("scale", "bias", "mean_before", "variance_before")]
    normalised = node("BatchNormalization", ["x", *(w.name for w in statistics)], outputs, "norm", training_mode=1)
    outer = [normalised, node("Identity", ["b"], ["y"])]
    with pytest.raises(ModelError, match=r"node norm \(BatchNormalization\) with an output without a name"):
        check(plain(*outer, weights=statistics))


@pytest.mark.parametrize("outputs", [["", "b"], ["b", ""]])
def test_a_loop_names_what_it_carries(outputs: list[str]) -> None:
    body = helper.make_graph(
        [node("Identity", ["going"], ["goes_on"]), node("Identity", ["a"], ["c"]), node("Identity", ["a"], ["each"])],
        "body", [value("turn", [], 7), value("going", [], 9), value("a", [1, 4])],
        [value("goes_on", [], 9), value("c", [1, 4]), value("each", [1, 4])],
    )  # fmt: skip
    turns = weight("turns", np.int64(2))
    loop = node("Loop", ["turns", "", "x"], outputs, "loop", body=body)
    with pytest.raises(ModelError, match=r"node loop \(Loop\) with an output without a name"):
        check(plain(loop, node("Identity", ["b"], ["y"]), weights=[turns]))
