"""Weights and graphs on the device's disk, addressed by hash: what is there is never fetched again.

    DIR/blobs/ab/ab12…      the bytes whose SHA-256 is ab12…
    DIR/graphs/FINGERPRINT  the graph of a model, without weights
    DIR/exports/KEY/        ONNX files made from PyTorch models (`models.torch` writes them)
    DIR/values/KEY.npz      values given for a model's inputs (`models.values` writes them)

Files appear whole or not at all (written beside, then renamed), and are hashed again before they are used.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from splitpoint.errors import StorageError

_ELSEWHERE = "give another folder with --cache DIR"


class BlobCache:
    """A folder of blobs. It is a `Weights`: `open` gives a blob's bytes, mapped from disk.

    >>> cache = BlobCache(tmp / "cache")
    >>> digest = hashlib.sha256(b"four").hexdigest()
    >>> cache.put(digest, [b"fo", b"ur"])
    >>> bytes(cache.open(digest))
    b'four'

    StorageError where the folder cannot be written or read, for a full disk, and for a blob that has rotted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, memoryview] = {}

    def path(self, hash: str) -> Path:
        """Where this blob is, or would be. StorageError if `hash` is none."""
        if len(hash) != 64 or not set(hash) <= set("0123456789abcdef"):
            raise StorageError(f"{hash[:64]!r} is no SHA-256: nothing is stored under it")
        return self.folder / "blobs" / hash[:2] / hash

    def __contains__(self, hash: str) -> bool:
        return hash in self._open or self.path(hash).is_file()

    def open(self, hash: str) -> memoryview:
        """The blob's bytes, read-only. A file whose bytes no longer match its name is deleted and refused."""
        with self._lock:
            found = self._open.get(hash)
            if found is None:
                found = self._open[hash] = self._read(hash)
            return found

    def _read(self, hash: str) -> memoryview:
        path = self.path(hash)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
        except FileNotFoundError:
            raise StorageError(f"weight {hash[:12]}… is not in the cache {self.folder}") from None
        except OSError as exc:
            raise StorageError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        if hashlib.sha256(data).hexdigest() != hash:
            with suppress(OSError):
                path.unlink()
            raise StorageError(f"weight {hash[:12]}… in {self.folder} has rotted (its bytes changed): deleted")
        return data

    def put(self, hash: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Stores the blob that `chunks` make up; StorageError if they do not hash to its name."""
        path = self.path(hash)
        digest = hashlib.sha256()
        with self._writing(path) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != hash:
                raise StorageError(f"what came as weight {hash[:12]}… has the hash {digest.hexdigest()[:12]}…: refused")

    def graph(self, fingerprint: str) -> bytes | None:
        """The graph of this model, if it is here; whoever builds it checks its fingerprint."""
        try:
            return self._graph_path(fingerprint).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"{self._graph_path(fingerprint)} cannot be read: {exc.strerror or exc}") from exc

    def put_graph(self, fingerprint: str, data: bytes | memoryview) -> None:
        """Keeps the graph of this model."""
        with self._writing(self._graph_path(fingerprint)) as file:
            file.write(data)

    def drop_graph(self, fingerprint: str) -> None:
        """Deletes it, if it is there: it has rotted."""
        with suppress(OSError):
            self._graph_path(fingerprint).unlink()

    def _graph_path(self, fingerprint: str) -> Path:
        self.path(fingerprint)  # the same alphabet, so that no fingerprint is a path of its own
        return self.folder / "graphs" / fingerprint

    @contextmanager
    def _writing(self, path: Path) -> Iterator[BinaryIO]:
        """A file that becomes `path` if all goes well, and leaves nothing behind if not."""
        # A name of its own for every writer: two processes may fetch the same blob.
        beside = path.with_name(f".{path.name[:16]}.{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with beside.open("xb") as file:
                    yield file
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"no space is left for {path}: free some, or {_ELSEWHERE}") from exc
            raise StorageError(f"{path} cannot be written ({exc.strerror or exc}): {_ELSEWHERE}") from exc


# --- what is there, and clearing it -------------------------------------------------------------------------------


class _Own(NamedTuple):
    """What we make in one subfolder, as paths relative to it."""

    files: re.Pattern[str]
    folders: re.Pattern[str]


#: A file that was being written when its process died.
_HALF = r"\.[0-9a-f]{16}\.[0-9a-f]{12}"
_ONNX = r"[\w.-]+\.onnx(\.data)?"
#: The whole path must match: a cache may be put into a folder that has other things in it.
_OWN: Mapping[str, _Own] = {
    "blobs": _Own(re.compile(rf"([0-9a-f]{{2}})/(\1[0-9a-f]{{62}}|{_HALF})"), re.compile(r"[0-9a-f]{2}")),
    "graphs": _Own(re.compile(rf"[0-9a-f]{{64}}|{_HALF}"), re.compile(r"(?!)")),
    "exports": _Own(
        re.compile(rf"[0-9a-f]{{24}}/(\.export-\w+/)?{_ONNX}"), re.compile(r"[0-9a-f]{24}(/\.export-\w+)?")
    ),
    "values": _Own(re.compile(r"\.?[0-9a-f]{32}\.npz(\.\d+\.part)?"), re.compile(r"(?!)")),
}


def usage(folder: Path) -> dict[str, tuple[int, int]]:
    """(files, bytes) that the cache `folder` holds, for each of its subfolders that is there.

    Only what we made is counted: what else may lie there is not the cache's. StorageError if it cannot be read.
    """
    found: dict[str, tuple[int, int]] = {}
    for name in _OWN:
        top = folder / name
        if top.is_symlink() or not top.is_dir():
            continue
        sizes = []
        for path in _own_files(top):
            with suppress(FileNotFoundError):  # another process has replaced or deleted it meanwhile
                sizes.append(path.lstat().st_size)
        found[name] = len(sizes), sum(sizes)
    return found


def clear(folder: Path) -> int:
    """Deletes what we made in the cache `folder`, and folders of ours that are empty then; returns files deleted.

    Nothing else is touched, and no symbolic link followed. StorageError for what cannot be deleted.
    """
    deleted = 0
    for name in _OWN:
        top = folder / name
        if top.is_symlink() or not top.is_dir():
            continue
        for path in list(_own_files(top)):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise StorageError(f"{path} cannot be deleted: {exc.strerror or exc}") from exc
            deleted += 1
        for path in (*reversed(list(_own_folders(top))), top):
            with suppress(OSError):  # not empty: something in it is not ours
                path.rmdir()
    return deleted


def _own_folders(top: Path) -> Iterator[Path]:
    """Our folders in the subfolder `top`, each before those in it; never through a symbolic link."""
    own = _OWN[top.name].folders

    def within(folder: Path) -> Iterator[Path]:
        for entry in _entries(folder):
            path = folder / entry.name
            if own.fullmatch(path.relative_to(top).as_posix()) and entry.is_dir(follow_symlinks=False):
                yield path
                yield from within(path)

    return within(top)


def _own_files(top: Path) -> Iterator[Path]:
    own = _OWN[top.name].files
    for folder in (top, *_own_folders(top)):
        for entry in _entries(folder):
            path = folder / entry.name
            if own.fullmatch(path.relative_to(top).as_posix()) and entry.is_file(follow_symlinks=False):
                yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"{folder} cannot be read: {exc.strerror or exc}") from exc
