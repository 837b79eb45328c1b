"""splitpoint calibrate: which inputs and codecs are tried, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.cli import main


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitpoint.models.zoo import digits

    folder, out = digits()[0].parent, tmp_path / "calib.json"
    words = ["calibrate", "zoo:lenet5", "--threads", "1", "--codec", "int8", "--codec", "jpeg:90"]
    assert main([*words, "--images", str(folder), "-o", str(out), "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert "int8" in said
    assert "as JPEG: q90" in said
    assert "not ruled out" in said
    assert load_calibration(out).inputs == 2

    broken = tmp_path / "broken"
    broken.mkdir()
    assert main([*words, "--images", str(broken)]) == 4
    (broken / "a.png").write_bytes(b"no picture")
    assert main([*words, "--images", str(broken)]) == 4
    assert "a.png is not an image that Pillow can read" in capsys.readouterr().err
    (broken / "b.png").write_bytes(digits()[0].read_bytes())
    assert main([*words, "--images", str(broken), "--json"]) == 0
    said_too = capsys.readouterr()
    assert "1 input left out, 1 used" in said_too.err
    assert msgspec.json.decode(said_too.out, type=Calibration).inputs == 1
    assert main([*words, "--images", str(broken), "-o", str(tmp_path / "no" / "c.json")]) == 7
    assert main(["calibrate", "zoo:lenet5", "--images", str(folder), "--codec", "int9"]) == 2
