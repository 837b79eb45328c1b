"""Tables of measured kernels: what is read, what is left out and said, what comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitpoint.errors import InputError
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table, read_table, read_tables, write_tables

#: As the Neurosurgeon replica publishes them: no optional columns, FLOPs with a fraction.
CONV = """HW,kernel,stride,Cin,Cout,FLOPs,latency
224,1,1,3,3,903168.0,0.173
224,1,1,3,32,9633792.0,0.669
27,5,2,3,64,1881600.0,0.345
"""


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_reads_the_seeds_columns(tmp_path: Path) -> None:
    tables, said = read_tables(written(tmp_path, "conv_lat.csv", CONV))
    assert said == []
    assert list(tables) == ["conv"]
    assert tables["conv"].latency_ms.tolist() == [0.173, 0.669, 0.345]
    assert tables["conv"].columns["Cout"].tolist() == [3, 32, 64]
    assert set(tables["conv"].columns) == set(KINDS["conv"].required)
    assert tables["conv"].origin is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("224,1,1,3,8,2408448.0,0", "a latency that is zero or negative"),
        ("224,1,1,3,8,2408448.0,-0.2", "a latency that is zero or negative"),
        ("224,1,1,3,8,2408448.0,nan", "a latency that is not a number"),
        ("224,1,1,3,8,2408448.0,inf", "a latency that is not a number"),
        ("224,1,1,3,8,2408448.0,1e9", "a latency of more than a day"),
        ("224,1,1,3,8,2408448.0,fast", "text where a number should be"),
        ("224,1,1,3,8,2408448.0,", "text where a number should be"),
        ("224,1,1,3,8", "too few columns"),
        ("nan,1,1,3,8,2408448.0,0.2", "a HW that makes no sense"),
        ("224,1,1,-3,8,2408448.0,0.2", "a Cin that makes no sense"),
        ("224,1,0,3,8,2408448.0,0.2", "a stride that makes no sense"),
        ("224,1,1,3,8,1e300,0.2", "a FLOPs that makes no sense"),
    ],
)
def test_leaves_out_and_names_a_bad_row(tmp_path: Path, line: str, why: str) -> None:
    tables, said = read_tables(written(tmp_path, "conv_lat.csv", CONV + line + "\n"))
    assert len(tables["conv"]) == 3
    assert said == [f"conv_lat.csv: left out 1 of 4 rows (line 5): {why}"]


def test_counts_many_bad_rows_and_names_the_first(tmp_path: Path) -> None:
    bad = "224,1,1,3,8,2408448.0,0\n" * 7 + "\n" + "224,1,1,3,8,2408448.0,slow\n"
    tables, said = read_tables(written(tmp_path, "conv_lat.csv", CONV + bad))
    assert len(tables["conv"]) == 3
    assert said == [
        "conv_lat.csv: left out 7 of 11 rows (lines 5, 6, 7, 8, 9, …): a latency that is zero or negative",
        "conv_lat.csv: left out 1 of 11 rows (line 13): text where a number should be",
    ]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "conv_lat.csv", CONV.replace("Cin", "Channels")) / "conv_lat.csv"
    with pytest.raises(InputError, match=r"conv_lat\.csv has no column Cin: a table of conv needs HW, kernel, stride"):
        read_table(path, KINDS["conv"])


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, "batchnorm_lat.csv", "HW,Cin,Cin,latency\n7,8,8,1\n")
    with pytest.raises(InputError, match="the column Cin twice"):
        read_tables(folder)


def test_unknown_files_are_skipped_and_named(tmp_path: Path) -> None:
    written(tmp_path, "conv_lat.csv", CONV)
    tables, said = read_tables(written(tmp_path, "rnn_lat.csv", "HW,latency\n1,2\n"))
    assert list(tables) == ["conv"]
    assert len(said) == 1
    assert said[0].startswith("rnn_lat.csv was skipped: tables are called ")


@pytest.mark.parametrize("data", [b"", b"HW,kernel,stride,Cin,Cout,FLOPs,latency\n"])
def test_nothing_to_learn_from(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "conv_lat.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"conv_lat\.csv"):
        read_tables(tmp_path)


def test_a_folder_without_tables_says_what_they_are_called(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table to learn from in .*conv_lat\.csv"):
        read_tables(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        read_tables(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00HW", b'HW,"latency\n1,2\n', b"HW,latency\n1,\x002\n"])
def test_what_is_no_text_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "batchnorm_lat.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"batchnorm_lat\.csv"):
        read_tables(tmp_path)


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "conv_lat.csv").write_bytes(b"\xef\xbb\xbf" + CONV.replace("\n", "\r\n").encode())
    tables, said = read_tables(tmp_path)
    assert len(tables["conv"]) == 3
    assert said == []


def test_comes_back_as_written(tmp_path: Path) -> None:
    table = Table(
        "activation",
        {"elements": np.array([1e6, 25088.0]), "op": np.array([-1.0, 3.0]), "fused": np.array([0.0, 1.0])},
        np.array([0.123456789, 4.0]),
        np.array([7, -1]),
    )
    write_tables(tmp_path / "out", {"activation": table})
    assert (tmp_path / "out" / "activation_lat.csv").read_text().splitlines()[0] == "elements,op,fused,origin,latency"
    tables, said = read_tables(tmp_path / "out")
    assert said == []
    back = tables["activation"]
    assert back.latency_ms.tolist() == table.latency_ms.tolist()
    assert {k: v.tolist() for k, v in back.columns.items()} == {k: v.tolist() for k, v in table.columns.items()}
    assert back.origin is not None
    assert back.origin.tolist() == [7, -1]
    assert back.take(np.array([True, False])).origin.tolist() == [7]  # type: ignore[union-attr]
