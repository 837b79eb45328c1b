"""onnx's shape inference: what it says of a graph, where it cannot know, and where ONNX Runtime reckons otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from splitpoint.models.dataflow import Proto, bodies, captures, nodes_in, onnx
from splitpoint.models.operators import BY_SHAPE, WINDOWS
from splitpoint.tensors import ANY_RANK, ITEM_SIZES, Array, TensorSpec

#: Operators whose sizes onnx and ONNX Runtime reckon alike, by whole numbers (test_inference.py compares them).
#: Where a model has another one, it is run once to see.
_ALIKE = BY_SHAPE | {"Attention"}


def alike(nodes: Iterable[Proto]) -> bool:
    """Whether inference is known to give the sizes that ONNX Runtime gives, for each of `nodes` and their bodies."""
    return all(
        n.domain in ("", "ai.onnx") and (n.op_type in _ALIKE or (n.op_type in WINDOWS and not _rounds(n)))
        for n in nodes_in(nodes)
    )


def _rounds(node: Proto) -> bool:
    return any(
        (a.name == "ceil_mode" and a.i) or (a.name == "auto_pad" and a.s not in (b"", b"NOTSET"))
        for a in node.attribute
    )


def blind_kinds(skeleton: Proto) -> frozenset[tuple[str, str]]:
    """Domain and operator of the nodes that onnx has no inference for: those of another domain, mostly.

    GroupNormalization is one, too: it is inferred by the Reshapes it stands for, which gives up.
    """
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in skeleton.opset_import}
    kinds = set()
    for domain, op in {(n.domain, n.op_type) for n in skeleton.graph.node}:
        name = "" if domain == "ai.onnx" else domain
        try:
            blind = not onnx.defs.get_schema(op, versions.get(name, 1), name).has_type_and_shape_inference_function
        except onnx.defs.SchemaError:
            blind = True
        if blind:
            kinds.add((domain, op))
    return frozenset(kinds)


def inferred(
    skeleton: Proto,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, TensorSpec] | None = None,
    values: Mapping[str, Array] | None = None,
    believe_bodies: bool = False,
) -> tuple[dict[str, TensorSpec], set[str]]:
    """What follows from the inputs' shapes `inputs`: specs, and the names of those that are no arrays of numbers.

    In a spec, a dimension that does not follow has a name of its own; where not even the rank does, the shape is
    `ANY_RANK`. `shapes` and `values` are what is known besides of tensors that nodes make; what bodies declare can be
    wrong like what a graph declares, and only counts if it is to be believed. Empty if it all fails.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(skeleton)
    graph = bound.graph
    for value, spec in zip(graph.input, inputs, strict=True):
        _declare(value, spec)
    known = dict(shapes or {})
    handed_on = {s.name: s for s in inputs}
    for value in graph.output:
        # A declared output shape can be wrong or free; what follows from the inputs is better.
        _forget(value)
        said = handed_on.get(value.name) or known.pop(value.name, None)
        if said is not None:
            _declare(value, said)
    if not believe_bodies:
        _forget_in_bodies(graph.node)
    for rest in known.values():
        _declare(graph.value_info.add(), rest)
    values = values or {}
    for node in graph.node if values else ():  # what is known becomes a constant
        for k, name in enumerate(node.output):
            if name in values:
                node.output[k] = f"{name}.made"
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in values.items())
    try:
        done = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except Exception:  # C++: an inconsistent graph, or one it cannot handle. Running it will tell which.
        return {}, set()
    specs: dict[str, TensorSpec] = {}
    opaque: set[str] = set()
    for value in (*done.graph.value_info, *done.graph.output):
        kind = value.type.WhichOneof("value")
        tensor = value.type.tensor_type
        elem_type = tensor.elem_type if kind == "tensor_type" else 0
        if kind not in ("tensor_type", None) or (elem_type and dtype_name(elem_type) not in ITEM_SIZES):
            opaque.add(value.name)
        elif elem_type:
            dims = tuple(
                int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else open_dim(value.name, k)
                for k, d in enumerate(tensor.shape.dim)
            )
            shape = dims if tensor.HasField("shape") else ANY_RANK
            specs[value.name] = TensorSpec(value.name, dtype_name(elem_type), shape)
    return specs, opaque


