"""int8 activations as uint8 on x86, so that a half computes as the whole model does.

ONNX Runtime rewrites int8 activations to uint8 there, because its uint8 kernels are faster: but not an input or an
output, nor a tensor with two readers, and the operator beside such a one runs in float. Which ones that are depends on
the cut (docs/design/engines.md has what was measured). So every activation is rewritten here, at boundaries and
between, and the session shifts what goes in and out by 128: cuts are equal bit for bit.
"""

from __future__ import annotations

import platform

import numpy as np

from splitpoint.models.dataflow import Proto, reads
from splitpoint.tensors import Array


def rewrites_int8(device: str) -> bool:
    """Whether ONNX Runtime rewrites int8 to uint8 there: on the CPU of an x86."""
    return device == "cpu" and platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")


def shifted(array: Array) -> Array:
    """int8 → uint8 or back, 128 up or down: the highest bit flips."""
    flipped: Array = array.view(np.uint8) ^ np.uint8(0x80)
    return flipped.view(np.int8 if array.dtype == np.uint8 else np.uint8)


def with_uint8_activations(proto: Proto) -> tuple[Proto, frozenset[str]]:
    """`proto`, or a copy whose int8 activations are uint8; the names of the inputs and outputs among them.

    An activation qualifies if QuantizeLinear makes it or it is an input, and nothing but DequantizeLinear reads it, all
    of them with zero points that lie in the graph.
    """
    import onnx

    graph = proto.graph
    zeros = _zero_points(graph)
    ends = {v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == onnx.TensorProto.INT8}
    quantised = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear" and _is_end_of(n, n.output[0], zeros)}
    names = quantised | ends.intersection(v.name for v in graph.input)
    for node in graph.node:
        names -= {t for t in names.intersection((*reads(node), *node.output)) if not _is_end_of(node, t, zeros)}
    if not names:
        return proto, frozenset()
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    moved: dict[str, str] = {}
    for node in graph.node:
        if any(_is_end_of(node, t, zeros) for t in names.intersection((*node.input[:1], *node.output[:1]))):
            zero = node.input[2]
            if zero not in moved:
                moved[zero] = f"{zero}.uint8"
                graph.initializer.append(onnx.numpy_helper.from_array(shifted(zeros[zero]), moved[zero]))
            node.input[2] = moved[zero]
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in names:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return copy, frozenset(names & ends)


def _zero_points(graph: Proto) -> dict[str, Array]:
    """int8 constants of the graph by name; those that are blobs are no zero points worth the trouble."""
    import onnx

    tensors = {t.name: t for t in graph.initializer}
    constants = (n for n in graph.node if n.op_type == "Constant")
    tensors |= {n.output[0]: a.t for n in constants for a in n.attribute if a.HasField("t")}
    int8 = {name: t for name, t in tensors.items() if t.data_type == onnx.TensorProto.INT8 and not t.external_data}
    return {name: onnx.numpy_helper.to_array(t) for name, t in int8.items()}


def _is_end_of(node: Proto, tensor: str, zeros: dict[str, Array]) -> bool:
    """Whether `node` quantises to `tensor`, or dequantises it, with a zero point we know."""
    if len(node.input) != 3 or node.input[2] not in zeros or tensor in list(node.input[1:]):
        return False
    if any(a.name == "output_dtype" and node.op_type == "QuantizeLinear" and a.i for a in node.attribute):
        return False  # opset 21 may say int8 a second time: left as it is
    if node.op_type == "DequantizeLinear":
        return bool(node.input[0] == tensor)
    return bool(node.op_type == "QuantizeLinear" and node.output[0] == tensor and node.input[0] != tensor)
