"""A file → a model's inputs: images by the input contract, `.npy` and `.npz` tensors, token ids; folders of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from splitpoint import images
from splitpoint.decoding import RAW_SUFFIXES, OnNote, silent
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.files import read_text
from splitpoint.models.model import Model
from splitpoint.segments import check_inputs
from splitpoint.tensors import Array, load_arrays
from splitpoint.text import HIDDEN, listed

TENSOR_SUFFIXES = frozenset({".npy", ".npz"})
TOKEN_SUFFIXES = frozenset({".ids", ".txt"})
#: What a folder is searched for; a file named outright may have any suffix that Pillow can read.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
#: What is taken for a video by its name.
VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2t",
    ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
#: What file managers leave in folders, beside files whose names begin with a dot.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
#: Of a file of token ids: more than any model reads.
_MOST_TOKENS_NBYTES = 64 << 20
#: How many files are named when some are left out.
_NAMED = 3


def input_spec(model: Model) -> images.InputSpec:
    """How an image becomes this model's input. InputError with a file to paste where the model does not say."""
    spec = model.input_spec
    if spec is None:
        _refuse_none(model, "an image")
        guesses = [g for t in model.inputs if (g := images.guess_spec(t.bind(model.graph.assumed)))]
        if len(guesses) != 1:
            raise InputError(images.explain_missing(model.inputs, model.name))
        spec = guesses[0]
    return spec.bind(model.inputs)


def read_inputs(model: Model, path: Path, on_note: OnNote = silent) -> dict[str, Array]:
    """The model's inputs from one file, checked; `on_note` as for `images.read_image`.

    InputError names the file and what is wrong; MissingExtraError if it is HEIC and pi-heif is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in TENSOR_SUFFIXES:
        return tensor_inputs(model, load_arrays(path), str(path))
    if suffix in TOKEN_SUFFIXES:
        return token_inputs(model, path)
    spec = _only_image(model)
    return check_inputs(model, {spec.input: images.read_image(path, spec, on_note=on_note)})


def _only_image(model: Model) -> images.InputSpec:
    """`input_spec`; InputError if the model needs more than the image."""
    spec = input_spec(model)
    if len(model.inputs) > 1:
        others = listed(t.name for t in model.inputs if t.name != spec.input)
        raise InputError(f"{model.name} needs {others} beside the image: give all inputs in one .npz file")
    return spec


def read_frame(model: Model, pixels: Array, name: str = "frame") -> dict[str, Array]:
    """The model's inputs from a picture that is in memory: uint8 [height, width, 3], RGB."""
    spec = _only_image(model)
    return check_inputs(model, {spec.input: images.read_image(pixels, spec, name=name)})


def read_bytes(model: Model, data: bytes, on_note: OnNote = silent) -> dict[str, Array]:
    """The model's inputs from the bytes of an image, `.npy` or `.npz` file; see `read_inputs`."""
    name = "standard input"
    if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        return tensor_inputs(model, load_arrays(data, name=name), name)
    if not data:
        raise InputError(f"{name} is empty: pipe an image, .npy or .npz file into it")
    spec = input_spec(model)
    return check_inputs(model, {spec.input: images.read_image(data, spec, name=name, on_note=on_note)})