def body_ranks(skeleton: Proto, node: Proto, specs: Mapping[str, TensorSpec]) -> list[int | None]:
    """The number of dimensions of each output of an If or a Loop, where it is the same in every branch and trip.

    `specs` has what its bodies capture and, for a Loop, what the outputs were once: the state must keep that rank.
    """
    state = len(node.input) - 2 if node.op_type == "Loop" else 0
    by_body: list[list[int | None]] = []
    for body in bodies(node):
        ranks = _ranks(skeleton, node, body, specs)
        if node.op_type == "Loop":
            # What is stacked over no trips at all has the shape that the body declares, and one dimension without it.
            told = [o.type.tensor_type.HasField("shape") for o in body.output]
            ranks = [rank if k <= state or told[k] else None for k, rank in enumerate(ranks)][1:]
        by_body.append(ranks)
    if not by_body or len({len(ranks) for ranks in by_body}) > 1:
        return [None] * len(node.output)
    same = [ranks[0] if len(set(ranks)) == 1 else None for ranks in zip(*by_body, strict=True)]
    for k in range(len(same)):
        before = specs.get(node.input[k + 2]) if k < state else None
        after = same[k]
        if k < state:
            kept = before is not None and before.shape != ANY_RANK and len(before.shape) == after
            same[k] = after if kept else None
        elif node.op_type == "Loop" and after is not None:
            same[k] = after + 1  # one of each trip
    return same


def _ranks(skeleton: Proto, node: Proto, body: Proto, specs: Mapping[str, TensorSpec]) -> list[int | None]:
    alone = onnx.ModelProto(ir_version=skeleton.ir_version, opset_import=skeleton.opset_import)
    alone.graph.CopyFrom(body)
    graph = alone.graph
    graph.ClearField("value_info")
    _forget_in_bodies(graph.node)
    for value in graph.output:
        _forget(value)
    for k, value in enumerate(graph.input):
        spec = specs.get(node.output[k - 2]) if 2 <= k < 2 + len(node.output) else None
        _forget(value)
        if spec is not None and k < len(node.input):
            _declare(value, TensorSpec(value.name, spec.dtype, tuple("?" for _ in spec.shape)))
        elif k < 2:
            value.type.tensor_type.shape.SetInParent()
    outside = set(captures(node))
    graph.initializer.extend(t for t in skeleton.graph.initializer if t.name in outside)
    for name in sorted(outside & specs.keys()):
        _declare(graph.input.add(), specs[name])
    try:
        done = onnx.shape_inference.infer_shapes(alone, data_prop=True)
    except Exception:  # C++, as above
        return [None] * len(graph.output)
    tensors = [o.type.tensor_type for o in done.graph.output]
    return [len(t.shape.dim) if t.HasField("shape") else None for t in tensors]


def dtype_name(elem_type: int) -> str:
    """numpy's name of an ONNX element type; ``""`` where the type is not given or not known."""
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, TypeError, ValueError):
        return ""


def open_dim(name: str, axis: int) -> str:
    """What a dimension of tensor `name` is called that follows from nothing."""
    return f"{name}.{axis}"


def _declare(value: Proto, spec: TensorSpec) -> None:
    """Let a ValueInfoProto say what `spec` says, and nothing of dimensions that are free."""
    value.name = spec.name
    tensor = value.type.tensor_type
    tensor.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    tensor.ClearField("shape")
    if spec.shape == ANY_RANK:
        return
    tensor.shape.SetInParent()  # a scalar has a shape, the empty one
    for size in spec.shape:
        dim = tensor.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size


def _forget(value: Proto) -> None:
    if value.type.WhichOneof("value") == "tensor_type":
        value.type.tensor_type.ClearField("shape")


def _forget_in_bodies(nodes: Iterable[Proto]) -> None:
    for body in (b for node in nodes_in(nodes) for b in bodies(node)):
        body.ClearField("value_info")
        for value in (*body.input, *body.output):
            _forget(value)
