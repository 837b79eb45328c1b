"""Which file an external-data location may name: one of the model's own, and no other on this machine.

A model from a stranger chooses its locations, and its archive may hold links. So a location goes down from the model's
folder, and where a link then leads out of it, nothing is read. Whoever opened a model that is a link chose where it
leads, too: where the data is not beside the link, it may be beside the file. And in the cache of the Hugging Face hub
model and data are links into one folder of blobs, side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from splitpoint.errors import ModelError

#: As many as Linux follows.
_MOST_LINKS = 40


def linked_folders(model: Path) -> list[Path]:
    """The folders that its links lead to, one by one, if `model` is a link; in the last the file really lies."""
    found: list[Path] = []
    try:
        while model.is_symlink() and len(found) < _MOST_LINKS:
            model = model.parent.resolve() / model.readlink()
            found.append(model.parent.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return []
    return found


def data_file(location: str, folder: Path, linked: Sequence[Path]) -> Path:
    """The file at `location`, for a model in `folder` (resolved) that is perhaps a link to the folders `linked`.

    ModelError for a location that leads anywhere else.
    """
    wanted = PurePath(location)
    if wanted.is_absolute() or ".." in wanted.parts:
        raise ModelError(
            f"the model's external data points outside its folder: {location} (put the file beside the model)"
        )
    try:
        home = next((f for f in (folder, *linked) if os.path.lexists(f / wanted)), folder)
        path = (home / wanted).resolve()
    except (OSError, ValueError, RuntimeError) as exc:  # a loop of links, a null byte
        raise ModelError(f"the model's external data location {location!r} is no path: {exc}") from exc
    if path.is_relative_to(home) or (linked and path.parent == linked[-1]):
        return path
    raise ModelError(
        f"the model's external data {location} is a link that leads outside its folder (put the file itself beside the "
        "model)"
    )
