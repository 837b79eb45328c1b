"""What is exported: example inputs of the shapes that were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import SUPPORT

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


def test_shapes_change_the_example(tmp_path: Path) -> None:
    report = export("models_torch:named", tmp_path / "x.onnx", shapes={"left": (1, 6), "right": (1, 1)})
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [i.shape for i in session.get_inputs()] == [["batch", 6], ["batch", 1]]
