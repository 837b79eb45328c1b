"""Engines that several test files use."""

from __future__ import annotations

import os
from typing import NoReturn

from splitpoint.engines import open_engine
from splitpoint.engines.onnxruntime import OnnxRuntimeEngine
from splitpoint.errors import EngineError
from splitpoint.models.model import Segment

# --- apart ------------------------------------------------------------------------------------------------------------


class Elsewhere(OnnxRuntimeEngine):
    """An engine of somebody else's, which compiles nothing."""

    name, opened_as = "elsewhere", "engines_for_tests:Elsewhere"

    def compile(self, segment: Segment) -> NoReturn:
        raise EngineError(f"{self!r} compiles nothing in process {os.getpid()}")


def engine() -> OnnxRuntimeEngine:
    made = open_engine(threads=1)
    assert isinstance(made, OnnxRuntimeEngine)
    return made
