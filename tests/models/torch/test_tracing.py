"""From a module to a file: the batch, large weights, the check against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from places import SUPPORT

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


# --- batch, inputs, outputs ---------------------------------------------------------------------------------------


def test_the_batch_is_free(tmp_path: Path) -> None:
    report = export("models_torch:named", tmp_path / "named.onnx")
    assert report.batch is None
    assert report.max_error < 1e-5
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {"left": ["batch", 6], "right": ["batch", 4]}
    assert {o.name: o.shape for o in session.get_outputs()} == {"out": ["batch", 4], "aux": ["batch"]}
    for batch in (1, 5):
        out, aux = session.run(None, {"left": np.ones((batch, 6), "f"), "right": np.ones((batch, 4), "f")})
        assert (out.shape, aux.shape) == ((batch, 4), (batch,))


def test_a_batch_that_cannot_be_free_is_fixed_at_one_and_said_so(tmp_path: Path) -> None:
    report = export("models_torch:one_at_a_time", tmp_path / "one.onnx")
    assert report.batch == 1
    assert "the batch is fixed at 1" in str(report)
    assert "size of the batch" in str(report)


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitpoint.models.torch import tracing

    monkeypatch.setattr(tracing, "_INLINE_LIMIT", 100)
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["residual.onnx", "residual.onnx.data"]
    assert report.nbytes == sum(p.stat().st_size for p in tmp_path.iterdir() if p.is_file())
    ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])


def test_the_relative_error_is_measured_against_what_an_output_moves_by() -> None:
    from splitpoint.models.torch.tracing import _Different, relative_error

    a, b = np.full((1, 4), 100, "f"), np.full((1, 4), 101, "f")
    assert relative_error([([a], [a]), ([b], [b])]) == 0
    assert relative_error([([a], [a + 0.5]), ([b], [b])]) == pytest.approx(0.5)  # not 0.005 of its magnitude
    assert np.isnan(relative_error([([a], [a]), ([a], [a])]))  # it never moves: nothing is proven
    assert relative_error([([a.astype("i8")], [a.astype("i8")])]) == 0
    for wrong in (b.astype("f8"), np.full((2, 4), 101, "f"), b * np.nan):
        with pytest.raises(_Different):
            relative_error([([a], [a]), ([b], [wrong])])
    with pytest.raises(_Different):
        relative_error([([a.astype("i8")], [b.astype("i8")])])
    with pytest.raises(_Different):  # one output moves, the other does not and is another
        relative_error([([a, a], [a, a]), ([b, a], [b, b])])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("remembers", "its forward changes the buffer state, so that two calls with one input give two answers"),
        ("keeps", "its forward changes something that it keeps"),
        ("draws", r"it draws random numbers \(such as dropout with training=True\)"),
        ("scripted", r"it is TorchScript \(torch.jit\), .* return the nn.Module"),
        ("scripted_inside", "its 1 is TorchScript"),
        ("quantised", r"its 0 is quantised by PyTorch \(Linear\), .* export the float module"),
    ],
)
def test_why_a_module_cannot_be_exported(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"models_torch:{name} cannot be exported.*: {why}"):
        export(f"models_torch:{name}", tmp_path / "net.onnx")
