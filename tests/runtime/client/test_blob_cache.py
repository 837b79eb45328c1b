"""The cache on disk: what is in it is what it is called, and what it cannot keep is used all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from splitpoint.errors import (
    StorageError,
)
from splitpoint.runtime.client.blob_cache import BlobCache, clear, usage

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_cache_refuses_what_is_not_what_it_is_called(tmp_path: Path) -> None:
    store = BlobCache(tmp_path)
    with pytest.raises(StorageError, match="refused"):
        store.put("0" * 64, [b"something"])
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(StorageError, match="not in the cache"):
        store.open("0" * 64)
    for name in ("../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(StorageError, match="no SHA-256"):
            store.open(name)


_FULL = """
import hashlib, resource, sys
from dataclasses import replace
from pathlib import Path
from splitpoint.runtime.client.blob_cache import BlobCache
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
data, told = bytes(range(256)) * 4096, []
hash = hashlib.sha256(data).hexdigest()
store = BlobCache(Path(sys.argv[1]), told.append)
store.put(hash, (data[k : k + 65_536] for k in range(0, len(data), 65_536)))
assert hash in store and store.open(hash) == data
print(told)
"""


def test_a_blob_that_a_disk_had_room_for_half_of_is_whole_in_memory(tmp_path: Path) -> None:
    """The system's own limit of a file's size: a write fails after 300,000 bytes, which are taken back."""
    ran = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("StorageError") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_clearing_takes_our_own_files_and_nothing_else(tmp_path: Path) -> None:
    import hashlib

    folder, outside = tmp_path / "cache", tmp_path / "outside"
    assert (usage(folder), clear(folder)) == ({}, 0)
    store = BlobCache(folder)
    for data in (b"one", b"three"):
        store.put(hashlib.sha256(data).hexdigest(), [data])
    store.put_graph("a" * 64, b"graph")
    export = folder / "exports" / ("0" * 24)
    half = export / ".export-x1_y"
    half.mkdir(parents=True)
    for path in (
        export / "net.onnx",
        export / "net.onnx.data",
        half / "net.onnx",
        folder / "graphs" / ".".join(("", "b" * 16, "c" * 12)),
    ):
        path.write_bytes(b"1234")
    assert usage(folder) == {"blobs": (2, 8), "graphs": (2, 9), "exports": (3, 12)}

    blob = "d" * 64
    (outside / "dd").mkdir(parents=True)
    foreign = [
        folder / "thesis.txt",
        folder / "blobs" / "thesis.txt",
        folder / "blobs" / "ee" / blob,  # ours would be in dd
        folder / "blobs" / "ab" / "sub" / blob,
        folder / "graphs" / "notes",
        folder / "exports" / "mine.onnx",
        export / "thesis.txt",
        outside / "dd" / blob,
        outside / "net.onnx",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"keep")
    links = [folder / "blobs" / "dd", folder / "graphs" / ("e" * 64), folder / "exports" / ("f" * 24)]
    for link, target in zip(links, (outside / "dd", outside / "net.onnx", outside), strict=True):
        link.symlink_to(target)
    (folder / "blobs" / "empty").mkdir()

    assert usage(folder) == {"blobs": (2, 8), "graphs": (2, 9), "exports": (3, 12)}
    assert clear(folder) == 7
    assert {k: n for k, (n, _) in usage(folder).items()} == {"blobs": 0, "graphs": 0, "exports": 0}
    assert all(p.read_bytes() == b"keep" for p in foreign)
    assert all(p.is_symlink() for p in links)
    assert (folder / "blobs" / "empty").is_dir()
    assert not half.exists()
    assert not (folder / "blobs" / hashlib.sha256(b"one").hexdigest()[:2]).exists()


def test_a_cache_of_ours_alone_is_cleared_to_the_last_folder_and_a_linked_one_is_not(tmp_path: Path) -> None:
    store = BlobCache(tmp_path / "cache")
    store.put_graph("a" * 64, b"graph")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "graphs").symlink_to(tmp_path / "cache" / "graphs")
    assert (usage(tmp_path / "linked"), clear(tmp_path / "linked")) == ({}, 0)
    assert clear(tmp_path / "cache") == 1
    assert list((tmp_path / "cache").iterdir()) == []
