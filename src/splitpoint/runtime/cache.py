"""Weights and graphs on the device's disk, addressed by hash: what is there is never fetched again.

    DIR/blobs/ab/ab12…      the bytes whose SHA-256 is ab12…
    DIR/graphs/FINGERPRINT  the graph of a model, without weights

Files appear whole or not at all (written beside, then renamed), and are hashed again before they are used.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from splitpoint.errors import StorageError


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
        with self._writing(self._graph_path(fingerprint)) as file:
            file.write(data)

    def drop_graph(self, fingerprint: str) -> None:
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
                raise StorageError(f"no space is left for {path}: free some, or put the cache elsewhere") from exc
            raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc
