"""The four networks of the Neurosurgeon replica as they are built there, with seeded random weights; no PyTorch.

``splitpoint.models.neurosurgeon:alex_net``, ``vgg_net``, ``le_net``, ``mobile_net`` are MODELs. They differ from those
that the short names ``alex_net`` … stand for, which are torchvision's (and the zoo's LeNet-5): `NETWORKS` says how.
There they have random weights, too, but other ones in each process; here a seed says which (``--weights random:7``).

Layers have the names of that replica's modules. Input: float32[batch,3,224,224], pixels between 0 and 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from splitpoint.errors import ModelError, nearest
from splitpoint.images import InputSpec
from splitpoint.models.layer_names import ALIASES_KEY, LAYER_KEY, SOURCE_KEY
from splitpoint.models.random_weights import kept, pieces, write_model
from splitpoint.tensors import Array

#: The newest that every ONNX Runtime since 1.14 runs, as the zoo's.
_OPSET, _IR = 18, 8
_SPEC = InputSpec(
    dtype="float32", layout="NCHW", size=(224, 224), input="image", mode="shortest", resize_to=256, scale=1 / 255,
    output="logits",
)  # fmt: skip


def neurosurgeon_path(name: str, seed: int = 0) -> Path:
    """The ONNX file of the network called `name`, built if it is not in the cache. ModelError if there is none."""
    name = {"mobilenet": "mobile_net"}.get(name, name)
    if name not in NETWORKS:
        hint = nearest(name, NETWORKS) or f": it has {', '.join(NETWORKS)}"
        raise ModelError(f"{__name__} has no network {name}{hint}")
    return kept(name, seed, lambda path: _write(path, name, seed))


def alex_net(seed: int = 0) -> Path:
    """The ONNX file of their AlexNet: 61,100,840 parameters."""
    return neurosurgeon_path("alex_net", seed)


def vgg_net(seed: int = 0) -> Path:
    """The ONNX file of their VGG-16 with batch norms: 133,792,258 parameters."""
    return neurosurgeon_path("vgg_net", seed)


def le_net(seed: int = 0) -> Path:
    """The ONNX file of their LeNet, for 224 x 224 pixels: 49,854,240 parameters."""
    return neurosurgeon_path("le_net", seed)


def mobile_net(seed: int = 0) -> Path:
    """The ONNX file of their MobileNet: 3,006,716 parameters."""
    return neurosurgeon_path("mobile_net", seed)


@dataclass
class _Net:
    """Layers put one behind the other. `shape` is that of `last`, without the batch."""

    seed: int
    last: str = "image"
    shape: tuple[int, ...] = (3, 224, 224)
    nodes: list[Any] = field(default_factory=list)
    small: list[Any] = field(default_factory=list)
    weights: list[tuple[str, Sequence[int], Iterator[Array]]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    activated: bool = True

    def layer(self, path: str, op: str, *more: str, shape: tuple[int, ...] | None = None, **attributes: Any) -> None:
        node = helper.make_node(op, [self.last, *more], [path], name=path, **attributes)
        node.metadata_props.add(key=LAYER_KEY, value=path)
        self.nodes.append(node)
        self.last, self.shape = path, self.shape if shape is None else shape
        self.activated = op in ("Relu", "Clip", "MaxPool", "AveragePool", "Flatten", "GlobalAveragePool")

    def constant(self, name: str, values: Array) -> str:
        self.small.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def weight(self, path: str, *shape: int) -> str:
        name = f"{path}.weight"
        self.weights.append((name, shape, pieces(name, shape, self.seed, 3.0 if self.activated else 1.0)))
        return name

    # --- kinds of layers ----------------------------------------------------------------------------------------

    def conv(
        self, path: str, out: int, kernel: int, *, stride: int = 1, pad: int = 0, groups: int = 1, bias: bool = True
    ) -> None:
        channels, *sides = self.shape
        weight = self.weight(path, out, channels // groups, kernel, kernel)
        biases = [self.constant(f"{path}.bias", np.zeros(out))] if bias else []
        shape = (out, *((side + 2 * pad - kernel) // stride + 1 for side in sides))
        square: Mapping[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        self.layer(path, "Conv", weight, *biases, shape=shape, group=groups, **square)

    def norm(self, path: str) -> None:
        values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        parts = [self.constant(f"{path}.{name}", np.full(self.shape[0], value)) for name, value in values.items()]
        self.layer(path, "BatchNormalization", *parts, epsilon=1e-5)

    def relu(self, path: str) -> None:
        self.layer(path, "Relu")

    def relu6(self, path: str) -> None:
        ends = [self.constant(f"{path}.{name}", np.array(value)) for name, value in (("min", 0), ("max", 6))]
        self.layer(path, "Clip", *ends)

    def pool(self, path: str, kernel: int, stride: int) -> None:
        channels, *sides = self.shape
        shape = (channels, *((side - kernel) // stride + 1 for side in sides))
        self.layer(path, "MaxPool", shape=shape, kernel_shape=[kernel] * 2, strides=[stride] * 2)

    def flatten(self, path: str) -> None:
        self.layer(path, "Flatten", shape=(prod(self.shape),), axis=1)

    def nothing(self, path: str) -> None:
        """A module that does nothing when the network answers."""
        self.aliases[path] = self.last

    def linear(self, path: str, out: int) -> None:
        weight = self.weight(path, out, self.shape[0])
        self.layer(path, "Gemm", weight, self.constant(f"{path}.bias", np.zeros(out)), shape=(out,), transB=1)


def _alex_net(net: _Net) -> None:
    convs = {0: (64, 11, 4, 1), 3: (192, 5, 1, 2), 6: (384, 3, 1, 1), 8: (256, 3, 1, 1), 10: (256, 3, 1, 1)}
    for k in range(13):
        path = f"layers.{k}"
        if k in convs:
            out, kernel, stride, pad = convs[k]
            net.conv(path, out, kernel, stride=stride, pad=pad)
        elif k in (2, 5, 12):
            net.pool(path, 3, 2)
        else:
            net.relu(path)
    # Adaptive pooling of 5 x 5 to 6 x 6: each place the mean of the one or two beside it.
    net.layer("layers.13", "AveragePool", shape=(256, 6, 6), kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=0)
    net.flatten("layers.14")
    net.nothing("layers.15")
    net.linear("layers.16", 4096)
    net.relu("layers.17")
    net.nothing("layers.18")
    net.linear("layers.19", 4096)
    net.relu("layers.20")
    net.linear("layers.21", 1000)


def _vgg_net(net: _Net) -> None:
    for k, (out, convs) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for j in range(convs):
            path = f"features.{2 * k}"
            net.conv(f"{path}.{3 * j}", out if j == convs - 1 else net.shape[0], 3, pad=1)
            net.norm(f"{path}.{3 * j + 1}")
            net.relu(f"{path}.{3 * j + 2}")
        net.pool(f"features.{2 * k + 1}", 2, 2)
    net.nothing("classifier.0")  # adaptive pooling of 7 x 7 to 7 x 7
    net.flatten("classifier.1")
    for k, out in ((2, 4096), (5, 4096), (8, 1000)):
        net.linear(f"classifier.{k}", out)
        if k < 8:
            net.relu(f"classifier.{k + 1}")
            net.nothing(f"classifier.{k + 2}")


def _le_net(net: _Net) -> None:
    for k, out, pad in ((0, 6, 2), (3, 16, 0)):
        net.conv(f"features.{k}", out, 5, pad=pad)
        net.relu(f"features.{k + 1}")
        net.pool(f"features.{k + 2}", 2, 2)
    net.flatten("classifier.0")
    for k, out in ((1, 1024), (3, 1024), (5, 1000)):
        net.linear(f"classifier.{k}", out)
        if k < 5:
            net.relu(f"classifier.{k + 1}")


#: Of the blocks of their MobileNet: expansion, channels, how many, stride of the first.
_BLOCKS = (
    (1, 16, 1, 1), (1, 24, 2, 2), (0.5, 64, 4, 2), (0.5, 96, 3, 1), (6, 160, 1, 2), (6, 160, 2, 2), (6, 320, 1, 1)
)  # fmt: skip


def _mobile_net(net: _Net) -> None:
    def unit(path: str, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        net.conv(f"{path}.0", out, kernel, stride=stride, pad=kernel // 2, groups=groups, bias=False)
        net.norm(f"{path}.1")
        net.relu6(f"{path}.2")

    unit("features.0", 32, 3, stride=2)
    strides = [(expand, out, stride if k == 0 else 1) for expand, out, n, stride in _BLOCKS for k in range(n)]
    for block, (expand, out, stride) in enumerate(strides, 1):
        path, came, channels = f"features.{block}", net.last, net.shape[0]
        wide, k = round(channels * expand), 0
        if expand != 1:
            unit(f"{path}.conv.0", wide, 1)
            k = 1
        unit(f"{path}.conv.{k}", wide, 3, stride, groups=wide)
        net.conv(f"{path}.conv.{k + 1}", out, 1, bias=False)
        net.norm(f"{path}.conv.{k + 2}")
        if stride == 1 and channels == out:
            net.layer(path, "Add", came)
    unit(f"features.{len(strides) + 1}", 1280, 1)
    net.layer("classifier.0", "GlobalAveragePool", shape=(1280, 1, 1))
    net.flatten("classifier.1")
    net.nothing("classifier.2")
    net.linear("classifier.3", 1000)


@dataclass(frozen=True)
class Network:
    """How a network is put together, and in what it differs from the one that the short name stands for."""

    build: Callable[[_Net], None]
    differs: str


#: Name → network.
NETWORKS: Mapping[str, Network] = {
    "alex_net": Network(
        _alex_net,
        "as torchvision's AlexNet, but the first convolution has padding 1 instead of 2, so that what follows is "
        "smaller by a pixel (54, 26, 12, 5 instead of 55, 27, 13, 6)",
    ),
    "vgg_net": Network(
        _vgg_net,
        "as torchvision's vgg16_bn, but only the last convolution of each block widens: the first one has 3 filters "
        "instead of 64",
    ),
    "le_net": Network(
        _le_net, "a LeNet for 3 x 224 x 224 pixels and 1000 classes; the zoo's LeNet-5 takes 1 x 32 x 32"
    ),
    "mobile_net": Network(
        _mobile_net,
        "as torchvision's mobilenet_v2, but two stages narrow to a half instead of widening by 6, one does not widen, "
        "and the sixth has 160 channels; 15 blocks instead of 17",
    ),
}


def _write(path: Path, name: str, seed: int) -> None:
    net = _Net(seed)
    NETWORKS[name].build(net)
    net.nodes[-1].output[0] = "logits"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        net.nodes, name, [value("image", onnx.TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 1000])], net.small,
    )  # fmt: skip
    proto = helper.make_model(
        graph, producer_name="splitpoint", ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    source = f"the Neurosurgeon replica's {name}, random weights, seed {seed}: {NETWORKS[name].differs}"
    helper.set_model_props(
        proto, {SOURCE_KEY: source, ALIASES_KEY: json.dumps(net.aliases, indent=0), **_SPEC.to_metadata()}
    )
    write_model(path, proto, net.weights)
