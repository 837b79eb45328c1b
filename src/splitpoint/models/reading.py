"""An `.onnx` file → a skeleton (the ModelProto without its weights) and the weights as blobs.

An initializer that was moved out keeps its dtype and dims and points to ``sha256:<hash>``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from pathlib import Path

import numpy as np

from splitpoint.errors import ModelError
from splitpoint.files import linked_folders, open_file
from splitpoint.models import soundness
from splitpoint.models.dataflow import Proto, bodies, nodes_in, onnx, protobuf, tensors_in, topological
from splitpoint.models.foreign import what_is
from splitpoint.models.layer_names import LAYER_KEY, SHAPES_KEY, path_of
from splitpoint.models.reasons import reason_of
from splitpoint.models.weights import DataFiles, ModelWeights, Part

#: Tensors up to this many bytes stay in the skeleton: shape inference needs to read the small integer ones.
INLINE_BYTES = 1024
#: A skeleton larger than this is not a network.
MAX_SKELETON_BYTES = 256 << 20
#: What skeletons say they are: ONNX Runtime 1.18 reads it.
NEWEST_IR = 10
#: protobuf cannot hold more; a larger file is not ONNX (larger models keep their weights beside it).
MAX_FILE_BYTES = (2 << 30) - 1


def read(path: Path, allowed: Collection[str] = ()) -> tuple[Proto, ModelWeights]:
    """The skeleton and the weights of an ONNX file. ModelError if it is not one, or broken, or too old, or has
    operators that are not run and not of the domains `allowed`."""
    try:
        proto = onnx.ModelProto.FromString(_bytes_of(path))
    except protobuf.DecodeError as exc:
        raise ModelError(f"{path} {what_is(path) or 'is not an ONNX file, or it is cut short'}") from exc
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{path} {what_is(path) or 'is not an ONNX file: it holds no graph'}")
    return skeleton_of(proto, path.parent, str(path), linked_folders(path), allowed)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError(f"{path} {what_is(path)}")
        size = path.stat().st_size
        if not path.is_file() or size > MAX_FILE_BYTES:
            raise ModelError(f"{path} {what_is(path) or f'is not an ONNX file ({size} bytes)'}")
        with open_file(path) as file:
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError as exc:
        raise ModelError(f"no such file: {path}") from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def skeleton_of(
    proto: Proto, folder: Path, name: str, linked: Sequence[Path] = (), allowed: Collection[str] = ()
) -> tuple[Proto, ModelWeights]:
    """Move the weights of `proto` (changed in place) into blobs; external data is looked up in `folder`, in which the
    model may be a link to the folders `linked`."""
    soundness.check_text(proto, name)
    if proto.functions:
        proto = _inlined(proto, name)
    graph = proto.graph
    weights = ModelWeights()
    files = DataFiles(folder, linked)
    _constants_to_initializers(graph)
    _densify(graph)
    constants = {t.name for t in graph.initializer}
    # IR versions below 4 list weights as inputs too.
    _keep(graph.input, [i for i in graph.input if i.name not in constants])
    # Below 4 every initializer must be an input; shape inference and ONNX Runtime would ignore those that are not.
    # Above, versions added types and fields, which are here or not, whatever the number says; and an engine refuses a
    # number that is newer than itself, on the device that fetches this graph, too.
    proto.ir_version = min(max(proto.ir_version, 4), NEWEST_IR)
    for tensor in graph.initializer:
        _move_out(tensor, weights, files)
    for tensor in tensors_in(graph.node, sparse=False):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _inline(tensor, _bytes_in(_external(tensor, files)))
    order = topological(graph.node)  # the specification demands it, not every file has it
    if order != sorted(order):
        _replace(graph.node, [graph.node[i] for i in order])
    _name_nodes(graph)
    _strip(proto)
    # Parsed messages keep their arena alive; a fresh parse lets go of the weights' copies.
    skeleton = onnx.ModelProto.FromString(proto.SerializeToString())
    soundness.check(skeleton, name, allowed)
    return skeleton, weights


def parse_skeleton(data: bytes, allowed: Collection[str] = ()) -> Proto:
    """A skeleton from bytes that came over a wire. ModelError if they are no graph, or none that is run here."""
    if len(data) > MAX_SKELETON_BYTES:
        raise ModelError(f"a graph of {len(data) >> 20} MiB without its weights is not a network")
    try:
        skeleton = onnx.ModelProto.FromString(data)
    except protobuf.DecodeError as exc:
        raise ModelError("the graph that came is not ONNX") from exc
    soundness.check(skeleton, "the graph that came", allowed)
    return skeleton


def tensor_bytes(tensor: Proto) -> bytes:
    """The raw little-endian bytes of an inline TensorProto, whichever field they are in; 4-bit values are packed."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return b"".join(len(s).to_bytes(8, "little") + s for s in tensor.string_data)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    try:
        return bytes(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data)
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"weight {tensor.name} is broken: {exc}") from exc


def _move_out(tensor: Proto, weights: ModelWeights, files: DataFiles) -> None:
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    data: bytes | Part = _external(tensor, files) if external else tensor_bytes(tensor)
    size = data.nbytes if isinstance(data, Part) else len(data)
    if size != soundness.nbytes(tensor):
        raise ModelError(
            f"weight {tensor.name} has {size} bytes, its dimensions {list(tensor.dims)} need "
            f"{soundness.nbytes(tensor)}: the file is damaged"
        )
    if size <= INLINE_BYTES:
        _inline(tensor, _bytes_in(data) if isinstance(data, Part) else data)
        return
    point_to(tensor, weights.add_part(data) if isinstance(data, Part) else weights.add(data))


