"""What a skeleton must satisfy before anything else reads it, whether it came from a file or over a wire.

After this, names resolve, nodes are in order, and no tensor points anywhere but to a blob: onnx and ONNX Runtime
would follow an external-data entry to any file on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from math import prod

from splitpoint.errors import ModelError
from splitpoint.models.dataflow import Proto, bodies, onnx, reads, tensors_in
from splitpoint.models.operators import check_frames, check_operators
from splitpoint.text import HIDDEN

OLDEST_OPSET = 7
#: Bits of a number, where several share a byte.
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_BLOB = re.compile(r"sha256:([0-9a-f]{64})")


def check_text(proto: Proto, name: str) -> None:
    """ModelError if a name in `proto` is not text: protobuf hands damaged strings out as bytes, or raises."""
    try:
        whole = all(isinstance(text, str) for text in _texts(proto))
        whole = whole and all(isinstance(text, str) for p in proto.metadata_props for text in (p.key, p.value))
    except UnicodeDecodeError:
        whole = False
    if not whole:
        raise ModelError(f"{name} is not an ONNX file, or it is damaged: a name in it is not text")


def _check_printable(skeleton: Proto, name: str) -> None:
    """Names end up on terminals and in logs, so a stranger's model may not carry escape sequences in them."""
    for text in _texts(skeleton):
        if HIDDEN.search(str(text)) or "\t" in str(text):
            raise ModelError(f"{name} has a name with hidden or control characters in it: {str(text)[:200]!a}")


def _texts(proto: Proto) -> Iterator[object]:
    for opset in proto.opset_import:
        yield opset.domain
    yield from _graph_texts(proto.graph)
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        for node in function.node:
            yield from _node_texts(node)


def _graph_texts(graph: Proto) -> Iterator[object]:
    for value in (*graph.input, *graph.output):
        yield value.name
        if value.type.WhichOneof("value") == "tensor_type":
            yield from (d.dim_param for d in value.type.tensor_type.shape.dim)
    sparse = [t.values for t in graph.sparse_initializer]
    for tensor in (*graph.initializer, *sparse):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for node in graph.node:
        yield from _node_texts(node)


def _node_texts(node: Proto) -> Iterator[object]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for attribute in node.attribute:
        yield attribute.name
    for prop in node.metadata_props:
        yield from (prop.key, prop.value)
    for body in bodies(node):
        yield from _graph_texts(body)


def check(skeleton: Proto, name: str, allowed: Collection[str] = ()) -> None:
    """ModelError, one sentence, if `skeleton` (called `name` in it) is not a sound graph without weights, of operators
    that are run, or of the domains `allowed`."""
    check_text(skeleton, name)
    _check_printable(skeleton, name)
    _check_opset(skeleton, name)
    if skeleton.functions:
        raise ModelError(f"{name} still has model-local functions: they must be inlined")
    graph = skeleton.graph
    if not graph.output:
        raise ModelError(f"{name} has no outputs")
    known: set[str] = set()

    def define(tensor: str, what: str) -> None:
        if not tensor:
            raise ModelError(f"{name} has {what} without a name")
        if tensor in known:
            raise ModelError(f"{name} is not a valid graph: tensor {tensor} is defined twice")
        known.add(tensor)

    for t in graph.initializer:
        define(t.name, "a weight")
        _check_initializer(t)
    if graph.sparse_initializer:
        raise ModelError(f"{name} has sparse weights: they must be made dense")
    for i in graph.input:
        define(i.name, "an input")
    if len({n.name for n in graph.node} - {""}) < len(graph.node):
        raise ModelError(f"{name} has nodes without a name of their own")
    for node in graph.node:
        for t in reads(node):
            if t not in known:
                raise ModelError(
                    f"{name} is not a valid graph: node {node.name} ({node.op_type}) reads tensor {t}, "
                    "which nothing before it makes"
                )
        for t in node.output:
            if t:
                define(t, "an output")
        for t in tensors_in([node]):
            _check_inline(t)
    outputs = [o.name for o in graph.output]
    for o in outputs:
        if o not in known:
            raise ModelError(f"{name} is not a valid graph: nothing makes its output {o or '(without a name)'}")
    if len(set(outputs)) < len(outputs):
        raise ModelError(f"{name} is not a valid graph: it lists an output twice")
    check_operators(skeleton, name, allowed)
    check_frames(graph, name)


def _check_opset(skeleton: Proto, name: str) -> None:
    opset = next((o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None and not skeleton.opset_import:
        raise ModelError(f"{name} declares no operator set: it is not a complete ONNX model")
    if opset is not None and opset < OLDEST_OPSET:
        raise ModelError(
            f"{name} uses opset {opset}, older than {OLDEST_OPSET}: convert it with "
            "onnx.version_converter.convert_version(model, 13)"
        )


def _check_initializer(tensor: Proto) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _check_inline(tensor)
        if tensor.data_type != onnx.TensorProto.STRING and len(tensor.raw_data) != nbytes(tensor):
            raise ModelError(
                f"weight {tensor.name} has {len(tensor.raw_data)} bytes, its dimensions {list(tensor.dims)} "
                f"need {nbytes(tensor)}"
            )
        return
    nbytes(tensor)
    if [e.key for e in tensor.external_data] != ["location"] or blob_hash(tensor) is None:
        raise ModelError(f"weight {tensor.name} points to a file instead of a blob: refused")


def _check_inline(tensor: Proto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelError(f"the constant {tensor.name or '(without a name)'} points to a file: refused")


def kind_of(value: Proto) -> str:
    """What an input or output is, in words: ``bfloat16``, ``text``, ``a sequence``, ``a map``."""
    kind = value.type.WhichOneof("value") or "value of unknown type"
    if kind != "tensor_type":
        return f"a {kind.removesuffix('_type').replace('_', ' ')}"
    number = value.type.tensor_type.elem_type
    if number == onnx.TensorProto.STRING:
        return "text"
    names = {v: k for k, v in onnx.TensorProto.DataType.items()}
    return str(names[number]).lower() if number in names and number else "an unknown type"


def blob_hash(tensor: Proto) -> str | None:
    """The hash an initializer of a skeleton points to, or None if its bytes are inline."""
    for entry in tensor.external_data:
        if entry.key == "location":
            match = _BLOB.fullmatch(entry.value)
            return match[1] if match else None
    return None


def nbytes(tensor: Proto) -> int:
    """Bytes that the values of a TensorProto take, by its dtype and dims. ModelError where these make no sense."""
    count = prod(int(d) for d in tensor.dims)
    if count < 0 or any(d < 0 for d in tensor.dims):
        raise ModelError(f"weight {tensor.name} has the dimensions {list(tensor.dims)}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(s) for s in tensor.string_data)
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        if name in _PACKED:
            return (count * _PACKED[name] + 7) // 8
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"weight {tensor.name} has the unknown data type {tensor.data_type}") from None
