"""Weights and graphs on the device's disk, addressed by hash: what is there is never fetched again.

    DIR/blobs/ab/ab12…      the bytes whose SHA-256 is ab12…
    DIR/graphs/FINGERPRINT  the graph of a model, without weights
    DIR/exports/KEY/        ONNX files made from PyTorch models (`models.torch` writes them)
    DIR/values/KEY.npz      values given for a model's inputs (`models.input_values` writes them)
    DIR/profiles/KEY…       what models cost on this machine (`survey` writes them)

Files appear whole or not at all (written beside, then renamed), and are hashed again before they are used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path

from splitpoint.errors import ChangedError, InputError, StorageError
from splitpoint.files import read_file
from splitpoint.models.reading import MAX_SKELETON_BYTES
from splitpoint.models.weights import Copies, DataFile, Part

_ELSEWHERE = "give another folder with --cache DIR"


class BlobCache:
    """A folder of blobs. It is a `Weights`: `open` gives a copy of a blob's bytes, hashed when it was read.

    >>> cache = BlobCache(tmp / "cache")
    >>> digest = hashlib.sha256(b"four").hexdigest()
    >>> cache.put(digest, [b"fo", b"ur"])
    >>> bytes(cache.open(digest))
    b'four'

    StorageError for a blob that is not there, cannot be read or has rotted. Where the folder cannot be written, blobs
    are held in memory: `unkept` is the StorageError that says why, and `on_unkept` is told it once.
    """

    def __init__(self, folder: Path, on_unkept: Callable[[StorageError], None] = lambda error: None) -> None:
        self.folder = folder
        self.unkept: StorageError | None = None
        self._on_unkept = on_unkept
        self._copies = Copies()
        self._held: dict[str, memoryview] = {}  # what could not be kept
        self._bad: set[str] = set()  # on a disk that cannot be written they stay where they are

    def path(self, hash: str) -> Path:
        """Where this blob is, or would be. StorageError if `hash` is none."""
        if len(hash) != 64 or not set(hash) <= set("0123456789abcdef"):
            raise StorageError(f"{hash[:64]!r} is no SHA-256: nothing is stored under it")
        return self.folder / "blobs" / hash[:2] / hash

    def __contains__(self, hash: str) -> bool:
        if hash in self._held or hash in self._copies:
            return True
        return hash not in self._bad and os.path.isfile(self.path(hash))

    def open(self, hash: str, nbytes: int | None = None) -> memoryview:
        """The blob's bytes, read-only. A file that no longer matches its name is deleted and refused; one that has not
        the `nbytes` that are given, before memory is taken for it (a file of holes has any size)."""
        if (held := self._held.get(hash)) is not None:
            return held
        path = self.path(hash)
        try:
            return self._copies.open(hash, lambda: _whole(path, nbytes))
        except FileNotFoundError:
            raise StorageError(f"weight {hash[:12]}… is not in the cache {self.folder}") from None
        except OSError as exc:
            self._bad.add(hash)
            raise StorageError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        except ChangedError:
            self._bad.add(hash)
            with suppress(OSError):
                path.unlink()
            raise StorageError(
                f"weight {hash[:12]}… in {self.folder} has rotted (its bytes changed): deleted"
            ) from None

    def put(self, hash: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Stores the blob that `chunks` make up; StorageError if they do not hash to its name."""
        digest = hashlib.sha256()
        with _Incoming(self.path(hash)) as blob:
            for chunk in chunks:
                digest.update(chunk)
                blob.write(chunk)
            if digest.hexdigest() != hash:
                raise StorageError(f"what came as weight {hash[:12]}… has the hash {digest.hexdigest()[:12]}…: refused")
            blob.keep()
            self._bad.discard(hash)
            if blob.error is not None:
                self._held[hash] = memoryview(bytes(blob.held))
                self._not_kept(blob.path, blob.error)

    def room(self) -> int:
        """Bytes that the folder's disk has left; 0 where that cannot be told."""
        for folder in (self.folder, *self.folder.absolute().parents):
            with suppress(OSError):
                return shutil.disk_usage(folder).free
        return 0

    def graph(self, fingerprint: str) -> bytes | None:
        """The graph of this model, if it is here and can be read; whoever builds it checks its fingerprint."""
        try:
            return read_file(self._graph_path(fingerprint), MAX_SKELETON_BYTES, "a graph")
        except InputError:
            return None

    def put_graph(self, fingerprint: str, data: bytes | memoryview) -> None:
        """Keeps the graph of this model."""
        with _Incoming(self._graph_path(fingerprint)) as graph:
            graph.write(data)
            graph.keep()
            if graph.error is not None:
                self._not_kept(graph.path, graph.error)

    def drop_graph(self, fingerprint: str) -> None:
        """Deletes it, if it is there: it has rotted."""
        with suppress(OSError):
            self._graph_path(fingerprint).unlink()

    def _graph_path(self, fingerprint: str) -> Path:
        self.path(fingerprint)  # the same alphabet, so that no fingerprint is a path of its own
        return self.folder / "graphs" / fingerprint

    def _not_kept(self, path: Path, error: OSError) -> None:
        """Says once why; what came is used all the same."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = StorageError(f"no space is left for {path}: free some, or {_ELSEWHERE}")
        else:
            said = StorageError(f"{path} cannot be written ({error.strerror or error}): {_ELSEWHERE}")
        if self.unkept is None:
            self.unkept = said
            self._on_unkept(said)


class _Incoming:
    """Bytes on their way to the file `path`: in one beside it, or where that fails (`error`) in memory (`held`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, bytearray()
        self.error: OSError | None = None
        # A name of its own for every writer: two processes may fetch the same blob.
        self._part = path.with_name(f".{path.name[:16]}.{secrets.token_hex(6)}")
        self._file: FileIO | None = None
        self._size = 0

    def __enter__(self) -> _Incoming:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("x+b", buffering=0)
        except OSError as exc:
            self.error = exc
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def write(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes. StorageError if the disk keeps them no longer and does not give those before back."""
        if self._file is not None and self.error is None:
            left = memoryview(chunk).cast("B")
            try:
                while left:
                    left = left[self._file.write(left) :]
                self._size += memoryview(chunk).nbytes
                return
            except OSError as exc:
                self._hold(self._file, exc)
        self.held += chunk

    def keep(self) -> None:
        """It is all there: the file gets its name."""
        if self._file is not None and self.error is None:
            try:
                self._part.replace(self.path)
            except OSError as exc:
                self._hold(self._file, exc)

    def _hold(self, file: FileIO, error: OSError) -> None:
        self.error = error
        try:
            file.seek(0)
            while len(self.held) < self._size:
                data = file.read(self._size - len(self.held))
                if not data:
                    raise error
                self.held += data
        except OSError as exc:
            raise StorageError(f"{self.path} cannot be written: {exc.strerror or exc}") from exc


def _whole(path: Path, nbytes: int | None) -> Part:
    file = DataFile(path, stays=False)
    if nbytes not in (None, file.nbytes):
        raise ChangedError(f"{path} has {file.nbytes} bytes, and should have {nbytes}", path)
    return Part(file, 0, file.nbytes)


# --- what is there, and clearing it -------------------------------------------------------------------------------


#: A file that was being written when its process died.
_HALF = r"\.[0-9a-f]{16}\.[0-9a-f]{12}"
#: A kept profile: model, values, engine, device and threads.
_PROFILE = r"[0-9a-f]{16}-[\w.:-]+\.profile\.(json|budget)"
_ONNX = r"[\w.-]+\.onnx(\.data)?"
#: What we make in each subfolder: patterns of its files and of its folders. They must match the whole path in it, as a
#: cache may be put into a folder that has other things in it.
_OWN: Mapping[str, tuple[str, str]] = {
    "blobs": (rf"([0-9a-f]{{2}})/(\1[0-9a-f]{{62}}|{_HALF})", r"[0-9a-f]{2}"),
    "graphs": (rf"[0-9a-f]{{64}}|{_HALF}", r"(?!)"),
    "exports": (rf"[0-9a-f]{{24}}/(\.export-\w+/)?{_ONNX}", r"[0-9a-f]{24}(/\.export-\w+)?"),
    "values": (rf"\.?[0-9a-f]{{32}}\.npz(\.\d+\.part)?|{_HALF}", r"(?!)"),
    "profiles": (rf"{_PROFILE}|{_HALF}", r"(?!)"),
}
#: Those that only the user who made them may open: in a shared cache they may be another's.
_PRIVATE = frozenset({"exports", "values", "profiles"})


def usage(folder: Path) -> dict[str, tuple[int, int]]:
    """(files, bytes) of what we made in the cache `folder`, for each of its subfolders that is there. StorageError if
    it cannot be read."""
    used: dict[str, tuple[int, int]] = {}
    for top in _subfolders(folder):
        sizes = []
        for path, is_folder in _own(top, top):
            with suppress(FileNotFoundError):  # another process has replaced or deleted it meanwhile
                if not is_folder:
                    sizes.append(path.lstat().st_size)
        used[top.name] = len(sizes), sum(sizes)
    return used


def clear(folder: Path) -> int:
    """Deletes what we made in the cache `folder`, and folders of ours that are empty then, never through a symbolic
    link; returns files deleted. StorageError for what cannot be deleted."""
    deleted = 0
    for top in _subfolders(folder):
        for path, is_folder in [*_own(top, top), (top, True)]:
            if is_folder:
                with suppress(OSError):  # not empty: something in it is not ours
                    path.rmdir()
                continue
            try:
                path.unlink()
                deleted += 1
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise StorageError(f"{path} cannot be deleted: {exc.strerror or exc}") from exc
    return deleted


def _subfolders(folder: Path) -> Iterator[Path]:
    """The subfolders of the cache that are there, no links, and not for another user alone."""
    for name in _OWN:
        top = folder / name
        if os.path.islink(top) or not os.path.isdir(top):
            continue
        try:
            os.scandir(top).close()
        except PermissionError:
            if name in _PRIVATE:
                continue
        except OSError:
            pass
        yield top


def _own(top: Path, folder: Path) -> Iterator[tuple[Path, bool]]:
    """What we made in the `folder` of the subfolder `top`, and whether it is a folder; each of those behind what is in
    it. Never through a symbolic link."""
    files, folders = _OWN[top.name]
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StorageError(f"{folder} cannot be read: {exc.strerror or exc}") from exc
    for entry in entries:
        path = folder / entry.name
        name = path.relative_to(top).as_posix()
        if re.fullmatch(files, name) and entry.is_file(follow_symlinks=False):
            yield path, False
        elif re.fullmatch(folders, name) and entry.is_dir(follow_symlinks=False):
            yield from _own(top, path)
            yield path, True