def tensor_inputs(model: Model, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Arrays by input name; a single unnamed array is the model's single input; a missing batch axis is added."""
    named = dict(arrays)
    if "" in named:
        _refuse_none(model, where)
        if len(model.inputs) != 1:
            names = listed(t.name for t in model.inputs)
            raise InputError(f"{where} holds one array, {model.name} needs {names}: give an .npz with these names")
        named = {model.inputs[0].name: named[""]}
    for spec in model.inputs:
        array = named.get(spec.name)
        if array is not None and array.ndim == len(spec.shape) - 1:
            named[spec.name] = array[None]
    try:
        return check_inputs(model, named)
    except InputError as exc:
        raise InputError(f"{where}: {exc}") from exc


def _refuse_none(model: Model, where: str) -> None:
    if not model.inputs:
        raise InputError(f"{model.name} has no inputs, so that {where} is of no use: give an .npz without arrays")


def token_inputs(model: Model, path: Path) -> dict[str, Array]:
    """Whitespace-separated token ids as the integer input; an attention mask of ones is filled in.

    Ids are cut or padded with 0 to the model's sequence length, and the mask then says which are real.
    """
    try:
        text = read_text(path, _MOST_TOKENS_NBYTES, "a file of token ids")
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError as exc:
        raise InputError(f"{path} does not hold token ids (whole numbers with spaces between): {exc}") from exc
    if not ids:
        raise InputError(f"{path} is empty: it should hold token ids (whole numbers with spaces between)")
    _refuse_none(model, str(path))
    inputs: dict[str, Array] = {}
    for spec in model.inputs:
        if spec.dtype not in ("int64", "int32", "bool") or len(spec.shape) != 2:
            raise InputError(f"{path} holds token ids, but {model.name} needs {spec}")
        length = spec.shape[1] if isinstance(spec.shape[1], int) else len(ids)
        if len(ids) > length:
            raise InputError(f"{path} holds {len(ids)} token ids, but {model.name} takes {length} at most")
        row = np.zeros((1, length), spec.dtype)
        if "mask" in spec.name:
            row[0, : len(ids)] = 1
        elif "type" not in spec.name and "position" not in spec.name:
            row[0, : len(ids)] = ids
        elif "position" in spec.name:
            row[0] = np.arange(length)
        inputs[spec.name] = row
    return check_inputs(model, inputs)


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The `files` to read; how many others were `skipped`, and a sentence for each reason: which, why, what to do."""

    files: tuple[Path, ...]
    skipped: int = 0
    reasons: tuple[str, ...] = ()


def find_inputs(paths: Sequence[Path], *, recursive: bool = False) -> InputFiles:
    """Files as they are, folders as the images and tensors in them, in natural order (frame2 before frame10).

    With `recursive`, also those in folders below. InputError for a folder that holds none or cannot be read.
    """
    parts = [_search(path, recursive) if os.path.isdir(path) else InputFiles((path,)) for path in paths]
    return InputFiles(
        tuple(file for f in parts for file in f.files),
        sum(f.skipped for f in parts),
        tuple(reason for f in parts for reason in f.reasons),
    )


def _search(folder: Path, recursive: bool) -> InputFiles:
    files: list[Path] = []
    reasons: dict[str, list[str]] = {}
    for path in sorted(_walk(folder, recursive), key=lambda p: natural(p.relative_to(folder))):
        if why := _why_not(path):
            reasons.setdefault(why, []).append(HIDDEN.sub("?", str(path.relative_to(folder))))
        else:
            files.append(path)
    told = []
    for why, names in reasons.items():
        more = ", …" if len(names) > _NAMED else ""
        told.append(f"{len(names)} not read ({', '.join(names[:_NAMED])}{more}): {why}")
    if not files:
        raise InputError("; ".join((f"{folder} holds no images or .npy/.npz files", *told)))
    return InputFiles(tuple(files), sum(map(len, reasons.values())), tuple(f"{folder}: {text}" for text in told))


def natural(path: Path) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """A key that sorts numbers in names as numbers, folder by folder.

    >>> [str(p) for p in sorted(map(Path, ("b2", "b10", "a/b1", "b02")), key=natural)]
    ['a/b1', 'b02', 'b2', 'b10']
    """
    # Text and numbers take turns, so that only like is compared with like.
    parts = (re.split(r"([0-9]+)", part) for part in (*path.parent.parts, path.stem))
    return tuple(tuple(int(w) if k % 2 else w for k, w in enumerate(words)) for words in parts), str(path)


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """What is in it, and with `recursive` below it. A folder that links lead to twice is entered once."""
    waiting, entered = [folder], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            state = here.stat()
            if (state.st_dev, state.st_ino) in entered:
                continue
            entered.add((state.st_dev, state.st_ino))
            inside = [here / name for name in os.listdir(here)]
        except OSError as exc:
            raise InputError(f"{here} cannot be read: {exc.strerror or exc}") from exc
        for path in inside:
            if recursive and path.is_dir() and not _hidden(path):
                waiting.append(path)
            else:
                yield path


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _LITTER


def _why_not(path: Path) -> str:
    """Why a file of a folder is not read; ``""`` if it is."""
    suffix = path.suffix.lower()
    if _hidden(path):
        return "hidden, or what a file manager keeps there"
    if path.is_dir():
        return "--recursive looks into folders"
    if not path.is_file():
        return "not there, or no regular files"
    if suffix in HEIF_SUFFIXES and find_spec("pi_heif") is None:
        return str(MissingExtraError("pi-heif", "heif", "read HEIC photos"))
    if suffix == ".avif" and not _has_avif():
        return "AVIF needs Pillow 11.3 or newer"
    if suffix in VIDEO_SUFFIXES:
        return "videos: give each with --source"
    if suffix in RAW_SUFFIXES:
        return "raw photos: develop them to JPEG or TIFF"
    if suffix in IMAGE_SUFFIXES | HEIF_SUFFIXES | TENSOR_SUFFIXES:
        return ""
    return "neither an image nor .npy/.npz by its name: what is one all the same, give by name"


@cache
def _has_avif() -> bool:
    from PIL import Image

    Image.init()
    return "AVIF" in Image.OPEN
