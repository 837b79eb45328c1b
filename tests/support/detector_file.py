"""Writes a small detector as training packages export YOLO: images [1, 3, 640, 640] to output0 [1, 84, 8400].

    python tests/support/detector_file.py yolo.onnx

Three scales, concatenated: boxes of 4 and 80 classes for 80×80, 40×40 and 20×20 places. Its weights are random.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def detector() -> onnx.ModelProto:
    """The model; the same bytes every time."""
    draws = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(name: str, x: str, channels: tuple[int, int], stride: int, silu: bool = True) -> str:
        few, many = channels
        size = 3 if stride == 2 else 1
        values = draws.normal(0, (few * size * size) ** -0.5, (many, few, size, size)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        window = {"kernel_shape": [size, size], "strides": [stride] * 2, "pads": [size // 2] * 4}
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight"], [f"{name}.out"], f"{name}/Conv", **window))
        if not silu:
            return f"{name}.out"
        nodes.append(helper.make_node("Sigmoid", [f"{name}.out"], [f"{name}.gate"], f"{name}/Sigmoid"))
        nodes.append(helper.make_node("Mul", [f"{name}.out", f"{name}.gate"], [f"{name}.act"], f"{name}/Mul"))
        return f"{name}.act"

    x, scales = "images", []
    for k, (few, many) in enumerate([(3, 8), (8, 16), (16, 32), (32, 32), (32, 32)]):
        x = conv(f"/model.{k}", x, (few, many), 2)
        if k >= 2:
            scales.append(x)
    weights.append(numpy_helper.from_array(np.array([1, 84, -1], np.int64), "flat"))
    rows = []
    for k, scale in enumerate(scales):
        head = conv(f"/model.22/cv{k}", scale, (32, 84), 1, silu=False)
        nodes.append(helper.make_node("Reshape", [head, "flat"], [f"rows{k}"], f"/model.22/Reshape{k}"))
        rows.append(f"rows{k}")
    nodes.append(helper.make_node("Concat", rows, ["output0"], "/model.22/Concat", axis=2))
    graph = helper.make_graph(
        nodes, "yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 84, 8400])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    onnx.save(detector(), sys.argv[1])
