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
    assert "JPEG q90" in said
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


def test_labels_and_a_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitpoint.models.zoo import digits

    labels, out = tmp_path / "labels.csv", tmp_path / "calib.json"
    lines = [f"{path.name},{path.stem}" for path in digits()]
    labels.write_text("\n".join(lines))
    words = ["calibrate", "zoo:lenet5", "--threads", "1", "--codec", "int8", "--codec", "webp:90", "--images"]
    words += [str(digits()[0].parent), "-o", str(out)]
    assert main([*words, "--labels", str(labels)]) == 0
    said = capsys.readouterr().out
    assert "the whole model is right about 100.0% of 3 inputs" in said
    assert "WebP q90" in said
    assert "priced only" in said
    known = load_calibration(out)
    assert known.accuracy == 1
    assert all(row.quality.accuracy is not None for row in known.rows)
    labels.write_text("\n".join(lines[1:]))
    assert main([*words, "--labels", str(labels)]) == 4
    assert "has no line 0.png,LABEL: every input needs one" in capsys.readouterr().err
    labels.write_text("\n".join(f"{path.name},cat" for path in digits()))
    assert main([*words, "--labels", str(labels)]) == 4
    assert "cat is no label of lenet5" in capsys.readouterr().err

    assert main([*words, "--measure", "cosine"]) == 0
    assert "the mean of cosine over 3 inputs" in capsys.readouterr().out
    assert load_calibration(out).measure == "cosine"
    assert main([*words, "--measure", "cosin"]) == 2
    assert "no measure is called cosin" in capsys.readouterr().err