def point_to(tensor: Proto, digest: str) -> None:
    """Leave of `tensor` its name, dtype, dims, and that its bytes are the blob `digest`."""
    _inline(tensor, b"")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=f"sha256:{digest}")


def _inline(tensor: Proto, data: bytes) -> None:
    """Leave of `tensor` its name, dtype, dims, and that its bytes are `data`."""
    dims, data_type, name = list(tensor.dims), tensor.data_type, tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.raw_data = name, data_type, data
    tensor.dims.extend(dims)


def _external(tensor: Proto, files: DataFiles) -> Part:
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        location = entries["location"]
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or soundness.nbytes(tensor))
    except (KeyError, ValueError) as exc:
        raise ModelError(f"the external data entry of weight {tensor.name} is broken: {exc}") from exc
    return files.part(location, offset, length)


def _bytes_in(part: Part) -> bytes:
    return part.read(part.digest()).tobytes()


def _inlined(proto: Proto, name: str) -> Proto:
    """`proto` with its model-local functions expanded where they are called."""
    from onnx import inliner

    _agree_on_opset(proto, name)
    try:
        return inliner.inline_local_functions(proto)
    except Exception as exc:  # the C++ inliner raises what it likes
        raise ModelError(f"{name} has functions that cannot be inlined: {reason_of(exc)}") from exc


def _agree_on_opset(proto: Proto, name: str) -> None:
    """Give the graph and its functions one version of the operator set: one by which all their operators stay what they
    are. A function may be written for another, which inlining does not know."""
    parts = [(proto.graph.node, proto), *((f.node, f) for f in proto.functions)]
    imports = [o for _, part in parts for o in part.opset_import if o.domain in _STANDARD]
    ours = next((o.version for o in proto.opset_import if o.domain in _STANDARD), 0)
    versions = sorted({o.version for o in imports}, reverse=True)
    if len(versions) < 2:
        return
    wanted = [(n.op_type, o.version) for nodes, part in parts for o in part.opset_import if o.domain in _STANDARD
              for n in nodes_in(nodes) if n.domain in _STANDARD]  # fmt: skip
    for target in sorted(versions, key=lambda v: v != ours):
        if all(_since(op, version) == _since(op, target) for op, version in wanted):
            for o in imports:
                o.version = target
            return
    other = next(f for f in proto.functions if any(o.domain in _STANDARD and o.version != ours for o in f.opset_import))
    theirs = next(o.version for o in other.opset_import if o.domain in _STANDARD)
    raise ModelError(
        f"{name} uses opset {ours}, and its function {other.domain}.{other.name} opset {theirs}, which mean different "
        "operators: export it with one, or convert it with onnx.version_converter"
    )


#: The names of ONNX's own operator set.
_STANDARD = ("", "ai.onnx")


def _since(op: str, opset: int) -> int:
    """The opset that made the operator what it is in `opset`; 0 where it does not know it."""
    try:
        return int(onnx.defs.get_schema(op, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _constants_to_initializers(graph: Proto) -> None:
    """Constant nodes hold weights in old exports: treat them as the initializers they are."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _keep(graph.node, kept)


def _densify(graph: Proto) -> None:
    """Write sparse initializers out: they are rare, and nothing after this has to know them."""
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in (sparse.values, sparse.indices)):
            raise ModelError(f"sparse weight {name} lies in an external file, which splitpoint cannot read")
        try:
            values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
            if prod(sparse.dims) > MAX_SKELETON_BYTES:
                raise ModelError(f"sparse weight {name} is too large to be written out: {list(sparse.dims)}")
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)] = values
        except (KeyError, TypeError, ValueError, IndexError, OSError) as exc:
            raise ModelError(f"sparse weight {name} is broken: {exc}") from exc
        graph.initializer.append(onnx.numpy_helper.from_array(dense, name))
    del graph.sparse_initializer[:]


def _name_nodes(graph: Proto) -> None:
    """Give each node a name of its own: cuts and profiles go by it, and ONNX Runtime refuses two of a name."""
    given = {node.name for node in graph.node}
    seen: set[str] = set()
    for i, node in enumerate(graph.node):
        name = node.name
        if not name or name in seen:
            name = f"{node.op_type}_{i}"
            while name in seen or name in given:
                name += "_"
        seen.add(name)
        if node.name != name:
            node.name = name
        for body in bodies(node):
            _name_nodes(body)


def _keep(field: Proto, items: list[Proto]) -> None:
    """Drop from a repeated field what is not among `items`."""
    if len(items) < len(field):
        _replace(field, items)


def _replace(field: Proto, items: list[Proto]) -> None:
    """Let a repeated field hold `items`, which are its own."""
    copies = [type(i).FromString(i.SerializeToString()) for i in items]
    del field[:]
    field.extend(copies)


def _strip(proto: Proto) -> None:
    """Keep of all metadata the layer paths and the model's own: exporters write local file paths into the rest."""
    graph = proto.graph
    for node in graph.node:
        path = path_of(node)
        del node.metadata_props[:]
        node.ClearField("doc_string")
        if path:
            node.metadata_props.add(key=LAYER_KEY, value=path)
    for node in nodes_in(graph.node):
        for part in (p for body in bodies(node) for p in (body, *body.node)):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for field in ("value_info", "doc_string", "metadata_props"):
        graph.ClearField(field)
    # Shapes are measured anew for every file: what it says may be of another --shape, or wrong.
    _keep(proto.metadata_props, [p for p in proto.metadata_props if p.key != SHAPES_KEY])
    for field in ("doc_string", "training_info"):
        proto.ClearField(field)
