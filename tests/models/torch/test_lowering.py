"""Module paths survive the way to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SUPPORT
from torch_exports import module, properties, uncovered

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


def run_all(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every tensor of the model, by the name of the node that makes it."""
    model = onnx.load(path)
    made = {n.output[0]: n.name for n in model.graph.node}
    have = {o.name for o in model.graph.output}
    for name in made:
        if name not in have:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {made[n]: v for n, v in zip(names, session.run(None, feeds), strict=True)}


# --- module paths -----------------------------------------------------------------------------------------------


def test_every_module_path_leads_to_the_node_that_makes_its_output(tmp_path: Path) -> None:
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    model, original = onnx.load(report.path), module("residual")
    assert uncovered(model, [n for n, _ in original.named_modules()]) == []
    assert report.unused == ("auxiliary", "auxiliary.0", "auxiliary.1")

    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    outputs: dict[str, Any] = {}
    for name, part in original.named_modules():
        part.register_forward_hook(lambda _m, _i, o, n=name: outputs.__setitem__(n, o.detach().clone().numpy()))
    with torch.no_grad():
        original(x)
    values = run_all(report.path, {"x": x.numpy()}) | {"x": x.numpy()}

    aliases = json.loads(properties(model)["splitpoint.aliases"])
    last = {properties(n)["splitpoint.layer"]: n.name for n in model.graph.node}
    folded = {"stem.0": "stem.1", "conv": "bn"}  # a folded Conv's node makes the batch norm's output
    for path in [n for n, m in original.named_modules() if not list(m.children()) and n in outputs]:
        node = aliases.get(path) or last[path]
        np.testing.assert_allclose(values[node], outputs[folded.get(path, path)], atol=1e-5, err_msg=path)
    assert aliases["drop"].startswith("add")  # made by the parent's own addition, not by the younger multiplication
    assert aliases["first"] == "x"
    assert set(aliases) == {"first", "stem.0", "skip", "conv", "drop", "head.1", "last"}


def test_weights_used_without_calling_their_module_are_found(tmp_path: Path) -> None:
    report = export("models_torch:pair", tmp_path / "pair.onnx")
    model = onnx.load(report.path)
    aliases = json.loads(properties(model)["splitpoint.aliases"])
    node = next(n for n in model.graph.node if n.name == aliases["attention.out_proj"])
    assert "attention.out_proj.weight" in node.input
    assert [o.name for o in model.graph.output] == ["output_0", "output_1"]


def test_modules_whose_operators_vanish_lead_to_what_holds_them(tmp_path: Path) -> None:
    report = export("models_torch:vanishing", tmp_path / "vanishing.onnx")
    model = onnx.load(report.path)
    assert [n.name for n in model.graph.node] == ["conv/Conv", "tanh/Tanh", "padded/Conv"]
    assert json.loads(properties(model)["splitpoint.aliases"]) == {
        "same": "conv/Conv",  # a reshape to the same shape: its output is its input
        "pad": "padded/Conv",  # folded into what comes after
        "swap.0": "padded/Conv",
        "swap.1": "padded/Conv",
    }
    assert uncovered(model, [n for n, _ in module("vanishing").named_modules()]) == []


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    data = report.path.read_bytes()
    for trace in (b"pkg.torch", b"site-packages", str(Path.cwd()).encode(), str(Path.home()).encode(), b".py"):
        assert trace not in data, trace
    model = onnx.load(report.path)
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert all([p.key for p in n.metadata_props] == ["splitpoint.layer"] for n in model.graph.node)
    assert {t.name for t in model.graph.initializer} >= {"conv.weight", "head.2.weight"}


def test_a_model_that_relies_on_an_in_place_activation_keeps_it(tmp_path: Path) -> None:
    report = export("models_torch:writes_over", tmp_path / "over.onnx")
    assert [n.op_type for n in onnx.load(report.path).graph.node] == ["Gemm", "Relu"]
    assert report.batch is None
