"""splitpoint calibrate-codecs: which inputs and codecs are tried, and what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from commands import Serving, fails, ok
from pictures import heldout_digits
from PIL import Image

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.cli import main
from splitpoint.models import load
from splitpoint.models.zoo import zoo_path
from splitpoint.segments import load_manifest


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitpoint.models.zoo import digits

    folder, out = digits()[0].parent, tmp_path / "calib.json"
    words = ["calibrate-codecs", "zoo:lenet5", "--threads", "1", "--codec", "int8", "--codec", "jpeg:90"]
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
    assert main(["calibrate-codecs", "zoo:lenet5", "--images", str(folder), "--codec", "int9"]) == 2


def test_labels_and_a_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitpoint.models.zoo import digits

    labels, out = tmp_path / "labels.csv", tmp_path / "calib.json"
    lines = [f"{path.name},{path.stem}" for path in digits()]
    labels.write_text("\n".join(lines))
    words = ["calibrate-codecs", "zoo:lenet5", "--threads", "1", "--codec", "int8", "--codec", "webp:90", "--images"]
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


def test_which_cuts_and_what_a_few_inputs_are_enough_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "digits", tmp_path / "calib.json"
    folder.mkdir()
    for k, picture in enumerate(heldout_digits()[0][:16]):
        Image.fromarray(picture).save(folder / f"{k:02}.png")

    def calibrated(*more: object) -> Calibration:
        words = ["calibrate-codecs", "zoo:lenet5", "--threads", "1", "--images", folder, "-o", out, *more]
        assert main([str(word) for word in words]) == 0
        return load_calibration(out)

    names = [cut.name for cut in load("zoo:lenet5").graph.prefixes()]

    def cuts(calibration: Calibration) -> list[str]:
        return [names[place] for place in dict.fromkeys(row.prefix for row in calibration.rows)]

    few = ["--codec", "int8", "--codec", "jpeg:90"]
    assert cuts(calibrated(*few)) == ["input", "pool2", "tanh3"]
    assert "calibrating input, pool2, tanh3: every other cut" in capsys.readouterr().err
    assert cuts(calibrated(*few, "--at", "tanh4", "--at", "pool1")) == ["tanh4", "pool1"]
    assert cuts(calibrated(*few, "--at", "pool1", "--cuts", "worthwhile")) == ["pool1", "input", "pool2", "tanh3"]
    assert len(cuts(calibrated(*few, "--cuts", "chain"))) > 10
    assert "every other cut" not in capsys.readouterr().err

    klt = ["--codec", "klt:30", "--codec", "klt:90", "--at", "pool2"]
    plain, metric = calibrated(*klt), calibrated(*klt, "--metric")
    text = capsys.readouterr().out
    assert "klt at 95 %" in text
    assert "klt:30" in text
    assert plain.tables != metric.tables
    assert not calibrated("--limit", 15, "--at", "pool2").tables
    assert "klt is left out: it takes 16 inputs or more" in capsys.readouterr().err


def test_tables_are_learnt_kept_beside_the_model_served_and_run_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    net, photos = tmp_path / "net.onnx", tmp_path / "digits"
    net.write_bytes(zoo_path("lenet5").read_bytes())
    photos.mkdir()
    for k, picture in enumerate(heldout_digits()[0][:20]):
        Image.fromarray(picture).save(photos / f"{k:02}.png")
    beside = tmp_path / "net.calib.json"

    words = ["calibrate-codecs", net, "--threads", "1", "--codec", "klt:90", "--codec", "int8", "--cuts", "4"]
    assert main([str(word) for word in (*words, "--images", photos)]) == 0
    assert f"wrote {beside}" in capsys.readouterr().err
    calibration = load_calibration(beside)
    assert calibration.inputs == 10, "half of them were learnt from"
    tensors = [entry.tensor for entry in calibration.tables]
    assert tensors
    assert {row.codec for row in calibration.rows} == {"klt:90", "int8"}
    assert "16 inputs are the least" in fails(capsys, 2, *words, "--images", photos, "--limit", "15")

    few = tmp_path / "few.json"
    words = ["calibrate-codecs", net, "--threads", "1", "--cuts", "4", "--images", photos, "--limit", "15", "-o", few]
    assert main([str(word) for word in words]) == 0, "nobody asked for klt"
    assert "klt is left out: it takes 16 inputs or more, half of them to learn from, not 15" in capsys.readouterr().err
    assert load_calibration(few).inputs == 15
    assert not any(row.codec.startswith("klt") for row in load_calibration(few).rows)

    at = next(r for r in calibration.rows if r.codec == "klt:90").prefix
    text = ok(capsys, "split", net, "--at", at, "-o", tmp_path / "parts")
    (pinned,) = load_manifest(tmp_path / "parts").tables
    assert f"the tables of {pinned.tensor}" in text
    assert pinned.tensor in tensors

    serving = Serving(str(net))
    try:
        assert any(f"tables of {len(tensors)} tensors for klt" in line for line in serving.said), serving.said
        run = ["run", "--cloud", serving.address, "--at", at, "--codec", "klt:90", "--fallback", "error"]
        assert main([str(word) for word in (*run, "--json", photos)]) == 0
        out, err = capsys.readouterr()
        assert f"fetched the tables for {pinned.tensor}" in err
        assert len(out.splitlines()) == 20
        whole = [json.loads(line) for line in ok(capsys, "run", net, "--json", photos).splitlines()]
        cut = [json.loads(line) for line in out.splitlines()]
        assert [row["labels"][0]["label"] for row in cut] == [row["labels"][0]["label"] for row in whole]
        assert f"{pinned.tensor} float32[1,6,28,28] as klt:90 crosses" in ok(
            capsys, *run, "--calibration", beside, photos / "00.png"
        )
        planned = ok(capsys, "plan", net, "--cloud", serving.address, "--budget", "1s", "--agreement", "90%")
        assert "where 95 % of the answers must stay" in planned, "of the calibration beside the model"
        foreign = tmp_path / "foreign.json"
        foreign.write_text(beside.read_text().replace(calibration.fingerprint, "0" * 64))
        said = fails(capsys, 4, *run, "--calibration", foreign, photos / "00.png")
        assert "the calibration given here is of net 000000000000, not of net" in said
        asked = ["run", net, "--cloud", serving.address, "--budget", "0", "--agreement", "90%", photos / "00.png"]
        assert main([str(word) for word in asked]) == 0, "what lies beside the model says what codecs keep"
        capsys.readouterr()
        assert main([str(word) for word in (*asked, "--at", "pool1")]) == 0, "raw keeps them all"
        assert "at pool1 as raw, by the calibration" in capsys.readouterr().err
        text = ok(capsys, "plan", net, "--cloud", serving.address, "--budget", "0.5s", "--agreement", "90%")
        assert "an agreement of at least 90 %" in text
        bare = tmp_path / "bare" / "net.onnx"
        bare.parent.mkdir()
        bare.write_bytes(net.read_bytes())
        assert "--agreement needs a calibration" in fails(capsys, 2, "run", bare, *asked[2:])
    finally:
        serving.end()
    said = fails(capsys, 4, "serve", net, "--calibration", foreign, "--port", "0")
    assert f"{foreign} is of net 000000000000, not of net" in said
    beside.write_text("{}")
    assert f"{beside} is" in fails(capsys, 4, "serve", net, "--port", "0")
    assert "for a server" in fails(capsys, 2, "run", net, "--calibration", foreign, photos / "00.png")
