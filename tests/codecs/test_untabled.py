"""klt by its name alone: what it takes and about what it weighs; nothing is encoded without a tensor's own tables."""

from __future__ import annotations

import numpy as np
import pytest
from tabled import calibration, tables_for

from splitpoint.codecs import needs_tables, open_codec
from splitpoint.codecs.klt import Klt
from splitpoint.codecs.untabled import Untabled
from splitpoint.errors import UsageError
from splitpoint.tensors import TensorSpec, spec_of


def test_a_name_is_known_before_there_are_tables() -> None:
    codec = open_codec("klt:60")
    assert (codec.name, codec.sent_as, codec.exact, codec.sized) == ("klt:60", "klt:60", False, False)
    assert codec.accepts(TensorSpec("x", "float32", (1, 6, 14, 14)))
    assert not codec.accepts(TensorSpec("x", "int64", (1, 6, 14, 14)))
    assert not codec.accepts(TensorSpec("x", "float32", ()))
    assert [needs_tables(name) for name in ("klt:60", "int8", "jpeg:90", "no such")] == [True, False, False, False]


def test_a_finer_level_is_estimated_larger_and_never_above_what_is_honest() -> None:
    spec = TensorSpec("x", "float32", (2, 6, 14, 14))
    sizes = [open_codec(f"klt:{level}").nbytes(spec) for level in range(1, 101)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] <= open_codec("klt:100").most(spec)


@pytest.mark.parametrize("name", ["klt", "klt:", "klt:0", "klt:101", "klt:x", "klt:" + "0" * 16])
def test_what_is_no_level_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        open_codec(name)


def test_nothing_is_encoded_or_decoded_without_tables() -> None:
    codec, x = open_codec("klt:60"), np.zeros((1, 6, 14, 14), np.float32)
    with pytest.raises(UsageError, match="needs the tables"):
        codec.encode(x)
    with pytest.raises(UsageError, match="needs the tables of tensor x"):
        codec.decode(np.zeros(4, np.uint8), spec_of("x", x))


def test_with_tables_it_is_called_by_their_hash_on_the_wire_and_by_its_level_elsewhere() -> None:
    untabled, tables = open_codec("klt:60"), tables_for(calibration())
    assert isinstance(untabled, Untabled)
    codec = untabled.with_tables(tables)
    assert isinstance(codec, Klt)
    assert (codec.name, codec.sent_as) == ("klt:60", f"klt:{tables.hash[:16]}")
