"""A model's fingerprint: SHA-256 over operators, attributes, wiring and weight hashes.

Never over protobuf bytes, which differ between onnx versions for the same model. Names of tensors count, because
they name what crosses a cut; names of nodes, metadata, documentation and the way weights are stored do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from splitpoint.models.dataflow import Proto, onnx
from splitpoint.models.reading import tensor_bytes
from splitpoint.models.soundness import blob_hash


def fingerprint(skeleton: Proto) -> str:
    """64 hex digits that two models share exactly when they compute the same graph with the same weights."""
    digest = hashlib.sha256(b"splitpoint fingerprint 1")
    opsets = sorted((o.domain if o.domain != "ai.onnx" else "", o.version) for o in skeleton.opset_import)
    for token in _tokens([opsets, _graph(skeleton.graph)]):
        digest.update(token.encode())
    return digest.hexdigest()


def _graph(graph: Proto) -> list[Any]:
    return [
        [_value(v) for v in graph.input],
        [v.name for v in graph.output],
        sorted([t.name, *_tensor(t)] for t in graph.initializer),
        [
            [n.domain if n.domain != "ai.onnx" else "", n.op_type, list(n.input), list(n.output),
             sorted(_attribute(a) for a in n.attribute)]
            for n in graph.node
        ],
    ]  # fmt: skip


def _value(value: Proto) -> list[Any]:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return [value.name, tensor.elem_type, dims]


def _tensor(tensor: Proto) -> list[Any]:
    data = blob_hash(tensor) or hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return [tensor.data_type, list(tensor.dims), data]


def _attribute(a: Proto) -> list[Any]:
    T = onnx.AttributeProto

    values: dict[int, Any] = {
        T.FLOAT: lambda: a.f, T.INT: lambda: a.i, T.STRING: lambda: a.s, T.TENSOR: lambda: _tensor(a.t),
        T.GRAPH: lambda: _graph(a.g), T.FLOATS: lambda: list(a.floats), T.INTS: lambda: list(a.ints),
        T.STRINGS: lambda: list(a.strings), T.TENSORS: lambda: [_tensor(t) for t in a.tensors],
        T.GRAPHS: lambda: [_graph(g) for g in a.graphs],
    }  # fmt: skip
    # The remaining kinds (sparse tensors, type protos) are rare and small: their deterministic bytes will do.
    value = values.get(a.type, lambda: a.SerializeToString(deterministic=True))()
    # Attributes of one node are sorted, so they must compare whatever their kind: by their canonical text.
    return [a.name, a.type, "".join(_tokens(value))]


def _tokens(value: Any) -> Iterable[str]:
    if isinstance(value, (list, tuple)):
        yield "["
        for item in value:
            yield from _tokens(item)
        yield "]"
    else:
        text = value.hex() if isinstance(value, (bytes, float)) else str(value)
        yield f"{type(value).__name__[0]}{len(text)}:{text}"
