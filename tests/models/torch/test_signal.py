"""Random weights: the same for a seed, and made to carry signal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from places import SUPPORT
from torch_exports import properties

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


# --- weights ------------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed_and_say_so(tmp_path: Path) -> None:
    def weights(seed: str, name: str) -> dict[str, bytes]:
        report = export("models_torch:residual", tmp_path / name, weights=seed)
        model = onnx.load(report.path)
        seed = seed.partition(":")[2] or "0"
        assert properties(model)["splitpoint.source"] == f"models_torch:residual, random weights, seed {seed}"
        return {t.name: t.raw_data for t in model.graph.initializer}

    first = weights("random", "a.onnx")
    assert weights("random:0", "b.onnx") == first
    assert weights("random:1", "c.onnx")["head.2.weight"] != first["head.2.weight"]


def test_random_weights_carry_signal_where_the_initial_ones_do_not(tmp_path: Path) -> None:
    plain = export("models_torch:shrinks", tmp_path / "plain.onnx")
    assert "does not move" in str(plain)  # the trap is real: without help nothing of the input arrives
    assert np.isnan(plain.max_error)
    report = export("models_torch:shrinks", tmp_path / "random.onnx", weights="random")
    assert report.max_error < 1e-4
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    a, b = (session.run(None, {"x": draw.normal(size=(1, 8)).astype("f")})[0] for _ in range(2))
    assert np.abs(a - b).max() > 0.01 * np.abs(a).max()


def test_random_weights_that_cannot_carry_signal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hardly depends on its input"):
        export("models_torch:deaf", tmp_path / "deaf.onnx", weights="random")
    assert list(tmp_path.glob("*.onnx")) == []
