"""What is placed, what is copied to both sides, what stays together, and which layer a node belongs to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError
from splitpoint.graph import Graph
from splitpoint.segments import verify


def placed(graph: Graph) -> list[str]:
    return [graph.nodes[i].name for i in graph.placed]


def crossing(graph: Graph) -> list[str]:
    """What crosses at each prefix, as ``a + b [shapes]``."""
    return [
        " + ".join(t.name for t in c.crossing) + (f" [{' '.join(c.shapes)}]" if c.shapes else "")
        for c in graph.prefixes()
    ]


def all_equal(model: Any) -> bool:
    checks = list(verify(model, nets.ENGINE, model.graph.prefixes()))
    assert not [str(c) for c in checks if not c.ok]
    return len(checks) > 2


def test_shape_arithmetic_is_copied_and_travels_as_a_vector() -> None:
    model = nets.load(nets.flattening())
    assert placed(model.graph) == ["conv", "relu", "view", "fc"]
    assert crossing(model.graph) == ["x", "c1 [s]", "r1 [s]", "flat", ""]
    assert len(model.graph.chain()) == 5
    assert all_equal(model)


def test_constants_and_the_shapes_of_what_stays_behind() -> None:
    model = nets.load(nets.wide_shapes())
    assert placed(model.graph) == ["first", "mean", "tanh", "wide", "add"]
    assert crossing(model.graph) == ["x", "a", "m [sa size]", "t [sa size]", "wide [sa size]", ""]
    assert [model.specs[t].type for t in ("sa", "size")] == ["int64[2]", "int64[]"]
    assert all_equal(model)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("net", [nets.flattening, nets.wide_shapes, nets.residual, nets.sequences])
def test_every_cut_serves_any_batch(net: Any, batch: int) -> None:
    model = nets.load(net())
    rng = np.random.default_rng(0)
    shape = tuple(int(d) for d in model.inputs[0].bind({"batch": batch}).shape)
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    checks = list(verify(model, nets.ENGINE, model.graph.prefixes(), samples))
    assert [str(c) for c in checks if not c.ok] == []


@pytest.mark.parametrize("net", [nets.branching, nets.looping])
def test_bodies_stay_whole_with_their_captures(net: Any) -> None:
    model = nets.load(net())
    assert all_equal(model)


def test_an_input_that_only_a_body_reads_crosses() -> None:
    then = helper.make_graph([node("Neg", ["b"], ["n"])], "then", [], [value("n", None)])
    other = helper.make_graph([node("Abs", ["b"], ["p"])], "else", [], [value("p", None)])
    model = nets.load(
        nets.proto(
            [
                node("ReduceSum", ["a"], ["s"], name="sum", keepdims=0),
                node("Greater", ["s", "zero"], ["cond"], name="test"),
                node("If", ["cond"], ["c"], name="if", then_branch=then, else_branch=other),
                node("Mul", ["c", "s"], ["y"], name="mul"),
            ],
            [value("a", [4]), value("b", [4])],
            [value("y", None)],
            [weight("zero", 0.0, np.float32)],
        )
    )
    assert crossing(model.graph) == ["a + b", "b + s", "b + s + cond", "s + c", ""]
    assert all_equal(model)


def test_a_branch_on_a_shape_is_copied_where_it_makes_a_constant() -> None:
    """An If whose condition is shape arithmetic and whose bodies read no data depends on no input's values."""
    then = helper.make_graph([node("Identity", ["two"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph([node("Identity", ["three"], ["e"])], "else", [], [value("e", None)])
    model = nets.load(
        nets.proto(
            [
                node("Relu", ["x"], ["r"], name="relu"),
                node("ReduceMax", ["r"], ["m"], name="max", keepdims=0),
                node("Size", ["r"], ["n"], name="size"),
                node("Greater", ["n", "six"], ["big"], name="big"),
                node("If", ["big"], ["k"], name="if", then_branch=then, else_branch=other),
                node("Mul", ["m", "k"], ["y"], name="mul"),
            ],
            [value("x", [2, 4])],
            [value("y", None)],
            [weight("six", 6, np.int64), weight("two", 2.0, np.float32), weight("three", 3.0, np.float32)],
        )
    )
    assert placed(model.graph) == ["relu", "max", "mul"]
    assert crossing(model.graph) == ["x", "r", "m [n]", ""]
    assert all_equal(model)


def test_passthrough_inner_and_constant_outputs() -> None:
    model = nets.load(nets.passing())
    assert [t.name for t in model.outputs] == ["a", "same", "inner", "y", "size", "seven", "w"]
    cuts = {c.name: c for c in model.graph.prefixes()}
    # Named as a prefix: `add` alone would leave the Identity that copies the input on the server.
    behind_add = next(c for c in model.graph.prefixes() if "inner" in c.results)
    assert cuts["input"].results == ("a", "seven", "w")
    assert behind_add.results == ("a", "same", "inner", "seven", "w")
    assert [t.name for t in behind_add.crossing] == ["inner"]  # a result and a crossing tensor: made once
    assert [t.name for t in model.head(behind_add).outputs].count("inner") == 1
    assert "size" not in behind_add.results  # or the head would run the whole net to know a shape
    assert len(model.head(behind_add).proto.graph.node) == 2
    assert all_equal(model)


def test_a_model_that_only_passes_its_input_through() -> None:
    model = nets.load(nets.proto([node("Relu", ["x"], ["dead"])], [value("x", [2])], [value("x", [2])]))
    for cut in model.graph.prefixes():
        assert cut.results == ("x",)
    assert [c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes())] == [True, True]


# --- groups -----------------------------------------------------------------------------------------------------------


def quantised() -> Any:
    """x → Q → DQ → conv → relu → Q → DQ → (conv → Q → DQ) + → Q → DQ → pool → y, by hand; scales as weights."""

    def pair(source: str, name: str, scale: float) -> list[Any]:
        return [
            node("QuantizeLinear", [source, f"{name}.s", "z"], [f"{name}.q"], name=f"{name}.quantize"),
            node("DequantizeLinear", [f"{name}.q", f"{name}.s", "z"], [f"{name}.f"], name=f"{name}.dequantize"),
        ]  # fmt: skip

    return nets.proto(
        [
            *pair("x", "in", 0.03),
            node("Conv", ["in.f", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], name="relu1"),
            *pair("r1", "a", 0.03),
            node("Conv", ["a.f", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
            *pair("c2", "b", 0.05),
            node("Add", ["a.f", "b.f"], ["sum"], name="add"),
            *pair("sum", "c", 0.05),
            node("GlobalAveragePool", ["c.f"], ["y"], name="pool"),
        ],
        [value("x", [1, 3, 6, 6])],
        [value("y", None)],
        [
            nets.normal("w1", 4, 3, 3, 3),
            nets.normal("w2", 4, 4, 3, 3),
            weight("z", 0, np.int8),
            *(weight(f"{n}.s", s, np.float32) for n, s in (("in", 0.03), ("a", 0.03), ("b", 0.05), ("c", 0.05))),
        ],
    )


def test_quantised_operators_stay_whole_and_integers_cross() -> None:
    model = nets.load(quantised())
    graph = model.graph
    assert [graph.nodes[i].name for i in graph.placed if graph.nodes[i].op == "DequantizeLinear"] == []
    steps = [[graph.nodes[i].name for i in step] for step in graph.order]
    assert steps == [
        ["in.quantize"],
        ["conv1", "relu1", "a.quantize"],
        ["conv2", "b.quantize"],
        ["add", "c.quantize"],
        ["pool"],
    ]
    assert crossing(graph) == ["x", "in.q", "a.q", "a.q + b.q", "c.q", ""]
    assert {t.dtype for c in graph.prefixes()[1:] for t in c.crossing} == {"int8"}
    assert graph.cut("conv1") == graph.cut("relu1").__class__(**{
        f: getattr(graph.cut("a.quantize"), f) if f != "name" else "conv1"
        for f in ("name", "nodes", "crossing", "shapes", "results", "index")
    })  # fmt: skip
    # The shape of what a copied DequantizeLinear makes, and a cut named by one.
    assert graph.cut("a.dequantize").nodes == graph.cut("conv1").nodes
    assert all_equal(model)


def test_a_tensor_used_beside_its_quantisation_may_cross() -> None:
    """Where the float is used too, conv and its QuantizeLinear need not stay together."""
    model = nets.load(
        nets.proto(
            [
                node("MatMul", ["x", "w"], ["m"], name="fc"),
                node("QuantizeLinear", ["m", "s", "z"], ["q"], name="quantize"),
                node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
                node("Sub", ["m", "d"], ["y"], name="rounding"),
            ],
            [value("x", [2, 4])],
            [value("y", None)],
            [nets.normal("w", 4, 4), weight("s", 0.5, np.float32), weight("z", 0, np.int8)],
        )
    )
    assert crossing(model.graph) == ["x", "m", "m + q", ""]
    assert all_equal(model)


def test_sequences_stay_on_one_side() -> None:
    model = nets.load(nets.sequences())
    graph = model.graph
    assert [[graph.nodes[i].name for i in s] for s in graph.order] == [
        ["relu"],
        ["split", "at", "join"],
        ["fc"],
        ["add"],
    ]
    assert all_equal(model)


# --- names ------------------------------------------------------------------------------------------------------------


def test_node_names_are_unique_even_where_the_file_s_are_not() -> None:
    model = nets.load(
        nets.proto(
            [
                node("Relu", ["x"], ["a"], name="same"),
                node("Neg", ["a"], ["b"], name="same"),
                node("Abs", ["b"], ["c"]),
                node("Relu", ["c"], ["d"], name="Neg_1"),
                node("Exp", ["d"], ["y"]),
            ],
            [value("x", [16])],
            [value("y", [16])],
        )
    )
    names = [n.name for n in model.graph.nodes]
    assert len(set(names)) == 5
    assert names == ["same", "Neg_1_", "Abs_2", "Neg_1", "Exp_4"]  # what a file calls a node stays its name
    assert all_equal(model)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3"])
def test_broken_aliases_are_refused(text: str) -> None:
    model = nets.residual()
    model.metadata_props.add(key="splitpoint.aliases", value=text)
    with pytest.raises(ModelError, match=r"splitpoint.aliases metadata is not"):
        nets.load(model)


def test_aliases_name_what_was_folded() -> None:
    model = nets.residual()
    aliases = {"bn1": "stem", "gone": "no such node", "act": "stem"}
    model.metadata_props.add(key="splitpoint.aliases", value=json.dumps(aliases))
    graph = nets.load(model).graph
    assert graph.aliases == {"bn1": "stem"}  # a node keeps its own name
    assert graph.cut("bn1").nodes == graph.cut("stem").nodes
    assert graph.cut("bn1").name == "bn1"


def test_params_count_weights_and_not_shapes() -> None:
    graph = nets.load(nets.flattening()).graph
    assert {n.name: n.params for n in graph.nodes if n.placed} == {
        "conv": 5 * 27, "relu": 0, "view": 0, "fc": 320,
    }  # fmt: skip
    graph = nets.load(nets.wide_shapes()).graph
    assert {n.name: n.params for n in graph.nodes if n.placed}["first"] == 32  # through the Cast


def test_outputs_that_are_no_tensors_are_refused_with_a_way_out() -> None:
    model = nets.proto(
        [node("SplitToSequence", ["x"], ["y"], axis=0)],
        [value("x", [2, 4])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    with pytest.raises(ModelError, match=r"output y is a sequence.*take it .* out of the model"):
        nets.load(model)
    text = nets.proto(
        [node("StringNormalizer", ["s"], ["t"]), node("Relu", ["x"], ["y"])],
        [value("x", [2])],
        [value("y", [2]), value("t", None, TensorProto.STRING)],
        [helper.make_tensor("s", TensorProto.STRING, [1], ["text"])],
    )
    with pytest.raises(ModelError, match="output t is"):
        nets.load(text)


def test_text_stays_on_one_side() -> None:
    model = nets.load(
        nets.proto(
            [
                node("Relu", ["x"], ["r"], name="relu"),
                node("Round", ["r"], ["i"], name="round"),
                node("Cast", ["i"], ["t"], name="text", to=TensorProto.STRING),
                node("LabelEncoder", ["t"], ["n"], name="label", domain="ai.onnx.ml",
                     keys_strings=["0", "1", "2"], values_floats=[2.5, 0.5, 7.0], default_float=0.0),
                node("Mul", ["n", "n"], ["y"], name="mul"),
            ],
            [value("x", [16])],
            [value("y", None)],
            domains={"ai.onnx.ml": 2},
        )
    )  # fmt: skip
    assert crossing(model.graph) == ["x", "r", "i", "n", ""]
    assert "t" not in model.specs
    assert all_equal(model)


def test_skeletons_of_unsorted_files_are_sorted() -> None:
    proto = nets.residual()
    nodes = [type(n).FromString(n.SerializeToString()) for n in reversed(proto.graph.node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = nets.load(proto)
    assert model.fingerprint == nets.load(nets.residual()).fingerprint
    assert all_equal(model)
    # The captures of a body count, too.
    tangled = nets.branching()
    nodes = [type(n).FromString(n.SerializeToString()) for n in reversed(tangled.graph.node)]
    del tangled.graph.node[:]
    tangled.graph.node.extend(nodes)
    assert all_equal(nets.load(tangled))
