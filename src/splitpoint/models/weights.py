"""Weight blobs: raw little-endian bytes of one tensor, addressed by their SHA-256.

A model is a graph without weights plus blobs. That is what makes re-splitting cheap (a device fetches only what
it does not have), lets two models share a backbone, and lifts protobuf's limit of 2 GB.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitpoint.errors import ModelError, StorageError


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one weight tensor: `hash` is SHA-256 in hex."""

    hash: str
    nbytes: int


class Weights(Protocol):
    """Where blobs come from.

    >>> weights = MemoryWeights()
    >>> digest = weights.add(b"four")
    >>> bytes(weights.open(digest))
    b'four'
    """

    def open(self, hash: str) -> memoryview:
        """The blob's bytes, read-only, without a copy where possible. StorageError if it is not there."""
        ...


class MemoryWeights:
    """Blobs held in memory or mapped from a file, by hash."""

    def __init__(self) -> None:
        self._blobs: dict[str, memoryview] = {}

    def add(self, data: bytes | memoryview) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.setdefault(digest, memoryview(data))
        return digest

    def open(self, hash: str) -> memoryview:
        try:
            return self._blobs[hash]
        except KeyError:
            raise StorageError(f"weight blob {hash[:12]}… is not here") from None

    def sizes(self) -> Mapping[str, Blob]:
        return {h: Blob(h, b.nbytes) for h, b in self._blobs.items()}


class MappedFiles:
    """Read-only maps of external-data files, each opened once; locations may not leave the model's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._maps: dict[Path, memoryview] = {}

    def slice(self, location: str, offset: int, length: int | None) -> memoryview:
        try:
            path = (self.folder / location).resolve()
        except (OSError, ValueError) as exc:  # a loop of links, a null byte
            raise ModelError(f"the model's external data location {location!r} is no path: {exc}") from exc
        if not path.is_relative_to(self.folder):
            raise ModelError(
                f"the model's external data points outside its folder: {location} (put the file beside the model)"
            )
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as exc:
                raise ModelError(f"the model's external data file {path} cannot be read: {exc}") from exc
        data = self._maps[path]
        end = data.nbytes if length is None else offset + length
        if offset < 0 or end > data.nbytes or end < offset:
            raise ModelError(f"the model's external data file {path} is too short: {data.nbytes} bytes, {end} needed")
        return data[offset:end]
