"""A file is written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from splitpoint.errors import InputError, StorageError


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


def read_file(path: Path, most: int, what: str, made_by: str) -> bytes:
    """The bytes of a file that should hold `what` (``a plan``), at most `most`. InputError says what is wrong."""
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path} is too large to be {what}: {path.stat().st_size >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise InputError(f"there is no file {path}: {made_by} writes one") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
