"""A network under way: layers are added as exporters write them, with random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from splitpoint.models.dataflow import Proto
from splitpoint.models.reading import INLINE_BYTES
from splitpoint.tensors import Array

Rng = np.random.Generator
Shape = tuple[int, ...]

_OPSET, _IR = 20, 10


class Sketch:
    """A network under way: nodes, weights and the shape of every tensor. Methods add a layer and return its result.

    `work` is about how many FLOPs it is to have in the end; `flops` are those it has so far.
    """

    def __init__(self, rng: Rng, work: float) -> None:
        self.rng, self.work = rng, work
        self.flops = 0.0
        self._nodes: list[Proto] = []
        self._weights: list[Proto] = []
        self._inputs: list[Proto] = []
        self._shapes: dict[str, Shape] = {}

    def pick(self, *values: Any) -> Any:
        """One of `values`."""
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def spread(self, low: float, high: float) -> float:
        """A number between two, evenly in ratio."""
        return float(low * (high / low) ** self.rng.random())

    def width(self, low: float, high: float) -> int:
        """A number of channels: nearly always one that eight divides, as in most networks."""
        step: int = self.pick(8, 8, 8, 8, 16, 16, 32, 4, 2, 1)
        return max(step, round(self.spread(low, high) / step) * step)

    def shape(self, tensor: str) -> Shape:
        return self._shapes[tensor]

    def channels(self, tensor: str) -> int:
        return self._shapes[tensor][1]

    def image(self, side: int) -> str:
        """A photo as it comes, and what makes floats of it."""
        from onnx import TensorProto

        x = self.input((1, side, side, 3), TensorProto.UINT8)
        x = self.add("Transpose", [x], (1, 3, side, side), perm=[0, 3, 1, 2])
        x = self.add("Cast", [x], (1, 3, side, side), to=TensorProto.FLOAT)
        x = self.add("Mul", [x, self.weight((1, 3, 1, 1), 0.01, 0.02)], (1, 3, side, side))
        return self.add("Add", [x, self.weight((1, 3, 1, 1), -2.0, -1.5)], (1, 3, side, side))

    def input(self, shape: Shape, dtype: int = 1) -> str:
        from onnx import helper

        name = f"input{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self._shapes[name] = shape
        return name

    def weight(self, shape: Shape, low: float | None = None, high: float = 0.0) -> str:
        """A weight: small ones have their values, uniform between two numbers or normal; large ones are stand-ins."""
        from onnx import TensorProto, numpy_helper

        name = f"w{len(self._weights)}"
        self._shapes[name] = shape
        if 4 * prod(shape) <= INLINE_BYTES:
            if low is None:
                values = self.rng.standard_normal(shape) * np.sqrt(2 / max(1, prod(shape[1:])))
            else:
                values = self.rng.uniform(low, high, shape)
            self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
            return name
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"sha256:{hashlib.sha256(name.encode()).hexdigest()}")
        self._weights.append(tensor)
        return name

    def numbers(self, *values: float) -> str:
        """A constant with one dimension: a shape, axes; scales, if they are floats."""
        return self._constant(np.array(values, np.float32 if isinstance(values[0], float) else np.int64))

    def number(self, value: float) -> str:
        """A constant without a dimension: an index, or a float."""
        return self._constant(np.array(value, np.float32 if isinstance(value, float) else np.int64))

    def _constant(self, values: Array) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        self._shapes[name] = values.shape
        return name

    def add(self, op: str, inputs: Sequence[str], shape: Shape, flops: float = 0.0, **attributes: Any) -> str:
        """A node with one result of `shape`."""
        return self.split(op, inputs, [shape], flops, **attributes)[0]

    def split(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Shape], flops: float = 0.0, **attributes: Any
    ) -> list[str]:
        """A node with a result of each shape."""
        from onnx import helper

        k = len(self._nodes)
        names = [f"t{k}.{j}" for j in range(len(shapes))]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{k}", **attributes))
        self._shapes.update(zip(names, shapes, strict=True))
        self.flops += flops
        return names

    def proto(self, result: str) -> Proto:
        """What was added, as an ONNX model that gives `result`, without the values of its large weights."""
        from onnx import TensorProto, helper

        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, self._shapes[result])
        graph = helper.make_graph(self._nodes, "strip", self._inputs, [output], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)

    def conv(
        self, x: str, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1, act: str = "",
        pad: int | None = None,
    ) -> str:  # fmt: skip
        """A convolution with its bias, padded to keep the size unless `pad` is given, and an activation."""
        _, c, h, w = self.shape(x)
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        ph, pw = (kh // 2, kw // 2) if pad is None else (pad, pad)
        size = ((h + 2 * ph - kh) // stride + 1, (w + 2 * pw - kw) // stride + 1)
        shape = (1, out, *size)
        weight, bias = self.weight((out, c // groups, kh, kw)), self.weight((out,), -0.01, 0.01)
        result = self.add(
            "Conv", [x, weight, bias], shape, 2 * prod(shape) * c // groups * kh * kw, group=groups,
            kernel_shape=[kh, kw], strides=[stride, stride], pads=[ph, pw, ph, pw], dilations=[1, 1],
        )  # fmt: skip
        return self.act(result, act)

    def act(self, x: str, name: str) -> str:
        """An activation: an operator of ONNX, or Relu6, Silu, or none."""
        shape = self.shape(x)
        if not name:
            return x
        if name == "Relu6":
            return self.add("Clip", [x, self.number(0.0), self.number(6.0)], shape)
        if name == "Silu":
            return self.add("Mul", [x, self.add("Sigmoid", [x], shape)], shape)
        if name == "PRelu":
            return self.add(name, [x, self.weight((shape[1], 1, 1), 0.1, 0.3)], shape)
        return self.add(name, [x], shape)

    def pool(self, x: str, op: str = "MaxPool", kernel: int = 2, stride: int = 2, pad: int = 0) -> str:
        """A window's largest or mean."""
        _, c, h, w = self.shape(x)
        if min(h, w) + 2 * pad < kernel:
            return x
        size = tuple((s + 2 * pad - kernel) // stride + 1 for s in (h, w))
        return self.add(
            op, [x], (1, c, *size), kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4
        )  # fmt: skip

    def mean(self, x: str) -> str:
        """The mean over all positions, which keep their dimensions."""
        shape = (1, self.channels(x), 1, 1)
        if self.chance(0.2):
            return self.add("GlobalAveragePool", [x], shape)
        return self.add("ReduceMean", [x, self.numbers(-1, -2)], shape, keepdims=1)

    def linear(self, x: str, out: int, act: str = "") -> str:
        """A product with weights: Gemm of [rows, width], MatMul and Add of more dimensions."""
        *lead, width = self.shape(x)
        flops = 2.0 * prod(lead) * width * out
        if len(lead) == 1:
            weights = [self.weight((out, width)), self.weight((out,), -0.01, 0.01)]
            result = self.add("Gemm", [x, *weights], (*lead, out), flops, transB=1)
        else:
            result = self.add("MatMul", [x, self.weight((width, out))], (*lead, out), flops)
            result = self.add("Add", [result, self.weight((out,), -0.01, 0.01)], (*lead, out))
        return self.act(result, act)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", [x, self.numbers(*shape)], shape)

    def transpose(self, x: str, *perm: int) -> str:
        return self.add("Transpose", [x], tuple(self.shape(x)[p] for p in perm), perm=list(perm))

    def sum(self, x: str, y: str, op: str = "Add") -> str:
        shape = tuple(np.broadcast_shapes(self.shape(x), self.shape(y)))
        return self.add(op, [x, y], shape)

    def concat(self, parts: Sequence[str]) -> str:
        """`parts` behind each other, along their channels."""
        first, _, *rest = self.shape(parts[0])
        return self.add("Concat", parts, (first, sum(map(self.channels, parts)), *rest), axis=1)

    def norm(self, x: str) -> str:
        """Layer norm over the last dimension."""
        width = self.shape(x)[-1]
        weights = [self.weight((width,), 0.9, 1.1), self.weight((width,), -0.1, 0.1)]
        return self.add("LayerNormalization", [x, *weights], self.shape(x), axis=-1, epsilon=1e-6)

    def batch_norm(self, x: str, act: str = "") -> str:
        c = self.channels(x)
        weights = [self.weight((c,), low, high) for low, high in ((0.9, 1.1), (-0.1, 0.1), (-0.1, 0.1), (0.9, 1.1))]
        return self.act(self.add("BatchNormalization", [x, *weights], self.shape(x)), act)

    def across(self, x: str) -> str:
        """Each position normalised across neighbouring channels (LRN)."""
        return self.add("LRN", [x], self.shape(x), size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def excite(self, x: str, share: float, act: str, gate: str) -> str:
        """Squeeze and excitation: channels are weighted by what the mean over positions says."""
        c = self.channels(x)
        squeezed = self.conv(self.mean(x), max(8, round(c * share / 8) * 8), act=act)
        return self.sum(x, self.conv(squeezed, c, act=gate), "Mul")

    def classify(self, x: str) -> str:
        """Mean over positions, then a score for each class.

        Some have wide products before that, which push the other weights out of the cache from one run to the next, as
        the many layers of a large network do.
        """
        x = self.reshape(self.mean(x), 1, self.channels(x))
        if self.chance(0.3):
            for _ in range(2):
                x = self.linear(x, self.width(800, 5000), "Relu")
        return self.linear(x, self.pick(10, 100, 365, 1000, 1000, 1000))
