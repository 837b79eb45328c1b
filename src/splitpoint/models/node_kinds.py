"""A skeleton → the `Graph`: which nodes are placed, which are copied to both sides, which stay together.

A node is placed when it depends on the model's inputs *by value*. Constants and shape arithmetic (Shape → Gather →
Concat feeding a Reshape) are copied: measured on MobileNetV2 with a free batch, one Shape node that was placed would
leave 3 of 56 single-tensor cuts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any, TypeVar

from splitpoint.errors import ModelError
from splitpoint.graph import Graph, Node
from splitpoint.models.dataflow import Proto, by_value, reads
from splitpoint.models.flops import flops
from splitpoint.models.layer_names import ALIASES_KEY, UNUSED_KEY, metadata, path_of
from splitpoint.models.shapes import Shapes
from splitpoint.models.soundness import kind_of
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.tensors import TensorSpec

T = TypeVar("T")

#: INT64, BOOL and STRING constants are shapes, axes, indices and masks, not parameters.
NO_WEIGHTS = frozenset({7, 8, 9})
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"})


def graph_of(skeleton: Proto, name: str, shapes: Shapes) -> Graph:
    """The Graph of a skeleton whose shapes are known."""
    nodes = skeleton.graph.node
    initializers = {t.name: tuple(t.dims) for t in skeleton.graph.initializer}
    weights = {t.name: prod(t.dims) for t in skeleton.graph.initializer if t.data_type not in NO_WEIGHTS}
    known = {n: tuple(int(d) for d in s.shape) for n, s in shapes.bound.items()} | initializers
    # DequantizeLinear of an integer tensor is cheaper to redo than to ship four bytes for each one.
    widens = (n.op_type == "DequantizeLinear" and n.input[0] in shapes.bound for n in nodes)
    placed = [depends and not wide for depends, wide in zip(by_value(skeleton.graph), widens, strict=True)]
    groups = _groups(nodes, placed, shapes)
    parts = []
    for i, n in enumerate(nodes):
        inputs = tuple(dict.fromkeys(t for t in reads(n) if t not in initializers))
        parts.append(
            Node(
                name=n.name,
                op=n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}.{n.op_type}",
                layer=path_of(n) or n.name,
                inputs=inputs,
                outputs=tuple(o for o in n.output if o),
                flops=flops(n, known) if placed[i] else 0,
                params=sum(weights.get(t, 0) for t in reads(n)),
                placed=placed[i],
                group=groups.get(i, -1),
            )
        )
    aliases, layers = _json(skeleton, ALIASES_KEY, dict[str, object]()), {n.layer for n in parts}
    # An Identity that comes first hands on a model input.
    holders = {n.name for n in parts} | {i.name for i in skeleton.graph.input}
    return Graph(
        name=name,
        nodes=_attribute_weights_of_copied(parts),
        inputs=shapes.inputs,
        outputs=tuple(_output(o, shapes) for o in skeleton.graph.output),
        tensors=shapes.bound,
        aliases={str(k): str(v) for k, v in aliases.items() if str(v) in holders and str(k) not in layers},
        assumed=shapes.assumed,
        unused=tuple(map(str, _json(skeleton, UNUSED_KEY, list[object]()))),
    )


def _output(value: Proto, shapes: Shapes) -> TensorSpec:
    if value.name in shapes.opaque or value.name not in shapes.free:
        kind = kind_of(value)
        advice = "take it (and what makes it, such as ZipMap) out of the model"
        if value.type.WhichOneof("value") == "tensor_type" and kind not in ("text", "an unknown type"):
            advice = "cast it to float32 at the end of the model"
        raise ModelError(f"output {value.name} is {kind}, which splitpoint cannot carry: {advice}")
    return shapes.free[value.name]


def _attribute_weights_of_copied(nodes: list[Node]) -> tuple[Node, ...]:
    """Count a weight that reaches a node through copied ones (fp16 → Cast → Conv) with that node."""
    carried: dict[str, int] = {t: n.params for n in nodes if not n.placed for t in n.outputs}
    result = []
    for n in nodes:
        extra = sum(carried.get(t, 0) for t in n.inputs)
        if not n.placed:
            carried.update(dict.fromkeys(n.outputs, n.params + extra))
            result.append(n)
        else:
            result.append(dataclasses.replace(n, params=n.params + extra) if extra else n)
    return tuple(result)


def _groups(nodes: Any, placed: list[bool], shapes: Shapes) -> Mapping[int, int]:
    """Node index → group id, for quantised operators and for tensors that cannot travel (sequences, strings)."""
    parent = list(range(len(nodes)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    maker_of = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    users: dict[str, list[int]] = {}
    for i, n in enumerate(nodes):
        for t in reads(n):
            users.setdefault(t, []).append(i)
    for i, n in enumerate(nodes):
        if n.op_type == "QuantizeLinear" and placed[i]:
            member = i
            source = maker_of.get(n.input[0])
            # The operator that is quantised, and the activation fused between them.
            while source is not None and placed[source] and len(users[nodes[member].input[0]]) == 1:
                parent[find(source)] = find(i)
                if nodes[source].op_type not in _ACTIVATIONS:
                    break
                member, source = source, maker_of.get(nodes[source].input[0])
        for t in n.output:
            if t in shapes.opaque and placed[i]:
                for user in users.get(t, ()):
                    parent[find(user)] = find(i)
    sizes = Counter(map(find, range(len(nodes))))
    return {i: find(i) for i in range(len(nodes)) if sizes[find(i)] > 1}


def _json(skeleton: Proto, key: str, default: T) -> T:
    """The JSON in the metadata under `key`, of the same kind as `default`, which stands where there is none."""
    text = metadata(skeleton).get(key)
    if not text:
        return default
    try:
        value = parse_json(text)
    except MalformedError as exc:
        raise ModelError(f"the model's {key} metadata is not JSON: export it again") from exc
    if not isinstance(value, type(default)):
        raise ModelError(f"the model's {key} metadata is not a JSON {type(default).__name__}: export it again")
    return value
