"""A file → a model's inputs: images by the input contract, `.npy` and `.npz` tensors, token ids."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from splitpoint import images
from splitpoint.errors import InputError
from splitpoint.models.model import Model
from splitpoint.segments import check_inputs
from splitpoint.tensors import Array, load_arrays

TENSOR_SUFFIXES = frozenset({".npy", ".npz"})
TOKEN_SUFFIXES = frozenset({".ids", ".txt"})
#: What a folder is searched for; a file named outright may have any suffix that Pillow can read.
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
        ".avif",
        ".jfif",
    }
)


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


def read_inputs(model: Model, path: Path) -> dict[str, Array]:
    """The model's inputs from one file, checked. InputError names the file and what is wrong."""
    suffix = path.suffix.lower()
    if suffix in TENSOR_SUFFIXES:
        return tensor_inputs(model, load_arrays(path), str(path))
    if suffix in TOKEN_SUFFIXES:
        return token_inputs(model, path)
    spec = _only_image(model)
    return check_inputs(model, {spec.input: images.read_image(path, spec)})


def _only_image(model: Model) -> images.InputSpec:
    """`input_spec`; InputError if the model needs more than the image."""
    spec = input_spec(model)
    if len(model.inputs) > 1:
        others = ", ".join(t.name for t in model.inputs if t.name != spec.input)
        raise InputError(f"{model.name} needs {others} beside the image: give all inputs in one .npz file")
    return spec


def read_frame(model: Model, pixels: Array, name: str = "frame") -> dict[str, Array]:
    """The model's inputs from a picture that is in memory: uint8 [height, width, 3], RGB."""
    spec = _only_image(model)
    return check_inputs(model, {spec.input: images.read_image(pixels, spec, name=name)})


def read_bytes(model: Model, data: bytes, name: str = "standard input") -> dict[str, Array]:
    """The model's inputs from the bytes of an image, `.npy` or `.npz` file."""
    if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        suffix = ".npz" if data[:2] == b"PK" else ".npy"
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(data)
            file.flush()
            return tensor_inputs(model, load_arrays(Path(file.name)), name)
    if not data:
        raise InputError(f"{name} is empty: pipe an image, .npy or .npz file into it")
    spec = input_spec(model)
    return check_inputs(model, {spec.input: images.read_image(data, spec, name=name)})


def tensor_inputs(model: Model, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Arrays by input name; a single unnamed array is the model's single input; a missing batch axis is added."""
    named = dict(arrays)
    if "" in named:
        _refuse_none(model, where)
        if len(model.inputs) != 1:
            names = ", ".join(t.name for t in model.inputs)
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
        text = path.read_text()
        ids = [int(word) for word in text.replace(",", " ").split()]
    except FileNotFoundError as exc:
        raise InputError(f"no such file: {path}") from exc
    except (OSError, UnicodeDecodeError, ValueError) as exc:
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


def expand(paths: list[Path], *, tensors: bool = True) -> Iterator[Path]:
    """Files as they are, folders as the images and tensors in them, sorted by name. InputError for an empty folder."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        suffixes = IMAGE_SUFFIXES | (TENSOR_SUFFIXES if tensors else frozenset())
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        if not found:
            raise InputError(f"{path} holds no images or .npy/.npz files")
        yield from found
