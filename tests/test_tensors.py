"""Arrays from files: what is broken is said, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitpoint.errors import InputError
from splitpoint.tensors import load_arrays


@pytest.mark.parametrize(
    "content", [b"hello\n", b"", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, "]
)
def test_broken_arrays_come_without_advice_to_unpickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable numpy file") as caught:
        load_arrays(path)
    assert "allow_pickle" not in str(caught.value)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="its elements are object, no plain numbers"):
        load_arrays(tmp_path / "a.npy")
