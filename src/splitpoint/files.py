"""A file is written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from splitpoint.errors import StorageError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` with `data`; a full disk leaves the old file. StorageError says why it failed."""
    part = _part(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as exc:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def check_writable(path: Path) -> None:
    """StorageError if `write_atomic` could not write `path`: said before the work, not after."""
    part = _part(path)
    try:
        if not path.parent.is_dir():
            raise StorageError(f"{path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise StorageError(f"{path} cannot be written: it is a folder")
        if path.exists() and not os.access(path, os.W_OK):  # replacing it would work, but who locked it meant it
            raise StorageError(f"{path} cannot be written: it is write-protected")
        part.touch()  # permissions alone do not tell of a read-only disk, of /proc, of a name that is too long
        part.unlink()
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def _part(path: Path) -> Path:
    """What is written and then becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")
