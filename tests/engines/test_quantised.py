"""int8 activations become uint8 in a copy: same values, nothing else touched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import nets
from nets import node, value, weight
from splitpoint.engines.quantised import rewrites_int8, shifted, with_uint8_activations
from splitpoint.errors import InputError

INT8 = TensorProto.INT8


def dequantising(*more: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), zero: str = "z") -> onnx.ModelProto:
    nodes = [
        node("DequantizeLinear", ["x", "s", zero], ["f"], name="dq"),
        node("Relu", ["f"], ["r"], name="relu"),
        node("QuantizeLinear", ["r", "s", zero], ["y"], name="q"),
        *more,
    ]
    return nets.proto(
        nodes,
        [value("x", [1, 4], INT8)],
        [value(o, [1, 4], INT8) for o in outputs],
        [weight("s", 0.5, np.float32), weight("z", -3, np.int8)],
    )


def test_shifting_keeps_the_order_and_goes_back() -> None:
    every = np.arange(-128, 128, dtype=np.int8)
    assert shifted(every).dtype == np.uint8
    assert shifted(every).tolist() == list(range(256))
    assert shifted(shifted(every)).tolist() == every.tolist()


def test_boundaries_become_uint8_and_sessions_do_not_show_it() -> None:
    proto = dequantising()
    before = proto.SerializeToString()
    made, ends = with_uint8_activations(proto)
    assert proto.SerializeToString() == before
    assert ends == {"x", "y"}
    assert [v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)] == [TensorProto.UINT8] * 2
    onnx.checker.check_model(made, full_check=True)
    session = nets.ENGINE.compile(nets.load(proto).whole())
    x = np.array([[-128, -4, 0, 127]], np.int8)
    got = session.run({"x": x})["y"]
    assert got.dtype == np.int8
    assert got.tolist() == np.maximum(x, -3).tolist()
    for wrong in (x.astype(np.uint8), x.astype(np.float32), x[:, :3]):
        with pytest.raises(InputError, match=r"input x must be int8\[1,4\]"):
            session.run({"x": wrong})


@pytest.mark.parametrize("reader", ["Identity", "Neg"])
def test_an_activation_that_something_else_reads_stays(reader: str) -> None:
    """Its values as numbers matter there."""
    _, ends = with_uint8_activations(dequantising(node(reader, ["x"], ["i"], name="other"), outputs=("y", "i")))
    assert ends == {"y"}
    _, ends = with_uint8_activations(dequantising(node(reader, ["y"], ["i"], name="other"), outputs=("y", "i")))
    assert ends == {"x"}


def test_a_model_without_int8_activations_is_left_alone() -> None:
    proto = nets.residual()
    assert with_uint8_activations(proto) == (proto, frozenset())
    assert with_uint8_activations(proto)[0] is proto


def test_only_the_cpu_of_an_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, rewrites in (("x86_64", True), ("AMD64", True), ("aarch64", False), ("arm64", False)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert rewrites_int8("cpu") is rewrites
        assert not rewrites_int8("cuda")
