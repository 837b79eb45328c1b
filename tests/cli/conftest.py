"""A server process and an empty cache, for tests of verbs that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Serving


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    server = Serving("zoo:efficientnet_lite0", "zoo:lenet5")
    yield server
    server.end()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
