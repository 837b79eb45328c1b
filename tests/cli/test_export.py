"""splitpoint export: what reaches the exporter, and what is said; what it makes is models/torch/test_torch.py's."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import fails, ok

from splitpoint.models.torch.report import ExportReport


def test_what_was_typed_reaches_the_exporter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def export(model: str, path: Path, **more: object) -> ExportReport:
        asked.update(more, model=model, path=path)
        return ExportReport(model, path, "random weights", 17, 12, None, 1e-6, 3.0, 2_500_000, 0, (), ("a note",))

    monkeypatch.setattr("splitpoint.models.torch.export", export)
    path = tmp_path / "net.onnx"
    words = ("export", "torchvision:alexnet", "-o", path, "--weights", "random:7", "--shape", "x=1,3,64,64")
    said = ok(capsys, *words)
    assert (asked["model"], asked["path"], asked["weights"]) == ("torchvision:alexnet", path, "random:7")
    assert asked["shapes"] == {"x": (1, 3, 64, 64)}
    assert asked["input_spec"] is None
    assert "12 nodes, opset 17, free batch" in said
    assert f"a note\nwrote {path} (2.5 MB)" in said


def test_what_is_wrong_is_said_before_anything_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitpoint.models.torch.export", lambda *args, **more: pytest.fail("exported"))
    assert "Missing option '-o'" in fails(capsys, 2, "export", "torchvision:alexnet")
    wrong = ("export", "torchvision:alexnet", "-o", tmp_path / "n.onnx", "--shape", "3,64")
    assert "--shape is NAME=" in fails(capsys, 2, *wrong)
