from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bench.real_nets import from_pixels, up_to
from bench.tfjs import to_onnx

RNG = np.random.default_rng(0)


def text(words: str) -> str:
    return base64.b64encode(words.encode()).decode()


class Document:
    """A model.json and its .bin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shape = {"dim": [{"size": str(n)} for n in (1, 6, 5, 3)]}
        self.nodes: list[dict[str, Any]] = [{"name": "x", "op": "Placeholder", "attr": {"shape": {"shape": shape}}}]
        self.weights: list[dict[str, Any]] = []
        self.data = b""

    def constant(self, name: str, values: np.ndarray, half: bool = False) -> None:
        entry: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        if half:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        self.weights.append(entry)
        self.nodes.append({"name": name, "op": "Const"})
        self.data += values.astype(np.float16 if half else values.dtype).tobytes()

    def node(self, name: str, op: str, *inputs: str, **attr: Any) -> None:
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attr})

    def convolution(self, name: str, op: str, *inputs: str, stride: int = 1, fused: tuple[str, ...] = ()) -> None:
        strides, words = [str(n) for n in (1, stride, stride, 1)], [text(f) for f in fused]
        self.node(
            name, op, *inputs, strides={"list": {"i": strides}}, padding={"s": text("SAME")},
            fused_ops={"list": {"s": words}},
        )  # fmt: skip

    def run(self, outputs: list[str], picture: np.ndarray) -> np.ndarray:
        (self.folder / "net.bin").write_bytes(self.data)
        document = {
            "modelTopology": {"node": self.nodes[::-1]},  # in no order
            "weightsManifest": [{"paths": ["net.bin"], "weights": self.weights}],
        }
        (self.folder / "net.json").write_text(json.dumps(document))
        proto = to_onnx(self.folder / "net.json", outputs)
        onnx.checker.check_model(proto, full_check=True)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        [answer] = session.run(None, {"x": picture})
        return answer


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's convolution with SAME padding, by hand: x [h, w, ins], kernel [kh, kw, ins, outs]."""
    height, width = (-(-n // stride) for n in x.shape[:2])
    pads = [max(0, (m - 1) * stride + k - n) for m, k, n in zip((height, width), kernel.shape, x.shape, strict=False)]
    padded = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)])
    out = np.zeros((height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            part = padded[i * stride : i * stride + kernel.shape[0], j * stride : j * stride + kernel.shape[1]]
            out[i, j] = np.einsum("hwc,hwco->o", part, kernel)
    return out


def picture() -> np.ndarray:
    return RNG.normal(size=(1, 6, 5, 3)).astype(np.float32)


def test_convolutions_pad_and_fuse_as_tensorflow_does(tmp_path: Path) -> None:
    document, x = Document(tmp_path), picture()
    kernel = RNG.normal(size=(3, 3, 3, 4)).astype(np.float16).astype(np.float32)
    bias, deep = RNG.normal(size=4).astype(np.float32), RNG.normal(size=(3, 3, 4, 1)).astype(np.float32)
    document.constant("kernel", kernel, half=True)
    document.constant("bias", bias)
    document.constant("deep", deep)
    document.convolution("a", "_FusedConv2D", "x", "kernel", "bias", stride=2, fused=("BiasAdd", "Relu6"))
    document.convolution("b", "DepthwiseConv2dNative", "a", "deep")
    first = np.clip(convolved(x[0], kernel, 2) + bias, 0, 6)
    expected = np.concatenate([convolved(first[..., c : c + 1], deep[:, :, c : c + 1], 1) for c in range(4)], axis=2)
    np.testing.assert_allclose(document.run(["b"], x)[0].transpose(1, 2, 0), expected, atol=1e-4)


def test_what_goes_by_element_keeps_channels_apart(tmp_path: Path) -> None:
    document, x = Document(tmp_path), picture()
    each, axes = np.array([1, 2, 3], np.float32), np.array([1, 2], np.int32)
    document.constant("each", each)
    document.constant("half", np.array(0.5, np.float32))
    document.constant("axes", axes)
    document.constant("axis", np.array(3, np.int32))
    document.node("a", "Mul", "x", "each")
    document.node("b", "Sub", "half", "a")
    document.node("c", "Mean", "b", "axes", keep_dims={"b": True})
    document.node("d", "Sigmoid", "c")
    document.node("e", "Mul", "b", "d")
    document.node("f", "ConcatV2", "e", "x", "axis")
    b = 0.5 - x * each
    e = b / (1 + np.exp(-b.mean((1, 2), keepdims=True)))
    expected = np.concatenate([e, x], axis=3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(document.run(["f"], x), expected, atol=1e-5)


def test_outputs_are_joined_along_the_channels(tmp_path: Path) -> None:
    document, x = Document(tmp_path), picture()
    document.node("a", "Relu", "x")
    document.node("b", "Relu6", "x")
    expected = np.concatenate([np.maximum(x, 0), np.clip(x, 0, 6)], axis=3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(document.run(["a", "b"], x), expected)


@pytest.mark.parametrize("half", [False, True])
def test_resizing_is_bilinear(tmp_path: Path, half: bool) -> None:
    document, x = Document(tmp_path), picture()
    document.constant("size", np.array([12, 10], np.int32))
    document.node("a", "ResizeBilinear", "x", "size", half_pixel_centers={"b": half}, align_corners={"b": False})
    got = document.run(["a"], x)[0]
    at = [np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5 if half else np.arange(2 * n) / 2, 0, n - 1) for n in (6, 5)]
    rows, columns = (np.maximum(0, 1 - np.abs(a[:, None] - np.arange(n))) for a, n in zip(at, (6, 5), strict=True))
    np.testing.assert_allclose(got, np.einsum("ih,jw,hwc->cij", rows, columns, x[0]), atol=1e-5)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    document = Document(tmp_path)
    document.node("odd", "Einsum", "x")
    with pytest.raises(SystemExit, match="odd is a Einsum, which is not read"):
        document.run(["odd"], picture())


def test_pixels_are_normalised_in_the_graph() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["in"], ["mid"]), onnx.helper.make_node("Neg", ["mid"], ["out"])],
        "g",
        [onnx.helper.make_tensor_value_info("in", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    proto = onnx.helper.make_model(inner, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    proto = from_pixels(up_to(proto, "mid"), 4, mean=(10, 20, 30), std=(1, 2, 4), channels_first=True, bgr=True)
    onnx.checker.check_model(proto, full_check=True)
    image = RNG.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [answer] = session.run(None, {"image": image})
    expected = np.maximum((image[..., ::-1] - np.array([10.0, 20, 30])) / [1, 2, 4], 0).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(answer, expected, rtol=1e-6)
