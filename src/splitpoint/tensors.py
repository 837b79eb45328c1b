"""What a tensor is, apart from its values: name, dtype, shape, size."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import InputError
from splitpoint.files import open_file

Array = NDArray[Any]

#: Every dtype a tensor may have between our segments, and its size in bytes. Strings and sequences are not
#: here: they have no fixed layout and never cross a wire.
ITEM_SIZES: Mapping[str, int] = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
#: The shape of a tensor that may have any number of dimensions: which, its values decide.
ANY_RANK: tuple[int | str, ...] = ("...",)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (numpy's name) and shape of a tensor; a dimension given by name is free, `ANY_RANK` all of it.

    >>> spec = TensorSpec("image", "uint8", ("batch", 224, 224, 3))
    >>> spec.bind({"batch": 1}).nbytes
    150528
    >>> print(spec)
    image: uint8[batch,224,224,3]
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def is_static(self) -> bool:
        """Whether no dimension is free."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def elements(self) -> int:
        """Number of elements; InputError if a dimension is free."""
        for d in self.shape:
            if isinstance(d, str):
                raise InputError(f"tensor {self.name} has the free dimension {d}: its size is not known")
        return prod(int(d) for d in self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, dense."""
        return self.elements * ITEM_SIZES[self.dtype]

    def bind(self, dims: Mapping[str, int]) -> TensorSpec:
        """The same tensor with the free dimensions named in `dims` fixed."""
        shape = tuple(dims.get(d, d) if isinstance(d, str) else d for d in self.shape)
        return TensorSpec(self.name, self.dtype, shape)

    def check(self, array: Array) -> Array:
        """`array`, C-contiguous, if it has this dtype and shape; InputError says what came instead."""
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {self.name} must be a numpy array, not {type(array).__name__}")
        if not self.fits(array.dtype.name, array.shape):
            raise InputError(f"input {self.name} must be {self.type}, but {spec_of('', array).type} came")
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def fits(self, dtype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this dtype and shape is one of these.

        >>> TensorSpec("ids", "int64", ("batch", 8)).fits("int64", (3, 8))
        True
        """
        if dtype != self.dtype or self.shape == ANY_RANK:
            return dtype == self.dtype
        return len(shape) == len(self.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    @property
    def type(self) -> str:
        """dtype and shape as messages print them: ``uint8[batch,224,224,3]``."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


def spec_of(name: str, array: Array) -> TensorSpec:
    """The spec that `array` has."""
    return TensorSpec(name, array.dtype.name, tuple(array.shape))


def load_arrays(source: Path | bytes, limit: int = 4 << 30, *, name: str = "") -> dict[str, Array]:
    """Arrays of a `.npy` (under the name ``""``) or `.npz` file, or of its bytes, which came from `name`; pickled ones
    are refused, `limit` bounds bytes, in the file and unpacked.

    Raises InputError for a file that is not there, not numpy's, too large, or holds anything but plain numbers.
    """
    path = name or str(source)
    try:
        with open_file(source) if isinstance(source, Path) else io.BytesIO(source) as file:
            if not file.seekable():  # a pipe
                file = io.BytesIO(file.read(limit + 1))
            nbytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            if nbytes > limit:
                raise InputError(f"{path} is larger than {limit >> 20} MiB")
            if file.read(2) == b"PK":
                return _load_archive(file, min(limit, _MOST_UNPACKED + _MOST_RATIO * nbytes), path)
            file.seek(0)
            return {"": _load_array(file, nbytes)}
    except InputError:
        raise
    except FileNotFoundError as exc:
        raise InputError(f"no such file: {path}") from exc
    except Exception as exc:  # numpy, zipfile and zlib raise nearly anything on broken bytes
        raise InputError(f"{path} is not a readable numpy file (.npy or .npz of plain numbers){_why(exc)}") from exc


#: What a small archive may unpack to, and how many times its size a large one: zeros pack a thousand to one.
_MOST_UNPACKED, _MOST_RATIO = 256 << 20, 16
#: Bytes of the list of names at the end of an archive, some 60 for each: no model has a thousand inputs.
_MOST_LISTED = 1 << 20


def _load_archive(file: BinaryIO, limit: int, path: str) -> dict[str, Array]:
    listed = _directory_nbytes(file)
    if listed > _MOST_LISTED:
        raise InputError(f"{path} holds too many arrays: their list alone has {listed >> 10} KiB")
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if sum(m.file_size for m in members) > limit:
            raise InputError(f"{path} unpacks to more than {limit >> 20} MiB")
        arrays = {}
        for member in members:
            with archive.open(member) as inside:
                arrays[member.filename.removesuffix(".npy")] = _load_array(inside, member.file_size)
        return arrays


def _directory_nbytes(file: BinaryIO) -> int:
    """Bytes of an archive's list of names, all of which `zipfile` would read into memory. ValueError if it has none."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _LONGEST_END))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("it is cut short")
    if tail[max(0, end - 20) : end].startswith(b"PK\6\7"):  # the list of a large archive: its size is before that
        end64 = tail.rfind(b"PK\6\6", 0, end)
        return int.from_bytes(tail[end64 + 40 : end64 + 48], "little") if end64 >= 0 else size
    return int.from_bytes(tail[end + 12 : end + 16], "little")


#: Of the end of an archive: its comment, and what is before that.
_LONGEST_END = (1 << 16) + 22 + 20 + 56


def _load_array(file: IO[bytes], nbytes: int) -> Array:
    """The array in a `.npy` file of so many bytes. ValueError unless it is one, of plain numbers, and all there: what
    its header says is believed only so far as the bytes are there.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is for names in Unicode, not for numbers")
    length = 2 if version == (1, 0) else 4
    head = file.read(length)
    said = int.from_bytes(head, "little")
    if said > _MOST_HEADER:
        raise ValueError(f"its header would have {said} bytes")
    text = file.read(said)
    read = np.lib.format.read_array_header_1_0 if length == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(head + text))
    if dtype.kind not in "biufc" or dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"its elements are {str(dtype)[:40]}, no plain numbers")
    wanted = prod(shape) * dtype.itemsize
    there = nbytes - 6 - 2 - length - said
    if min(shape, default=0) < 0 or wanted > there:
        raise ValueError(f"an array of {wanted} bytes in a file with {there} left")
    file.seek(0)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


#: What numpy writes for numbers has 118 bytes.
_MOST_HEADER = 4096


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """An `.npz` file of `arrays`. (numpy's own `savez` takes names as keywords, and none may be called ``file``.)"""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return data.getvalue()


def _why(exc: Exception) -> str:
    """What numpy says is wrong, without its advice to load pickles after all."""
    if isinstance(exc, OSError) and exc.strerror:
        return f": {exc.strerror}"
    text = str(exc)[:200]  # numpy repeats the whole header
    if "pickle" in text:
        return ": it holds Python objects, or is no numpy file at all"
    return f": {text}" if text else ""
