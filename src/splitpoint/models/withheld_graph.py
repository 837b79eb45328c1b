"""A graph as it is handed out where only the weights of a head may leave.

Weights up to 1 KiB are in the graph itself. Those that only the tail reads are replaced by their hashes, as larger ones
are, which leaves the fingerprint as it is. What lies in the attributes of a node cannot be replaced: it is found here,
and such a model is not shared so.
"""

from __future__ import annotations

from hashlib import sha256
from math import prod

from splitpoint.models.dataflow import Proto, nodes_in, onnx, tensors_in
from splitpoint.models.node_kinds import NO_WEIGHTS
from splitpoint.models.reading import point_to
from splitpoint.models.soundness import blob_hash

#: So many numbers in one place are a setting, such as the scales of a Resize, and no weight: they are told.
FEW = 8


def without_tail_weights(skeleton: Proto, head: Proto) -> Proto:
    """`skeleton` with the hash of each weight of more than `FEW` numbers that `head`, a part of it, does not read."""
    kept = {t.name for t in head.graph.initializer}
    told = onnx.ModelProto()
    told.CopyFrom(skeleton)
    for t in told.graph.initializer:
        if t.name not in kept and _count(t) > FEW and blob_hash(t) is None:
            point_to(t, sha256(t.raw_data).hexdigest())
    return told


def inline_weights(graph: Proto) -> dict[str, bytes]:
    """The weights that are in `graph` itself, by hash: a device may have it with hashes in their place."""
    return {
        sha256(t.raw_data).hexdigest(): t.raw_data
        for t in graph.initializer
        if t.data_type not in NO_WEIGHTS and blob_hash(t) is None
    }


def weights_in_attributes(skeleton: Proto, head: Proto) -> str:
    """The first node outside of `head` whose attributes hold more than `FEW` numbers, in words; empty if none does."""
    inside = {n.name for n in head.graph.node}
    for node in skeleton.graph.node:
        listed = (len(attribute.floats) for inner in nodes_in([node]) for attribute in inner.attribute)
        most = max((*listed, *map(_count, tensors_in([node]))), default=0)
        if most > FEW and node.name not in inside:
            return f"{node.name} ({node.op_type}), {most} of them"
    return ""


def _count(tensor: Proto) -> int:
    """The numbers in a tensor; 0 of those that are shapes, indices and masks."""
    return prod(tensor.dims) if tensor.data_type and tensor.data_type not in NO_WEIGHTS else 0
