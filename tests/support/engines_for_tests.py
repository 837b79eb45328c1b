"""Engines that several test files use."""

from __future__ import annotations

from splitpoint.engines import open_engine
from splitpoint.engines.onnxruntime import OnnxRuntimeEngine

# --- apart ------------------------------------------------------------------------------------------------------------


def engine() -> OnnxRuntimeEngine:
    made = open_engine(threads=1)
    assert isinstance(made, OnnxRuntimeEngine)
    return made
