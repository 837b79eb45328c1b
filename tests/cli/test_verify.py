"""splitpoint verify: equal, different, or inconclusive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import fails, ok
from PIL import Image


def test_verify_says_equal_and_exits_1_when_it_is_not_conclusive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nets

    assert "17 cuts equal the whole model" in ok(capsys, "verify", "lenet", "--cuts", "all")
    blank = tmp_path / "blank.png"
    Image.new("L", (32, 32)).save(blank)
    assert "all equal" in fails(capsys, 2, "verify", "lenet", "--input", blank, "--input", blank)
    nodes = [nets.node("Mul", ["x", "zero"], ["gone"]), nets.node("Add", ["gone", "bias"], ["y"])]
    weights = [nets.weight("zero", np.zeros(1, np.float32)), nets.normal("bias", 8)]
    deaf = nets.proto(nodes, [nets.value("x", ["batch", 8])], [nets.value("y", ["batch", 8])], weights)
    message = fails(capsys, 1, "verify", nets.saved(deaf, tmp_path / "deaf.onnx"))
    assert "inconclusive" in message
