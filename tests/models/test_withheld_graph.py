"""A model's graph without the weights of its tail: the same model, and none of its numbers."""

from __future__ import annotations

import numpy as np

import nets
from nets import node, value
from splitpoint.models.fingerprint import fingerprint
from splitpoint.models.withheld_graph import FEW, inline_weights, weights_in_attributes, without_tail_weights


def chain() -> nets.Proto:
    """Two products, each with a weight that lies in the graph."""
    return nets.proto(
        [node("MatMul", ["x", "w1"], ["h"], name="first"), node("MatMul", ["h", "w2"], ["y"], name="second")],
        [value("x", ["batch", 4])],
        [value("y", ["batch", 4])],
        [nets.normal("w1", 4, 4), nets.normal("w2", 4, 4)],
    )


def test_the_tail_s_weights_are_hashes_and_the_model_is_the_same() -> None:
    model = nets.load(chain())
    head = model.head(model.graph.cut("first")).proto
    told = without_tail_weights(model.skeleton, head)
    assert fingerprint(told) == model.fingerprint
    held = {t.name: t.raw_data for t in told.graph.initializer}
    whole = {t.name: t.raw_data for t in model.skeleton.graph.initializer}
    assert held["w1"] == whole["w1"]
    assert whole["w2"]
    assert not held["w2"]
    assert sorted(inline_weights(model.skeleton.graph).values()) == sorted(whole.values())
    assert list(inline_weights(told.graph).values()) == [whole["w1"]]


def test_weights_in_the_attributes_of_the_tail_are_named() -> None:
    proto = chain()
    model = nets.load(proto)
    head = model.head(model.graph.cut("first")).proto
    assert weights_in_attributes(model.skeleton, head) == ""
    many = node("Constant", [], ["c"], name="numbers", value_floats=np.zeros(FEW + 1).tolist())
    model.skeleton.graph.node.append(many)
    assert weights_in_attributes(model.skeleton, head) == f"numbers (Constant), {FEW + 1} of them"
    assert weights_in_attributes(model.skeleton, model.skeleton) == "", "the device has them anyway"
