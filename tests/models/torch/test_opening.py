"""Functions and exported programs: what can be opened, and why what cannot is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SUPPORT
from torch_exports import Harmful, layers, module

from splitpoint.errors import ModelError, UsageError
from splitpoint.models.torch import export

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.syspath_prepend(str(SUPPORT))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:mobilenet_v9", "did you mean mobilenet_v2"),
        ("torchvision:fasterrcnn_resnet50_fpn", "detectors take a list of images"),
        ("torchvision:raft_small", "two images"),
        ("timm:levt_128", "did you mean levit_128"),
        ("no_such_module:make", "no Python module no_such_module"),
        ("models_torch:residul", "did you mean residual"),
        ("models_torch:not_a_module", "must return"),
        ("models_torch:fails", "the data set is on the other disk"),
        ("models_torch:branches", "decides by the values of a tensor"),
        ("nowhere.pt2", "no such file"),
        ("zoo:lenet5", "needs no export"),
    ],
)
def test_what_cannot_be_exported_says_why(name: str, says: str, tmp_path: Path) -> None:
    if name.split(":")[0] in ("torchvision", "timm"):
        pytest.importorskip(name.split(":")[0])
    with pytest.raises(ModelError, match=says):
        export(name, tmp_path / "x.onnx", weights="random" if name.startswith(("torchv", "timm")) else None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": "random:x"}, "whole number"),
        ({"shapes": {"nothing": (1, 3)}}, "no input nothing; its inputs are x"),
    ],
)
def test_senseless_arguments(arguments: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        export("models_torch:residual", tmp_path / "x.onnx", **arguments)


def test_an_exported_program(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    original = module("residual")
    saved = torch.export.export(original, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(saved, tmp_path / "net.pt2")
    report = export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    assert report.batch is None
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        want = original(x).numpy()
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], want, atol=1e-5)
    assert "stem.1" in layers(onnx.load(report.path))
    with pytest.raises(UsageError, match="weights inside"):
        export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx", weights="random")


def test_an_exported_program_with_a_fixed_batch(tmp_path: Path) -> None:
    saved = torch.export.export(module("named"), (), {"left": torch.randn(2, 6), "right": torch.randn(2, 4)})
    torch.export.save(saved, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="positional"):
        export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    saved = torch.export.export(module("named"), (torch.randn(2, 6), torch.randn(2, 4)))
    torch.export.save(saved, tmp_path / "net.pt2")
    report = export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    assert report.batch == 2


def test_a_pickle_in_an_exported_program_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import io
    import zipfile

    saved = torch.export.export(module("named"), (torch.randn(2, 6), torch.randn(2, 4)))
    torch.export.save(saved, tmp_path / "net.pt2")
    buffer = io.BytesIO()
    torch.save(Harmful(), buffer)
    with zipfile.ZipFile(tmp_path / "net.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in good.namelist():
            data = good.read(name)
            evil.writestr(name, buffer.getvalue() if data[:2] == b"PK" else data)
    with pytest.raises(ModelError, match="could run code and is refused"):
        export(str(tmp_path / "evil.pt2"), tmp_path / "net.onnx")
    assert "this ran" not in capsys.readouterr().out
    (tmp_path / "text.pt2").write_text("not an archive")
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        export(str(tmp_path / "text.pt2"), tmp_path / "net.onnx")


def test_what_is_wrapped_around_a_module_is_taken_off(tmp_path: Path) -> None:
    export("models_torch:parallel", tmp_path / "net.onnx")
    assert layers(onnx.load(tmp_path / "net.onnx")) == ["0", "1"]


def test_a_module_without_inputs(tmp_path: Path) -> None:
    report = export("models_torch:nothing", tmp_path / "net.onnx")
    assert report.max_error < 1e-6
    assert not report.notes
