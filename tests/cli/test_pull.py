"""splitpoint pull: what is fetched once is not fetched again, until the cache is cleared."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Serving, ok


def test_pull_then_cache(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ok(capsys, "pull", "lenet", "--cloud", serving.address)
    assert "fetched 245.3 kB" in first
    assert "fetched 0 B" in ok(capsys, "pull", "lenet", "--cloud", serving.address)
    assert str(cache) in ok(capsys, "cache")
    assert "cleared" in ok(capsys, "cache", "--clear")
    assert ": 0 files" in ok(capsys, "cache")
