"""Inputs that a command is given: those that can be read are used, the others are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from splitpoint.cli.input_files import noting, read_images, read_photos
from splitpoint.errors import InputError
from splitpoint.models import load
from splitpoint.models.zoo import digits


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("zoo:lenet5")
    shutil.copy(digits()[0], tmp_path / "0.png")
    shutil.copy(digits()[1], tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert len(read_photos(model, [tmp_path])) == 2
    said = capsys.readouterr().err
    assert "2.png" in said
    assert "1 input left out, 2 used" in said
    assert len(read_photos(model, [tmp_path], limit=1)) == 1
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"no input could be read \(2 tried\)"):
        read_photos(model, [tmp_path])


def test_without_files_there_are_photos() -> None:
    assert len(read_images(load("zoo:efficientnet_lite0"), None)) == 4


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    note = noting()
    note("a.png", "was turned")
    note("b.png", "was turned")
    note("b.png", "was cut")
    assert capsys.readouterr().err == "a.png was turned (said once)\nb.png was cut (said once)\n"
