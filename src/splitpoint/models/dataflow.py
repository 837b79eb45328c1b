"""How values flow through an ONNX graph: what bodies capture, what depends on the inputs, a topological order."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator
from importlib import import_module
from typing import Any

from splitpoint.errors import ModelError
from splitpoint.graph import SHAPE_ROOTS

Proto = Any  # onnx publishes no usable types for its generated classes


class _Later:
    """A module that is imported when something of it is first asked for: ``import splitpoint`` does without."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__[name] = getattr(import_module(self._name), name)
        return value


onnx: Any = _Later("onnx")
ort: Any = _Later("onnxruntime")
protobuf: Any = _Later("google.protobuf.message")

#: Draw a new value each run, so they depend on more than constants: placed, never copied.
RANDOM = frozenset({
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial",
})  # fmt: skip


def bodies(node: Proto) -> Iterator[Proto]:
    """The sub-graphs (If branches, Loop and Scan bodies) of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def nodes_in(nodes: Iterable[Proto]) -> Iterator[Proto]:
    """`nodes` and those of their bodies, at any depth, each before those inside it."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from nodes_in(body.node)


def tensors_in(nodes: Iterable[Proto], sparse: bool = True) -> Iterator[Proto]:
    """The tensors in the attributes and bodies of `nodes`, at any depth: values and indices of `sparse` ones too."""
    for node in nodes_in(nodes):
        parts: list[Proto] = []
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            parts += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            parts += attribute.sparse_tensors
        for body in bodies(node):
            yield from body.initializer
            parts += body.sparse_initializer
        for part in parts if sparse else ():
            yield from (part.values, part.indices)


def captures(node: Proto) -> list[str]:
    """Outer-scope names that the bodies of `node` read, at any depth."""
    names: dict[str, None] = {}
    for body in bodies(node):
        local = {t.name for t in body.initializer} | {i.name for i in body.input}
        local |= {t.values.name for t in body.sparse_initializer}
        for inner in body.node:
            for name in reads(inner):
                if name not in local:
                    names[name] = None
            local.update(inner.output)
        for out in body.output:
            if out.name not in local:
                names[out.name] = None
    return list(names)


def reads(node: Proto) -> list[str]:
    """Names of the tensors a node reads: its inputs (optional ones that are left out have none), then captures."""
    return [t for t in node.input if t] + (captures(node) if node.attribute else [])


def by_value(graph: Proto) -> list[bool]:
    """Per node: do its outputs depend on the *values* of the graph's inputs (or on chance)?

    What reads shapes only does not: Shape → Gather → Concat is the same for every input of that shape.
    """
    data = {i.name for i in graph.input}
    off = _off(graph)
    result = []
    for n in graph.node:
        depends = (n.op_type not in SHAPE_ROOTS and any(t in data for t in reads(n))) or _draws(n, off)
        if depends:
            data.update(o for o in n.output if o)
        result.append(depends)
    return result


def drawing(graph: Proto) -> list[str]:
    """The nodes that draw random numbers, as messages name them: two runs of such a graph give two answers."""
    off = _off(graph)
    how = {"Dropout": ", in training mode"}
    return [f"{n.name} ({n.op_type}{how.get(n.op_type, '')})" for n in graph.node if _draws(n, off)]


def _draws(node: Proto, off: Container[str]) -> bool:
    """Whether `node` draws random numbers; a Dropout does unless the switch it is given is one of those `off`."""
    if node.op_type == "Dropout" and len(node.input) > 2:
        return bool(node.input[2]) and node.input[2] not in off
    return node.op_type in RANDOM or any(_draws(inner, off) for body in bodies(node) for inner in body.node)


def _off(graph: Proto) -> set[str]:
    """The constants that are false (one byte, or what onnx writes instead)."""
    return {
        t.name
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.BOOL and not any((*t.raw_data, *t.int32_data))
    }


def topological(nodes: Iterable[Proto]) -> list[int]:
    """Indices of `nodes` so that each comes after those it reads from, else in the order they have.

    ModelError names a node of a cycle.
    """
    listed = list(nodes)
    maker_of = {o: i for i, n in enumerate(listed) for o in n.output if o}
    needs = [{maker_of[t] for t in reads(n) if t in maker_of} for n in listed]
    users: list[list[int]] = [[] for _ in listed]
    for i, makers in enumerate(needs):
        for maker in makers:
            users[maker].append(i)
    missing = [len(makers) for makers in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for user in users[i]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) < len(listed):
        stuck = next(i for i, count in enumerate(missing) if count)
        raise ModelError(f"the graph has a cycle through node {listed[stuck].name or stuck}")
    return order
