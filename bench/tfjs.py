"""A network of TensorFlow.js (a "graph model": model.json and its .bin) → ONNX, for those that npm packages bring.

Only what such networks of convolutions use is read; the rest is refused by name. TensorFlow has channels last, so all
four-dimensional tensors are turned: nothing but the input and the outputs is transposed in the ONNX graph.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from splitpoint.tensors import Array

_ACTIVATIONS = {"Relu": "Relu", "Sigmoid": "Sigmoid"}
_BINARY = {"Add": "Add", "AddV2": "Add", "Sub": "Sub", "Mul": "Mul", "BiasAdd": "Add"}
#: NHWC → NCHW.
_TURNED = (0, 3, 1, 2)


def weights_of(manifest: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Array]:
    """The constants that the .bin files beside model.json hold; those kept as float16 are widened."""
    weights: dict[str, Array] = {}
    for group in manifest:
        data, at = b"".join((folder / path).read_bytes() for path in group["paths"]), 0
        for entry in group["weights"]:
            quantised = entry.get("quantization", {})
            dtype = np.dtype(quantised.get("dtype", entry["dtype"]))
            if quantised and dtype != np.float16:
                raise SystemExit(f"{entry['name']} is kept as {dtype}, which is not read")
            count = int(np.prod(entry["shape"], dtype=np.int64))
            values = np.frombuffer(data, dtype, count, at).reshape(entry["shape"])
            weights[entry["name"]] = values.astype(entry["dtype"])
            at += values.nbytes
    return weights


def to_onnx(path: Path, outputs: Sequence[str]) -> onnx.ModelProto:
    """The network of a model.json, from its one input, float32 NHWC, to `outputs`, joined along the channels as
    ``output`` [1, channels, h, w] where they are several. SystemExit names an operator that is not read."""
    document = json.loads(path.read_text())
    network = _Network(weights_of(document["weightsManifest"], path.parent))
    nodes = {node["name"]: node for node in document["modelTopology"]["node"]}
    [source] = [node for node in nodes.values() if node["op"] == "Placeholder"]
    shape = [int(d["size"]) for d in source["attr"]["shape"]["shape"]["dim"]]
    network.add("Transpose", [source["name"]], source["name"] + "/turned", perm=_TURNED)
    network.names[source["name"]] = source["name"] + "/turned"
    for name in _ordered(nodes, outputs):
        network.convert(nodes[name])
    last = [network.names[name] for name in outputs]
    network.add("Concat" if len(last) > 1 else "Identity", last, "output", **({"axis": 1} if len(last) > 1 else {}))
    graph = helper.make_graph(
        network.nodes, path.stem,
        [helper.make_tensor_value_info(source["name"], onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in network.constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _ordered(nodes: Mapping[str, Mapping[str, Any]], outputs: Sequence[str]) -> list[str]:
    """The names of what `outputs` need, each after its own inputs."""
    done: dict[str, None] = {}
    waiting = list(reversed(outputs))
    while waiting:
        name = waiting[-1]
        missing = [i for i in _inputs(nodes[name]) if i not in done and nodes[i]["op"] not in ("Const", "Placeholder")]
        if missing:
            waiting.extend(missing)
        else:
            done.setdefault(waiting.pop())
    return list(done)


def _inputs(node: Mapping[str, Any]) -> list[str]:
    return [name.partition(":")[0] for name in node.get("input", ()) if not name.startswith("^")]


def _texts(values: Sequence[str]) -> list[str]:
    return [base64.b64decode(value).decode() for value in values]


class _Network:
    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.names: dict[str, str] = {}
        """Of tensors, what each is called in the ONNX graph."""

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        self.constants[name] = values
        return name

    def convert(self, node: Mapping[str, Any]) -> None:
        op, name, inputs, attr = node["op"], node["name"], _inputs(node), node.get("attr", {})
        self.names[name] = name
        if op in ("_FusedConv2D", "Conv2D", "FusedDepthwiseConv2dNative", "DepthwiseConv2dNative"):
            self._convolution(op, name, inputs, attr)
        elif op in _BINARY:
            self.add(_BINARY[op], [self._operand(i) for i in inputs], name)
        elif op in ("Relu", "Sigmoid", "Identity"):
            self.add(op, [self.names[inputs[0]]], name)
        elif op == "Relu6":
            self._relu6(self.names[inputs[0]], name)
        elif op == "Mean":
            axes = sorted(int(a) % 4 for a in np.atleast_1d(self._weights[inputs[1]]))
            if axes != [1, 2] or not attr["keep_dims"]["b"]:
                raise SystemExit(f"{name} is a mean that is not over all places")
            self.add("GlobalAveragePool", [self.names[inputs[0]]], name)
        elif op == "ConcatV2":
            axis = _TURNED.index(int(self._weights[inputs[-1]]) % 4)
            self.add("Concat", [self.names[i] for i in inputs[:-1]], name, axis=axis)
        elif op == "ResizeBilinear":
            half, corners = attr["half_pixel_centers"]["b"], attr["align_corners"]["b"]
            mode = "half_pixel" if half else "align_corners" if corners else "asymmetric"
            self._resize(name, inputs, mode)
        else:
            raise SystemExit(f"{name} is a {op}, which is not read")

    def _resize(self, name: str, inputs: Sequence[str], mode: str) -> None:
        if inputs[1] not in self._weights:
            raise SystemExit(f"{name} resizes to what only the network itself computes")
        source = self.names[inputs[0]]
        # Sizes along batch and channels are the input's own.
        start, end = (self.constant(f"{name}/{k}", np.array([k], np.int64)) for k in (0, 2))
        shape = self.add("Shape", [source], f"{name}/shape")
        kept = self.add("Slice", [shape, start, end], f"{name}/kept")
        size = self.constant(f"{name}/size", self._weights[inputs[1]].astype(np.int64))
        sizes = self.add("Concat", [kept, size], f"{name}/sizes", axis=0)
        self.add("Resize", [source, "", "", sizes], name, mode="linear", coordinate_transformation_mode=mode)

    def _convolution(self, op: str, name: str, inputs: Sequence[str], attr: Mapping[str, Any]) -> None:
        kernel = self._weights[inputs[1]]
        height, width, ins, outs = kernel.shape
        depthwise = "Depthwise" in op
        if depthwise:  # [h, w, channels, each's outputs]
            kernel, group = kernel.reshape(height, width, 1, ins * outs), ins
        else:
            group = 1
        weight = self.constant(f"{name}/weight", kernel.transpose(3, 2, 0, 1))
        bias = [self.constant(f"{name}/bias", self._weights[i]) for i in inputs[2:3]]
        fused = [t for t in _texts(attr.get("fused_ops", {}).get("list", {}).get("s", ())) if t != "BiasAdd"]
        strides = [int(s) for s in attr["strides"]["list"]["i"][1:3]]
        dilations = [int(d) for d in attr.get("dilations", {}).get("list", {}).get("i", "1111")[1:3]]
        padding = {"SAME": "SAME_UPPER", "VALID": "VALID"}[_texts([attr["padding"]["s"]])[0]]
        out = f"{name}/convolution" if fused else name
        self.add(
            "Conv", [self.names[inputs[0]], weight, *bias], out, group=group, strides=strides, dilations=dilations,
            auto_pad=padding,
        )  # fmt: skip
        if fused == ["Relu6"]:
            self._relu6(out, name)
        elif fused:
            if len(fused) > 1 or fused[0] not in _ACTIVATIONS:
                raise SystemExit(f"{name} has {', '.join(fused)} in it, which is not read")
            self.add(_ACTIVATIONS[fused[0]], [out], name)

    def _relu6(self, source: str, name: str) -> None:
        low = self.constant("relu6/min", np.array(0, np.float32))
        self.add("Clip", [source, low, self.constant("relu6/max", np.array(6, np.float32))], name)

    def _operand(self, name: str) -> str:
        """An operand of what goes element by element, a constant turned as the tensors are."""
        if name not in self._weights:
            return self.names[name]
        values = self._weights[name]
        if values.ndim == 1:
            values = values[:, None, None]
        elif values.ndim == 4:
            values = values.transpose(_TURNED)
        return self.constant(name, values)
