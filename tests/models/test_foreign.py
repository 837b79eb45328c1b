"""Files of other frameworks given as MODEL: one sentence that says what they are and what to do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import nets
from splitpoint.cli import main
from splitpoint.errors import ModelError
from splitpoint.models import load


def archive(*names: str) -> bytes:
    import io

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return data.getvalue()


SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
WEIGHTS, SCRIPT = "holds weights without the network", "is TorchScript"
CASES = [
    ("net.pth", archive("net/data.pkl", "net/data/0"), WEIGHTS),
    ("net.pt", archive("net/data.pkl", "net/version"), WEIGHTS),
    ("old.pth", b"\x80\x02}q\x00.", WEIGHTS),
    ("net.pt", archive("net/data.pkl", "net/code/__torch__.py"), SCRIPT),
    ("net.bin", archive("net/data.pkl"), WEIGHTS),
    ("net.safetensors", SAFETENSORS, WEIGHTS),
    ("named.onnx", SAFETENSORS, WEIGHTS),
    ("net.pt", archive("archive_format", "models/model.json"), "torch.export saved: give it the suffix .pt2"),
    ("net.tflite", b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite model: convert it with"),
    ("named.onnx", b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite model"),
    ("net.ort", b"\x1c\0\0\0ORTM" + bytes(40), "ONNX Runtime's own format"),
    ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "Keras model"),
    ("net.keras", archive("metadata.json", "config.json", "model.weights.h5"), "Keras model"),
    ("net.pb", b"\xff\xff\xff", "TensorFlow graph"),
    ("net.engine", b"\xff\xff\xff", "TensorRT engine"),
    ("net.plan", b"ftrt" + bytes(40), "TensorRT engine"),
    ("net.gguf", b"GGUF" + bytes(40), "GGUF file"),
    ("net.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    ("net.onnx", b"<!DOCTYPE html><html></html>", "is a web page"),
    ("net.onnx", b"\x1f\x8b" + bytes(40), "gzip"),
    ("net.zip", archive("a/net.onnx"), r"unpack it first \(it holds a/net.onnx\)"),
    ("net.pkl", b"\x80\x04}\x94.", "a pickle, which could run code"),
    ("net.xml", b"<net></net>", "OpenVINO"),
    ("net.onnx", b"\xff\xff\xff", "is not an ONNX file, or it is cut short"),
    ("notes.txt", b"what is in it is text\n", "is not an ONNX file, .*: give an .onnx or .pt2 file, or a name"),
]


@pytest.mark.parametrize(("name", "data", "said"), CASES)
def test_what_a_file_is_and_what_to_do(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError, match=said):
        load(path)


def test_an_onnx_file_may_have_any_suffix(tmp_path: Path) -> None:
    assert load(nets.saved(nets.residual(), tmp_path / "net.pb")).name == "net"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("model.onnx", "model.onnx_data"), "name the file, such as .*model.onnx"),
        (("saved_model.pb",), "SavedModel: convert it with .* --saved-model"),
        (("config.json", "model.safetensors"), "say hf:"),
        (("readme.md",), "is a folder, not an ONNX file"),
    ],
)
def test_folders(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("verb", [["inspect"], ["run"], ["run", "--cloud", "127.0.0.1:1"], ["serve"]])
def test_every_verb_says_it(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    rest = [str(tmp_path / "photo.npz")] if verb[0] == "run" else []
    (tmp_path / "photo.npz").write_bytes(archive("x.npy"))
    assert main([verb[0], str(path), *rest, *verb[1:]]) == 3
    assert "TensorFlow Lite model" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("net.pth", "net.tflite", "net.onnx"):
        with pytest.raises(ModelError, match="no such file"):
            load(tmp_path / name)
