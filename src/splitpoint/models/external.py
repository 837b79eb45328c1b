"""Which file an external-data location may name: one of the model's own, and no other on this machine.

A model from a stranger chooses its locations, and its archive may hold links. So a location goes down from the model's
folder, and where a link then leads out of it, nothing is read. There is one exception, the cache of the Hugging Face
hub, in which the model file and its data are links into one folder of blobs: whoever opened that link chose the folder
it leads to, and the data must lie in it, side by side with the model.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from splitpoint.errors import ModelError


def linked_folder(model: Path) -> Path | None:
    """Where the file really lies, if `model` is a link itself."""
    try:
        return model.resolve().parent if model.is_symlink() else None
    except (OSError, RuntimeError):  # a loop of links
        return None


def data_file(location: str, folder: Path, linked: Path | None) -> Path:
    """The file at `location`, for a model in `folder` (resolved) that is perhaps a link into the folder `linked`.

    ModelError for a location that leads anywhere else.
    """
    wanted = PurePath(location)
    if wanted.is_absolute() or ".." in wanted.parts:
        raise ModelError(
            f"the model's external data points outside its folder: {location} (put the file beside the model)"
        )
    try:
        path = (folder / wanted).resolve()
    except (OSError, ValueError, RuntimeError) as exc:  # a loop of links, a null byte
        raise ModelError(f"the model's external data location {location!r} is no path: {exc}") from exc
    if path.is_relative_to(folder) or (linked is not None and path.parent == linked):
        return path
    raise ModelError(
        f"the model's external data {location} is a link that leads outside its folder (put the file itself beside the "
        "model)"
    )
