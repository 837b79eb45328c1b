"""A file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from splitpoint.errors import StorageError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` with `data`; a full disk leaves the old file. StorageError says why it failed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def check_writable(path: Path) -> None:
    """StorageError if `path` cannot be written because its folder is not there: said before the work, not after."""
    if not path.parent.is_dir():
        raise StorageError(f"{path} cannot be written: there is no folder {path.parent}")
