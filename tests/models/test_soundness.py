"""Graphs that somebody tampered with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import linear, raw

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError
from splitpoint.models import reading, soundness
from splitpoint.models.model import from_graph
from splitpoint.models.weights import ModelWeights


def tampered(change: Any) -> bytes:
    proto = reading.parse_skeleton(nets.load(linear(raw())).graph_bytes())
    change(proto)
    return bytes(proto.SerializeToString())


def _points_to_a_file(p: Any) -> None:
    p.graph.initializer[0].external_data[0].value = "/etc/passwd"


def _also_has_an_offset(p: Any) -> None:
    p.graph.initializer[0].external_data.add(key="offset", value="1")


def _hides_in_an_attribute(p: Any) -> None:
    bad = TensorProto(name="v", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    p.graph.node.insert(0, node("Constant", [], ["stolen"], name="thief", value=bad))


def _hides_in_a_sparse_attribute(p: Any) -> None:
    bad = TensorProto(name="v", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    sparse = onnx.SparseTensorProto(values=bad, indices=weight("", [0, 1, 2, 3], np.int64), dims=[4])
    p.graph.node.insert(0, node("Constant", [], ["stolen"], name="thief", sparse_value=sparse))


def _hides_in_a_body(p: Any) -> None:
    bad = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    body = helper.make_graph([node("Identity", ["b"], ["o"])], "b", [], [value("o", None)], [bad])
    p.graph.initializer.append(weight("yes", True))
    p.graph.node.insert(0, node("If", ["yes"], ["s"], name="thief", then_branch=body, else_branch=body))


def _hides_in_a_node_of_a_body(p: Any) -> None:
    bad = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    body = helper.make_graph([node("Constant", [], ["o"], value=bad)], "b", [], [value("o", None)])
    p.graph.initializer.append(weight("yes", True))
    p.graph.node.insert(0, node("If", ["yes"], ["s"], name="thief", then_branch=body, else_branch=body))


def _has_functions(p: Any) -> None:
    p.functions.append(helper.make_function("d", "F", [], [], [], [helper.make_opsetid("", 17)]))


def _is_unsorted(p: Any) -> None:
    p.graph.node.append(type(p.graph.node[0]).FromString(p.graph.node[0].SerializeToString()))
    del p.graph.node[0]


def _has_the_wrong_size(p: Any) -> None:
    p.graph.initializer.append(weight("more", [1.0, 2.0], np.float32))
    p.graph.initializer[-1].dims[0] = 1 << 40


def _has_negative_dimensions(p: Any) -> None:
    p.graph.initializer[0].dims[0] = -64


def _defines_twice(p: Any) -> None:
    p.graph.node[1].output[0] = "m"


def _has_an_unknown_type(p: Any) -> None:
    p.graph.initializer[0].data_type = 99


def _has_no_names(p: Any) -> None:
    p.graph.node[0].name = ""


def _has_sparse_weights(p: Any) -> None:
    p.graph.sparse_initializer.add()


def _writes_on_the_terminal(p: Any) -> None:
    p.graph.node[0].name = "\x1b[2J"


def _writes_on_the_terminal_as_a_layer(p: Any) -> None:
    p.graph.node[0].metadata_props.add(key="splitpoint.layer", value="a\nb")


def _has_no_output(p: Any) -> None:
    p.graph.output[0].name = "nowhere"


@pytest.mark.parametrize(
    "change",
    [
        _points_to_a_file, _also_has_an_offset, _hides_in_an_attribute, _hides_in_a_sparse_attribute, _hides_in_a_body,
        _hides_in_a_node_of_a_body,
        _has_functions, _is_unsorted, _has_the_wrong_size, _has_negative_dimensions, _defines_twice,
        _has_an_unknown_type, _has_no_names, _has_sparse_weights, _has_no_output,
        _writes_on_the_terminal, _writes_on_the_terminal_as_a_layer,
    ],
)  # fmt: skip
def test_a_tampered_graph_is_refused(change: Any) -> None:
    with pytest.raises(ModelError) as caught:
        from_graph(tampered(change), ModelWeights(), name="net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.ClearField("opset_import"), "declares no operator set"),
        (lambda p: p.graph.ClearField("output"), "has no outputs"),
        (lambda p: p.graph.initializer[0].dims.__setitem__(0, 7), r"648 bytes, its dimensions \[7, 3, 3, 3\] need 756"),
        (lambda p: p.graph.initializer[0].ClearField("raw_data"), "weight w1 is broken|has 0 bytes"),
        (lambda p: p.graph.node[1].input.__setitem__(0, "zz"), r"node act \(Relu\) reads tensor zz, which nothing"),
        (lambda p: p.graph.node.extend([node("Neg", ["x"], ["z"])] * 2), "tensor z is defined twice"),
        (lambda p: p.graph.node[1].output.__setitem__(0, "c1"), "cycle through node act"),
        (lambda p: p.graph.output[0].__setattr__("name", "zz"), "nothing makes its output zz"),
        (lambda p: p.graph.output.add().CopyFrom(p.graph.output[0]), "lists an output twice"),
        (lambda p: p.graph.input[0].__setattr__("name", ""), "an input without a name"),
    ],
)  # fmt: skip
def test_broken_graphs_say_what_is_wrong(change: Any, message: str) -> None:
    proto = nets.residual()
    change(proto)
    with pytest.raises(ModelError, match=message):
        nets.load(proto)


def test_a_duplicate_initializer_is_refused() -> None:
    proto = nets.residual()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="tensor w1 is defined twice"):
        nets.load(proto)


def test_soundness_knows_every_element_type() -> None:
    for name, number in TensorProto.DataType.items():
        tensor = TensorProto(name="t", data_type=number, dims=[3, 3])
        if name == "UNDEFINED":
            with pytest.raises(ModelError):
                soundness.nbytes(tensor)
        elif name == "STRING":
            assert soundness.nbytes(tensor) == 0
        else:
            assert soundness.nbytes(tensor) > 0
