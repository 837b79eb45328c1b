"""Files of other frameworks, given as MODEL: what they are, and what to do with them, in half a sentence.

Only the first bytes and the names inside of an archive are looked at. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from splitpoint.files import open_file

_EXPORT = "splitpoint export package.module:function -o net.onnx"
_WEIGHTS = (
    "holds weights without the network they are for: name that, and give them with --weights, as in "
    "torchvision:resnet50 --weights FILE or package.module:function --weights FILE"
)
_SCRIPT = f"is TorchScript, whose layers cannot be told: export the nn.Module it was made from ({_EXPORT})"
_TENSORFLOW = "convert it with python -m tf2onnx.convert"
_KERAS = f"is a Keras model: {_TENSORFLOW}, or Keras's model.export(format='onnx')"
_ENGINE = "is a TensorRT engine, built for one GPU: give the .onnx file it was built from (and --device tensorrt)"
_NO_MODEL = (
    "is not an ONNX file, or it is cut short: give an .onnx or .pt2 file, or a name such as zoo:lenet5 or timm:resnet18"
)

#: First bytes, at an offset → what it is.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", "is a TensorFlow Lite model: convert it with python -m tf2onnx.convert --tflite"),
    (4, b"ORTM", "is in ONNX Runtime's own format, which cannot be cut: give the .onnx file it was made from"),
    (0, b"\x89HDF\r\n\x1a\n", _KERAS),
    (0, b"GGUF", "is a GGUF file (llama.cpp), whose network is not in it: splitpoint cannot cut it"),
    (0, b"ftrt", _ENGINE),
    (0, b"ptrt", _ENGINE),
    (0, b"version https://git-lfs", "is a pointer that Git LFS left in place of the file: git lfs pull fetches it"),
    (0, b"\x1f\x8b", "is compressed (gzip): unpack it first"),
)  # fmt: skip
#: Suffix → what such files are, where the bytes do not tell.
_SUFFIXES: Mapping[str, str] = {
    ".pt": _WEIGHTS, ".pth": _WEIGHTS, ".ckpt": _WEIGHTS, ".bin": _WEIGHTS, ".safetensors": _WEIGHTS,
    ".torchscript": _SCRIPT, ".ptl": _SCRIPT, ".h5": _KERAS, ".keras": _KERAS, ".hdf5": _KERAS,
    ".tflite": "is a TensorFlow Lite model: convert it with python -m tf2onnx.convert --tflite",
    ".ort": "is in ONNX Runtime's own format, which cannot be cut: give the .onnx file it was made from",
    ".pb": f"is a TensorFlow graph: {_TENSORFLOW}",
    ".engine": _ENGINE, ".plan": _ENGINE, ".trt": _ENGINE,
    ".gguf": "is a GGUF file (llama.cpp), whose network is not in it: splitpoint cannot cut it",
    ".mlmodel": "is a Core ML model: export the network it was made from to ONNX",
    ".mlpackage": "is a Core ML model: export the network it was made from to ONNX",
    ".xml": "is an OpenVINO model: give the .onnx file it was made from",
    ".pdmodel": "is a Paddle model: convert it with paddle2onnx",
    ".caffemodel": "is a Caffe model: export the network it was made from to ONNX",
    ".pkl": "is a pickle, which could run code: convert what it holds to ONNX (scikit-learn: skl2onnx)",
    ".joblib": "is a pickle, which could run code: convert what it holds to ONNX (scikit-learn: skl2onnx)",
}  # fmt: skip
#: A file of such a name is meant as a model, whatever is in it.
MODEL_SUFFIXES = frozenset({".onnx", ".pt2", *_SUFFIXES})


def what_is(path: Path) -> str:
    """What the file or folder is that is no ONNX file, and what to do; empty where that is not known."""
    try:
        if path.is_dir():
            return _folder(path)
        with open_file(path) as file:
            start = file.read(64)
    except OSError:
        return ""
    for offset, magic, text in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return text
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page: the download went wrong (a login, or a page about the file instead of the file)"
    if start[:4] == b"PK\x03\x04":
        return _archive(path)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":  # a pickle
        return _SUFFIXES[".pkl"] if path.suffix.lower() in (".pkl", ".joblib") else _WEIGHTS
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return _WEIGHTS  # safetensors
    suffix = path.suffix.lower()
    return _SUFFIXES.get(suffix, "" if suffix == ".onnx" else _NO_MODEL)


def _archive(path: Path) -> str:
    """Of a zip archive, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return _SUFFIXES.get(path.suffix.lower(), "")
    inside = {name.partition("/")[2] for name in names}  # PyTorch puts all into one folder
    if any(name.startswith("code/") for name in inside):
        return _SCRIPT
    if "archive_format" in inside or any(name.startswith("models/") for name in (*names, *inside)):
        return "is a program that torch.export saved: give it the suffix .pt2"
    if "data.pkl" in inside:
        return _WEIGHTS
    if "config.json" in names and "metadata.json" in names:
        return _KERAS
    onnx = next((name for name in names if name.endswith(".onnx")), "")
    return f"is a zip archive: unpack it first (it holds {onnx})" if onnx else "is a zip archive, and no model is in it"


def _folder(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    if models := [name for name in names if name.endswith(".onnx")]:
        return f"is a folder: name the file, such as {path / models[0]}"
    if "saved_model.pb" in names:
        return f"is a TensorFlow SavedModel: {_TENSORFLOW} --saved-model {path}"
    if "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names):
        return f"is a folder of the transformers library: say hf:{path}"
    return _SUFFIXES.get(path.suffix.lower(), "is a folder, not an ONNX file")
