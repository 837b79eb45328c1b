"""The public interface: this list, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import splitpoint
from splitpoint.runtime.client.request import FALLBACKS, Fallback

PUBLIC = [
    "AutoPlan", "BusyError", "Calibration", "Check", "Codec", "Constraints", "Cut", "CutError", "Edge", "EdgeStats",
    "Engine", "EngineError", "Event", "FrameBudget", "Graph", "InputError", "InputSpec", "Limits", "Link", "Local",
    "Manifest", "MissingExtraError", "Model", "ModelError", "ModelPolicy", "Node", "Option", "Patience", "Plan",
    "Planner", "Profile", "ProtocolError", "Recorder", "RefusedError", "Request", "Result", "Security", "Segment",
    "Server", "ServerError", "ServerSecurity", "Session", "Span", "SplitpointError", "StorageError", "TensorSpec",
    "Trace", "UsageError", "VerifyError", "Watching", "WireSettings", "calibrate", "classify", "compare", "export",
    "load", "load_calibration", "load_latency", "load_manifest", "load_plan", "load_profile", "open_codec",
    "open_engine", "plan", "predict_latency", "profile_model", "read_image", "save_calibration", "save_plan",
    "save_profile", "split", "verify",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert splitpoint.__all__ == PUBLIC
    assert dir(splitpoint) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(splitpoint, name)
    assert not isinstance(value, ModuleType), "a module of that name hides it"
    assert value.__doc__


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Peer'"):
        getattr(splitpoint, "Peer")  # noqa: B009


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(splitpoint.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    names = [a.asname or a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(names) == PUBLIC


def test_importing_it_imports_no_numpy() -> None:
    code = "import sys, splitpoint; dir(splitpoint); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_choices_are_literals() -> None:
    assert get_args(Fallback) == FALLBACKS == ("error", "wait", "local")
