"""Models of torchvision, timm and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from places import SUPPORT
from torch_exports import layers, properties, uncovered

from splitpoint.models import load
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


def test_a_text_model_from_its_type_and_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.BertModel(config, add_pooling_layer=True).eval().save_pretrained(tmp_path / "tiny")
    name = f"hf:{tmp_path / 'tiny'}"
    report = export(name, tmp_path / "tiny.onnx", shapes={"input_ids": (1, 12)})
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "input_ids": ("tensor(int64)", ["batch", 12]),
        "attention_mask": ("tensor(int64)", ["batch", 12]),
    }
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state"]
    original = transformers.BertModel.from_pretrained(tmp_path / "tiny").eval()
    ids, mask = torch.arange(36).reshape(3, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 12])
    with torch.no_grad():
        want = original(ids, mask).last_hidden_state.numpy()
    got = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert "pooler.dense" in report.unused  # its output is not among ours
    assert uncovered(onnx.load(report.path), [n for n, _ in original.named_modules()]) == []

    seeded = export(name, tmp_path / "random.onnx", weights="random:4")
    assert "random weights, seed 4" in seeded.weights


# --- a real one ---------------------------------------------------------------------------------------------------


def test_mobilenet_takes_pixels_and_knows_its_layers(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    from splitpoint.images import InputSpec

    report = export("mobile_net", tmp_path / "m.onnx", weights="random", shapes={"image": (1, 96, 64, 3)})
    assert report.source == "torchvision:mobilenet_v2"
    assert report.batch is None
    assert report.max_error < 1e-3
    model = onnx.load(report.path)
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 96, 64, 3])
    ]
    spec = InputSpec.from_metadata(properties(model))
    assert spec is not None
    assert (spec.size, spec.mode, spec.task, len(spec.labels)) == ((96, 64), "shortest", "classify", 1000)
    assert layers(model)[:2] == ["preprocess", "preprocess"]
    original = models.mobilenet_v2(weights=None)
    assert uncovered(model, [n for n, _ in original.named_modules()]) == []
    aliases = json.loads(properties(model)["splitpoint.aliases"])
    assert aliases["features.2.conv.0.0"] == "features.2.conv.0.1/Conv"
    graph = load(report.path).graph
    assert {n for n, _ in original.named_modules() if n} <= set(graph.modules)
    # As the first seed lists them: what has no children, by its name inside `features`.
    listed = [n for n, module in original.features.named_modules() if not list(module.children())]
    assert len(listed) == 139
    assert listed[:5] == ["0.0", "0.1", "0.2", "1.conv.0.0", "1.conv.0.1"]
    for name in listed:
        assert graph.cut(name).nodes == graph.cut(f"features.{name}").nodes
