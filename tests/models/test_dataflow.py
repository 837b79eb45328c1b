"""What bodies capture, what depends on values, and the order of nodes."""

from __future__ import annotations

import pytest
from onnx import helper

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError
from splitpoint.graph import Graph
from splitpoint.models.dataflow import captures


def placed(graph: Graph) -> list[str]:
    return [graph.nodes[i].name for i in graph.placed]


def test_captures_of_nested_bodies_are_inputs_of_the_node() -> None:
    graph = nets.load(nets.branching()).graph
    (branch,) = (n for n in graph.nodes if n.op == "If")
    # Weights (w, scale) are no inputs; "half", "inner", "high" are the bodies' own.
    assert set(branch.inputs) == {"cond", "mean", "h", "x", "late"}
    assert branch.params == 16 + 1
    proto = nets.looping().graph.node
    assert set(captures(next(n for n in proto if n.op_type == "Loop"))) == {"w", "h", "x"}
    assert captures(next(n for n in proto if n.op_type == "Scan")) == ["gain"]


def test_random_numbers_are_drawn_once() -> None:
    """A copied RandomNormal would give each half a draw of its own; one in a body is no different."""
    draw = helper.make_graph([node("RandomNormal", [], ["d"], shape=[4])], "then", [], [value("d", [4])])
    other = helper.make_graph([node("RandomUniform", [], ["u"], shape=[4])], "else", [], [value("u", [4])])
    graph = nets.load(
        nets.proto(
            [
                node("RandomNormal", [], ["noise"], name="noise", shape=[4]),
                node("If", ["yes"], ["more"], name="if", then_branch=draw, else_branch=other),
                node("Add", ["x", "noise"], ["a"], name="a"),
                node("Add", ["a", "more"], ["b"], name="b"),
                node("Add", ["b", "noise"], ["y"], name="y"),
            ],
            [value("x", [4])],
            [value("y", [4])],
            [weight("yes", True)],
        )
    ).graph
    assert placed(graph) == ["noise", "if", "a", "b", "y"]
    assert {t.name for t in graph.cut("b").crossing} == {"b", "noise"}


def test_a_cycle_is_refused() -> None:
    proto = nets.proto(
        [node("Add", ["x", "b"], ["a"], name="one"), node("Relu", ["a"], ["b"], name="two")],
        [value("x", [2])],
        [value("b", [2])],
    )
    with pytest.raises(ModelError, match="cycle through node one"):
        nets.load(proto)
