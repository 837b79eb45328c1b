"""splitpoint split: two files that any runtime runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import ok


def test_split_writes_halves_that_plain_onnxruntime_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime as ort

    text = ok(capsys, "split", "lenet", "--at", "pool1", "-o", tmp_path)
    assert "float32[1,6,14,14]" in text
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    head = ort.InferenceSession(str(tmp_path / manifest["head"]))
    tail = ort.InferenceSession(str(tmp_path / manifest["tail"]))
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 1), np.uint8)
    between = dict(zip((o.name for o in head.get_outputs()), head.run(None, {"image": image}), strict=True))
    assert tail.run(None, between)[0].shape == (1, 10)
