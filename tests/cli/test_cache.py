"""splitpoint cache: what is kept is counted by kind, and only what splitpoint put there is deleted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from commands import ok

from splitpoint.runtime.client.blob_cache import BlobCache


def test_what_is_kept_is_counted_by_kind_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = b"weights" * 100
    BlobCache(tmp_path).put(hashlib.sha256(data).hexdigest(), [memoryview(data)])
    (tmp_path / "mine.txt").write_text("not of ours")
    first, *kinds = ok(capsys, "cache", "--cache", tmp_path).splitlines()
    assert first == f"{tmp_path}: 1 file, 700 B"
    assert kinds[0].split() == ["blobs", "1", "file", "700", "B"]
    assert "cleared: 1 file" in ok(capsys, "cache", "--cache", tmp_path, "--clear")
    assert ": 0 files, 0 B" in ok(capsys, "cache", "--cache", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "not of ours"


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ok(capsys, "cache", "--cache", tmp_path / "none") == f"{tmp_path / 'none'}: 0 files, 0 B\n"
    assert not (tmp_path / "none").exists()
