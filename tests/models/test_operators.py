"""Operators of other domains: which are run, which are named and refused."""

from __future__ import annotations

import pytest
from onnx_files import all_equal, raw

import nets
from nets import node, value
from splitpoint.errors import ModelError, SplitpointError


def test_operators_of_other_domains_run_and_their_shapes_are_measured() -> None:
    nodes = [
        node("Gelu", ["x"], ["g"], name="gelu", domain="com.microsoft"),
        node("MatMul", ["g", "w"], ["y"], name="fc"),
    ]
    proto = nets.proto(nodes, [value("x", ["batch", 64])], [value("y", None)], [raw()], domains={"com.microsoft": 1})
    model = nets.load(proto)
    assert model.graph.nodes[0].op == "com.microsoft.Gelu"
    assert [t.type for t in model.outputs] == ["float32[batch,32]"]
    assert model.specs["g"].type == "float32[batch,64]"
    all_equal(model)


def test_unknown_operators_are_named() -> None:
    nodes = [node("Frobnicate", ["x"], ["g"], domain="org.acme"), node("Relu", ["g"], ["y"])]
    proto = nets.proto(nodes, [value("x", [4])], [value("y", [4])], domains={"org.acme": 1})
    with pytest.raises(ModelError, match="Frobnicate"):
        nets.load(proto)
    standard = nets.proto([node("Frobnicate", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    with pytest.raises(SplitpointError, match="Frobnicate"):
        nets.ENGINE.compile(nets.load(standard).whole())
