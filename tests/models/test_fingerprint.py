"""A fingerprint is the same for the same computation, however it is stored, and another for any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from nets import node, value, weight
from splitpoint.models.fingerprint import fingerprint
from splitpoint.models.model import from_graph


def of(proto: Any) -> str:
    return nets.load(proto).fingerprint


def changed(net: Callable[[], Any], change: Callable[[Any], object]) -> str:
    proto = net()
    change(proto)
    return of(proto)


def test_it_is_64_hex_digits_and_known() -> None:
    """Written down: a new release that changes it would leave every cached model and pinned hash behind."""
    proto = nets.proto(
        [node("Mul", ["x", "w"], ["y"], name="mul")],
        [value("x", ["batch", 2])],
        [value("y", None)],
        [weight("w", np.array([1, 2], np.float32))],
    )
    assert of(proto) == "2daa95ee98671c022a188ef7d9a1951c1e5e329001003bce28d06e15e07f2611"


def _rename_nodes(p: Any) -> None:
    for i, n in enumerate(p.graph.node):
        n.name = f"other{i}"


def _reverse_attributes(p: Any) -> None:
    for n in p.graph.node:
        attributes = [type(a).FromString(a.SerializeToString()) for a in reversed(n.attribute)]
        del n.attribute[:]
        n.attribute.extend(attributes)


def _document(p: Any) -> None:
    p.doc_string = p.graph.doc_string = p.graph.node[0].doc_string = "words"
    p.metadata_props.add(key="author", value="me")
    p.graph.node[0].metadata_props.add(key="splitpoint.layer", value="l")
    p.graph.value_info.append(value("r1", [1, 6, 8, 8]))
    p.producer_name, p.producer_version, p.model_version, p.graph.name = "p", "1", 3, "g"


def _typed_weights(p: Any) -> None:
    for t in p.graph.initializer:
        array = numpy_helper.to_array(t)
        t.CopyFrom(helper.make_tensor(t.name, t.data_type, array.shape, array.ravel().tolist()))


def _reorder_weights(p: Any) -> None:
    tensors = [type(t).FromString(t.SerializeToString()) for t in reversed(p.graph.initializer)]
    del p.graph.initializer[:]
    p.graph.initializer.extend(tensors)


def _spell_out_the_domain(p: Any) -> None:
    p.opset_import[0].domain = "ai.onnx"
    for n in p.graph.node:
        n.domain = "ai.onnx"


def _declare_other_outputs(p: Any) -> None:
    p.graph.output[0].CopyFrom(value("y", None))


def _newer_ir(p: Any) -> None:
    p.ir_version = 9


@pytest.mark.parametrize(
    "change",
    [
        _rename_nodes, _reverse_attributes, _document, _typed_weights, _reorder_weights, _spell_out_the_domain,
        _declare_other_outputs, _newer_ir,
    ],
)  # fmt: skip
def test_what_does_not_change_it(change: Callable[[Any], None]) -> None:
    assert changed(nets.residual, change) == of(nets.residual())


def _one_weight(p: Any) -> None:
    array = numpy_helper.to_array(p.graph.initializer[2]).copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.float32(9))
    p.graph.initializer[2].CopyFrom(weight(p.graph.initializer[2].name, array))


def _one_small_weight(p: Any) -> None:
    array = numpy_helper.to_array(p.graph.initializer[1]).copy()
    array[0] += 1
    p.graph.initializer[1].CopyFrom(weight(p.graph.initializer[1].name, array))


def _one_attribute(p: Any) -> None:
    p.graph.node[0].attribute[0].ints[3] = 2


def _one_wire(p: Any) -> None:
    p.graph.node[4].input[0] = "c1"


def _swap_inputs(p: Any) -> None:
    p.graph.node[4].input[0], p.graph.node[4].input[1] = p.graph.node[4].input[1], p.graph.node[4].input[0]


def _another_operator(p: Any) -> None:
    p.graph.node[1].op_type = "Sigmoid"


def _another_domain(p: Any) -> None:
    p.graph.node[1].op_type, p.graph.node[1].domain = "Gelu", "com.microsoft"
    p.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _another_opset(p: Any) -> None:
    p.opset_import[0].version = 18


def _fix_the_batch(p: Any) -> None:
    p.graph.input[0].CopyFrom(value("x", [1, 3, 8, 8]))


def _rename_a_tensor(p: Any) -> None:
    p.graph.node[0].output[0] = p.graph.node[1].input[0] = "other"


def _one_output_more(p: Any) -> None:
    p.graph.output.append(value("flat", None))


def _reshape_a_weight(p: Any) -> None:
    p.graph.initializer[4].dims.insert(0, 1)


def test_what_changes_it() -> None:
    changes = [
        _one_weight, _one_small_weight, _one_attribute, _one_wire, _swap_inputs, _another_operator,
        _another_domain, _another_opset, _fix_the_batch, _rename_a_tensor, _one_output_more, _reshape_a_weight,
    ]  # fmt: skip
    found = {change.__name__: changed(nets.residual, change) for change in changes}
    assert len({of(nets.residual()), *found.values()}) == len(changes) + 1


def _weight_in_a_body(p: Any) -> None:
    (branch,) = (n for n in p.graph.node if n.op_type == "If")
    then = next(a.g for a in branch.attribute if a.name == "then_branch")
    then.initializer[0].CopyFrom(weight("half", 0.25, np.float32))


def _wire_in_a_body(p: Any) -> None:
    (branch,) = (n for n in p.graph.node if n.op_type == "If")
    inner = next(n for a in branch.attribute for n in a.g.node if n.op_type == "If")
    inner.attribute[0].g.node[0].input[0] = "late"


def test_bodies_count() -> None:
    found = {changed(nets.branching, c) for c in (_weight_in_a_body, _wire_in_a_body)} | {of(nets.branching())}
    assert len(found) == 3


def test_lengths_are_part_of_the_hash() -> None:
    """[a][bc] is not [ab][c], a string is not a number, a list is not its items."""

    def with_attribute(name: str, given: object) -> str:
        made = node("Custom", ["x"], ["y"], name="n", domain="acme", **{name: given})
        proto = nets.proto([made], [value("x", [1])], [value("y", [1])], domains={"acme": 1})
        return fingerprint(proto)

    values = ["12", 12, 12.0, [12], [1, 2], [12.0], ["1", "2"], ["12"], b"1\x002", weight("", [12], np.int64)]
    assert len({with_attribute("a", v) for v in values}) == len(values)
    assert with_attribute("ab", "c") != with_attribute("a", "bc")


def test_text_weights_count() -> None:
    def labelled(*texts: str) -> str:
        made = [node("LabelEncoder", ["t"], ["n"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]),
                node("ReduceSum", ["n"], ["s"], keepdims=0), node("Mul", ["x", "s"], ["y"])]  # fmt: skip
        tensor = helper.make_tensor("t", TensorProto.STRING, [len(texts)], list(texts))
        return of(nets.proto(made, [value("x", [2])], [value("y", None)], [tensor], domains={"ai.onnx.ml": 2}))

    assert len({labelled("a", "b"), labelled("ab", ""), labelled("a"), labelled("a", "c")}) == 4


@pytest.mark.parametrize("net", [nets.residual, nets.branching, nets.looping, nets.measured, nets.passing])
def test_it_survives_the_wire(net: Callable[[], Any]) -> None:
    model = nets.load(net())
    assert from_graph(model.graph_bytes(), model.weights, name="net").fingerprint == model.fingerprint
    assert nets.load(net()).graph_bytes() == model.graph_bytes()
