"""Columns and operators keep their places: files of years refer to them."""

from __future__ import annotations

import pytest

from splitpoint.predict.kernels.kernel_kinds import KINDS, OPS, op_index

# --- kinds --------------------------------------------------------------------------------------------------------


def test_kinds_begin_with_the_columns_of_the_seed() -> None:
    seed = {
        "conv": ("HW", "kernel", "stride", "Cin", "Cout", "FLOPs"),
        "dw_conv": ("HW", "kernel", "stride", "Cin", "FLOPs"),
        "linear": ("in_features", "out_features", "FLOPs"),
        "maxpool": ("HW", "kernel", "stride", "Cin"),
        "avgpool": ("HW", "output", "Cin"),
        "batchnorm": ("HW", "Cin"),
    }
    for name, columns in seed.items():
        assert KINDS[name].required == columns
        assert KINDS[name].file == f"{name}_lat.csv"


def test_operators_keep_their_numbers() -> None:
    """Files have the numbers: the lists may only grow."""
    first = {"activation": ("Relu", "LeakyRelu"), "elementwise": ("Add", "Sub"), "move": ("Reshape", "Transpose")}
    for kind, names in first.items():
        assert OPS[kind][:2] == names
        assert len(set(OPS[kind])) == len(OPS[kind])
    assert op_index("activation", "Gelu") == 11
    assert op_index("move", "Nothing") == -1


def test_complete_fills_in_what_a_table_leaves_out() -> None:
    full = KINDS["conv"].complete({"HW": 8, "kernel": 1, "stride": 1, "Cin": 4, "Cout": 4, "FLOPs": 1, "junk": 3})
    assert tuple(full) == KINDS["conv"].columns
    assert full["batch"] == 1.0
    with pytest.raises(KeyError, match="Cout"):
        KINDS["conv"].complete({"HW": 8, "kernel": 1, "stride": 1, "Cin": 4, "FLOPs": 1})
