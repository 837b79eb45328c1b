"""What a tensor is, apart from its values: name, dtype, shape, size."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import InputError

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
            got = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
            raise InputError(f"input {self.name} must be {self.type}, but {got} came")
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
    are refused, `limit` bounds bytes.

    Raises InputError for a file that is not there, not numpy's, too large, or of object dtype.
    """
    path = name or str(source)
    try:
        file: Path | io.BytesIO = source if isinstance(source, Path) else io.BytesIO(source)
        if isinstance(source, Path) and source.stat().st_size > limit:
            raise InputError(f"{path} is larger than {limit >> 20} MiB")
        if source.suffix == ".npz" if isinstance(source, Path) else source[:2] == b"PK":
            with zipfile.ZipFile(file) as archive:
                if sum(i.file_size for i in archive.infolist()) > limit:
                    raise InputError(f"{path} unpacks to more than {limit >> 20} MiB")
        loaded = np.load(file, allow_pickle=False)  # noqa: TID251 - the one place, with pickles forbidden
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except InputError:
        raise
    except FileNotFoundError as exc:
        raise InputError(f"no such file: {path}") from exc
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as exc:
        raise InputError(f"{path} is not a readable numpy file (.npy or .npz of plain numbers){_why(exc)}") from exc


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
    text = str(exc)
    if "pickle" in text:
        return ": it holds Python objects, or is no numpy file at all"
    return f": {text}" if text else ""
