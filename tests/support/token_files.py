"""A token in a file, and an environment without any setting of splitpoint."""

from __future__ import annotations

import os
from pathlib import Path

import certificates
import pytest


@pytest.fixture
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPLITPOINT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(certificates.TOKEN + "\n")
    path.chmod(0o600)
    return path
