"""Calibrations as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tabled import TENSOR, calibration, tables_for

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import calibration_bytes, load_calibration, parse_calibration, save_calibration
from splitpoint.errors import InputError


def test_it_loads_back(found: Calibration, tmp_path: Path) -> None:
    save_calibration(tmp_path / "c.json", found)
    assert load_calibration(tmp_path / "c.json") == found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"format": 2},
            "of format 2, and this version reads format 1: make it anew with splitpoint calibrate-codecs",
        ),
        ({"rows": []}, r"Expected `array` of length >= 1 - at `\$.rows`"),
        ({"inputs": 0}, r"Expected `int` >= 1 - at `\$.inputs`"),
        ({"rows": "x"}, "rows"),
        ({"classifier": False}, "no classifier"),
        ({"model": "\x1b[2J"}, r"control characters - at `\$.model`"),
    ],
)
def test_a_wrong_file_is_refused(found: Calibration, change: dict[str, Any], why: str) -> None:
    data = json.loads(calibration_bytes(found)) | change
    with pytest.raises(InputError, match=why):
        parse_calibration(json.dumps(data).encode(), "c.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"codec": "int9"}, "int9"),
        ({"prefix": -1}, r"Expected `int` >= 0 - at `\$.rows\[1\].prefix`"),
        ({"most": -5}, r"Expected `int` >= 0 - at `\$.rows\[1\].most`"),
        (
            {"quality": {"inputs": 3, "agreement": 1.5, "cosine": 1, "error": 0}},
            r"<= 1.0 - at `\$.rows\[1\].quality.agreement`",
        ),
        ({"quality": {"inputs": 0, "agreement": 1, "cosine": 1, "error": 0}}, r"`int` >= 1 - at `\$.rows\[1\].quality"),
        ({"quality": {"inputs": 13, "agreement": 1, "cosine": 1, "error": 0}}, "more than there are"),
        (
            {"quality": {"inputs": 3, "agreement": 1, "cosine": 2, "error": 0}},
            r"<= 1.001 - at `\$.rows\[1\].quality.cosine`",
        ),
        (
            {"quality": {"inputs": 3, "agreement": 1, "cosine": 1, "error": -1}},
            r">= 0.0 - at `\$.rows\[1\].quality.error`",
        ),
    ],
)
def test_a_wrong_row_is_refused(found: Calibration, change: dict[str, Any], why: str) -> None:
    data = json.loads(calibration_bytes(found))
    data["rows"][1] |= change
    with pytest.raises(InputError, match=why):
        parse_calibration(json.dumps(data).encode(), "c.json")


def test_half_a_file_is_refused(found: Calibration, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(calibration_bytes(found)[:300])
    with pytest.raises(InputError, match="not a calibration"):
        load_calibration(tmp_path / "c.json")
    with pytest.raises(InputError, match="no file"):
        load_calibration(tmp_path / "none.json")


def test_tables_are_in_the_file_and_load_back(tmp_path: Path) -> None:
    save_calibration(tmp_path / "c.json", calibration())
    loaded = load_calibration(tmp_path / "c.json")
    assert loaded == calibration()
    assert tables_for(loaded).hash == tables_for(calibration()).hash


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tables: [*tables, tables[0]], r"two tables of one tensor - at `\$.tables\[2\]`"),
        (
            lambda tables: [{**tables[0], "data": "AAAA"}],
            r"no codec tables of this version.* - at `\$.tables\[0\].data`",
        ),
        (lambda tables: [{**tables[0], "data": tables[0]["data"][:-4]}], r"bytes, but these have .*data`"),
        (lambda tables: [{**tables[0], "data": "?"}], r"base64.* - at `\$.tables\[0\].data`"),
        (lambda tables: [{**tables[0], "tensor": "\x1b[2J"}], r"control characters - at `\$.tables\[0\].tensor`"),
        (lambda tables: {TENSOR: tables}, r"Expected `array`, got `object` - at `\$.tables`"),
    ],
)
def test_wrong_tables_are_refused(change: Callable[[Any], Any], why: str) -> None:
    data = json.loads(calibration_bytes(calibration()))
    data["tables"] = change(data["tables"])
    with pytest.raises(InputError, match=why):
        parse_calibration(json.dumps(data).encode(), "c.json")
