"""What `--weights` says: files, downloads, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from places import SUPPORT
from torch_exports import Harmful, module

from splitpoint.errors import ModelError
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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".nested.pt"])
def test_weights_from_a_file_arrive(tmp_path: Path, suffix: str) -> None:
    other = module("residual")
    with torch.no_grad():
        for value in other.parameters():
            value.uniform_(0.1, 1)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(other.state_dict(), path)
    elif suffix == ".pth":
        torch.save(other.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}, "epoch": 3}, path)
    report = export("models_torch:residual", tmp_path / "residual.onnx", weights=str(path))
    assert f"weights from weights{suffix}" in report.weights
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = other(x).numpy()
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, rtol=1e-4, atol=1e-4)


def test_weights_of_another_model_name_the_keys(tmp_path: Path) -> None:
    state = module("residual").state_dict()
    state["conv.weight"] = torch.zeros(4, 4)
    state["head.9.weight"] = state.pop("head.2.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        export("models_torch:residual", tmp_path / "x.onnx", weights=str(tmp_path / "other.pt"))
    text = str(caught.value)
    assert "1 weights are missing (head.2.weight)" in text
    assert "head.9.weight" in text
    assert "conv.weight is [4, 4], the model needs [8, 8, 3, 3]" in text


def test_a_pickle_in_a_weights_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv.weight": Harmful()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="not a file of plain weights"):
        export("models_torch:residual", tmp_path / "x.onnx", weights=str(tmp_path / "evil.pt"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torchvision:alexnet", "timm:levit_128s", "hf:google-bert/bert-base-uncased"])
def test_weights_that_cannot_be_downloaded_are_an_error_with_the_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"hf": "transformers"}.get(name.split(":")[0], name.split(":")[0]))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ModelError, match="cannot be downloaded") as caught:
        export(name, tmp_path / "x.onnx")
    assert "--weights random" in str(caught.value)
    assert name.startswith("hf:") or "--weights FILE" in str(caught.value)
    assert list(tmp_path.glob("*.onnx")) == []


def test_a_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        export("models_torch:residual", tmp_path / "x.onnx", weights="nowhere.pt")
