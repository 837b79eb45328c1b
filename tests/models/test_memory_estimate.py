"""What a segment takes is known before it runs; and a segment runs apart as it runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_node

import nets
from splitpoint.models import load
from splitpoint.models.dataflow import reads
from splitpoint.models.memory_estimate import Work
from splitpoint.models.model import Model, Segment
from splitpoint.models.shapes import run_once


def held(segment: Segment, shapes: Mapping[str, Sequence[int]]) -> int:
    """The most bytes alive at once, by a run of the segment that measures every tensor."""
    graph = segment.proto.graph
    last = {t: k for k, node in enumerate(graph.node) for t in reads(node)}
    last |= {o.name: len(graph.node) for o in graph.output}
    inputs = [
        t.bind({d: s for d, s in zip(t.shape, shapes[t.name], strict=True) if isinstance(d, str)})
        for t in segment.inputs
    ]
    made = [o for node in graph.node for o in node.output if o in last]
    arrays, _ = run_once(segment.proto, segment.weights, {}, inputs, made)
    born = {o: k for k, node in enumerate(graph.node) for o in node.output} | {t.name: 0 for t in inputs}
    sizes = {n: a.nbytes for n, a in arrays.items() if a is not None} | {t.name: t.nbytes for t in inputs}
    return max(sum(n for t, n in sizes.items() if born[t] <= k <= last.get(t, born[t])) for k in range(len(graph.node)))


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("name", ["zoo:lenet5", "residual", "flattening"])
def test_no_less_than_is_held_and_not_much_more(name: str, batch: int) -> None:
    model = load(name) if name.startswith("zoo:") else nets.load(getattr(nets, name)())
    for cut in model.graph.chain():
        segment = model.tail(cut)
        work = Work.of(segment)
        if not segment.outputs or cut.shapes:  # a shape that is fed is a value that decides
            continue
        assert work is not None
        shapes = {t.name: [batch if isinstance(d, str) else d for d in t.shape] for t in segment.inputs}
        true, told = held(segment, shapes), work.peak(shapes.values()) / 2
        assert true <= told <= 1.5 * true + 4096, (cut.name, true, told)
        assert work.least <= work.peak(shapes.values())


def test_rows_that_merge_with_another_dimension_are_reckoned() -> None:
    """[batch, 6] as [batch * 2, 3]: no dimension of it is the batch."""
    model = nets.load(
        nets.proto(
            [make_node("Reshape", ["x", "to"], ["m"], name="view"), make_node("Relu", ["m"], ["y"], name="relu")],
            [nets.value("x", ["batch", 6])],
            [nets.value("y", None)],
            [nets.weight("to", [-1, 3], np.int64)],
        )
    )
    work = Work.of(model.whole())
    assert work is not None
    assert work.peak([(10, 6)]) == 2 * (2 * 10 * 6 * 4)


def _net(*nodes: Any, weights: Sequence[Any] = (), integers: bool = False) -> Model:
    kind = TensorProto.INT64 if integers else TensorProto.FLOAT
    return nets.load(
        nets.proto([*nodes], [nets.value("x", ["batch", 4], kind)], [nets.value("y", None, kind)], [*weights])
    )


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (_net(make_node("NonZero", ["x"], ["i"], name="n"), make_node("Cast", ["i"], ["y"], to=1, name="c")), ["x"]),
        (_net(make_node("Div", ["x", "x"], ["y"], name="n"), integers=True), ["x"]),
        (nets.load(nets.looping()), ["x"]),
        (nets.load(nets.sequences()), ["x"]),
        (nets.load(nets.flattening()), ["r1", "s"]),
    ],
    ids=["found", "divided", "loop", "sequence", "vector"],
)
def test_what_values_decide_is_not_known(model: Model, inputs: list[str]) -> None:
    assert Work.of(model.segment(inputs, [t.name for t in model.outputs])) is None


@pytest.mark.parametrize("divisor", ["w", "x"])
def test_what_no_value_decides_is_known(divisor: str) -> None:
    nodes = [make_node("Div", ["x", divisor], ["y"], name="n")]
    assert Work.of(_net(*nodes, weights=[nets.weight("w", 3.0)]).whole()) is not None
