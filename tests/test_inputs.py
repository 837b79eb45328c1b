"""What a folder is searched for: in which order, and how what is not read is told. On every verb that takes photos."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from commands import PYTHON, Serving, ok
from PIL import Image
from places import SUPPORT

from splitpoint import install
from splitpoint.cli import main
from splitpoint.errors import InputError
from splitpoint.inputs import find_inputs, natural
from splitpoint.models.zoo import digits

HEIC = SUPPORT / "photos" / "turned.heic"


def fill(folder: Path, *names: str) -> Path:
    """A digit under each name, and folders where they are wanted."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digits()[0], folder / name)
    return folder


def names(folder: Path, *, recursive: bool = False) -> list[str]:
    return [str(p.relative_to(folder)) for p in find_inputs([folder], recursive=recursive).files]


# --- order ------------------------------------------------------------------------------------------------------------


def test_numbers_in_names_are_numbers(tmp_path: Path) -> None:
    unsorted = ["frame10.png", "frame2.png", "frame1.png", "frame010.png", "10.png", "9.png", "a.png", "frame.png",
                "frame2b3.png", "frame2b20.png", "B1.png", "frame٣.png"]  # fmt: skip
    fill(tmp_path, *unsorted)
    assert names(tmp_path) == [
        "9.png", "10.png", "B1.png", "a.png", "frame.png", "frame1.png", "frame2.png", "frame2b3.png", "frame2b20.png",
        "frame010.png", "frame10.png", "frame٣.png",
    ]  # fmt: skip


def test_the_order_is_the_same_whatever_the_file_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{k:0{w}}.png" for k in (1, 2, 10) for w in (1, 2, 3)))
    there = os.listdir(tmp_path)
    for order in (sorted(there), sorted(there, reverse=True), there):
        monkeypatch.setattr(os, "listdir", lambda path, order=order: order)
        assert names(tmp_path) == ["001.png", "01.png", "1.png", "002.png", "02.png", "2.png", "010.png", "10.png"]
    assert natural(Path("9" * 250)) > natural(Path("8" * 250))


def test_files_that_are_named_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, "2.png", "1.png", "in/10.png", "in/9.png", ".hidden.png")
    paths = [tmp_path / "2.png", tmp_path / "in", tmp_path / "1.png", tmp_path / ".hidden.png"]
    found = find_inputs(paths).files
    assert [p.name for p in found] == ["2.png", "9.png", "10.png", "1.png", ".hidden.png"]


# --- what is not read -------------------------------------------------------------------------------------------------


def test_what_is_not_read_is_told_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    fill(tmp_path, "a.png", "._a.png", ".DS_Store", "Thumbs.db", "1.heic", "2.HEIC", "10.heif", "11.hif", "walk.MOV",
         "photo.nef", "labels.txt", "model.onnx", "in/b.png", "\x1b[31m.doc")  # fmt: skip
    np.save(tmp_path / "x.npy", np.zeros(3))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_inputs([tmp_path])
    assert [p.name for p in found.files] == ["a.png", "x.npy"]
    told = sorted(text.removeprefix(f"{tmp_path}: ") for text in found.reasons)
    assert told == sorted(
        [
            "4 not read (1.heic, 2.HEIC, 10.heif, …): "
            f"pi-heif is needed to read HEIC photos (the extra [heif]): {install.extra('heif')}",
            "3 not read (.DS_Store, ._a.png, Thumbs.db): hidden, or what a file manager keeps there",
            "1 not read (walk.MOV): videos: give each with --source",
            "1 not read (photo.nef): raw photos: develop them to JPEG or TIFF",
            "1 not read (in): --recursive looks into folders",
            "2 not read (gone.png, pipe.png): not there, or no regular files",
            "3 not read (?[31m.doc, labels.txt, model.onnx): "
            "neither an image nor .npy/.npz by its name: what is one all the same, give by name",
        ]
    )
    assert found.skipped == sum(int(text.split()[0]) for text in told)


def test_heic_and_avif_are_photos_where_they_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitpoint.inputs.find_spec", lambda name: object())
    fill(tmp_path, "a.heic", "b.HEIF", "c.avif")
    assert names(tmp_path) == ["a.heic", "b.HEIF", "c.avif"]
    monkeypatch.setattr("splitpoint.inputs._has_avif", lambda: False)
    found = find_inputs([tmp_path])
    assert found.reasons == (f"{tmp_path}: 1 not read (c.avif): AVIF needs Pillow 11.3 or newer",)


def test_a_folder_without_inputs_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no images or \.npy/\.npz files$"):
        find_inputs([tmp_path])
    fill(tmp_path, "cat/a.png", "dog/b.png")
    with pytest.raises(InputError, match=r"npz files; 2 not read \(cat, dog\): --recursive looks into folders$"):
        find_inputs([tmp_path])


# --- folders below ----------------------------------------------------------------------------------------------------


def test_folders_below(tmp_path: Path) -> None:
    fill(tmp_path, "b10/1.png", "b9/2.png", "b9/deep/er/3.png", "4.png", ".git/5.png", "__MACOSX/6.png", "@eaDir/7.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b9" / "back").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert names(tmp_path, recursive=True) == ["4.png", "b9/2.png", "b9/deep/er/3.png", "b10/1.png"]
    found = find_inputs([tmp_path], recursive=True)
    assert (
        f"{tmp_path}: 3 not read (.git, @eaDir, __MACOSX): hidden, or what a file manager keeps there" in found.reasons
    )
    assert names(tmp_path) == ["4.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            find_inputs([tmp_path])
    finally:
        tmp_path.chmod(0o700)


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photos, one of them in a folder; and three things that are not read, one of them HEIC."""
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    return fill(tmp_path / "mixed", "1.png", "in/1.png", "._1.png", "2.heic", "notes.pdf")


def test_run_names_what_it_does_not_read(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "zoo:lenet5", str(mixed), "--json"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    for text in ("(2.heic): pi-heif is needed", "(._1.png): hidden", "(notes.pdf): neither", "(in): --recursive"):
        assert text in said.err
    assert said.err.splitlines()[-1] == "4 beside them not read (said at the beginning)"
    text = ok(capsys, "run", "zoo:lenet5", "--source", mixed, "--recursive")
    rows = [line.split()[0] for line in text.splitlines() if line.startswith(("1.png", "in/"))]
    assert rows == ["1.png", "in/1.png"]


def test_run_goes_on_after_what_it_cannot_read(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HEIC that is named, and a photo from a phone that is only called .jpg."""
    shutil.copy(HEIC, mixed / "3.jpg")
    assert main(["run", "zoo:lenet5", str(mixed / "2.heic"), str(mixed / "3.jpg"), str(mixed / "1.png"), "--json"]) == 4
    said = capsys.readouterr()
    assert [json.loads(line)["input"] for line in said.out.splitlines()] == [
        str(mixed / "2.heic"),
        str(mixed / "1.png"),
    ]
    assert "3.jpg (a HEIC photo) (the extra [heif])" in said.err
    assert "1 of 3 inputs could not be read" in said.err
    assert main(["run", "zoo:lenet5", str(mixed / "3.jpg")]) == 2


def test_calibrate_sweep_and_compare_read_the_same(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    (mixed / "in" / "broken.png").write_bytes(b"no picture")
    server = Serving("zoo:lenet5")
    try:
        verbs = (
            ["calibrate-codecs", "zoo:lenet5", "--codec", "int8"],
            ["sweep", "zoo:lenet5", "--cloud", server.address, "--repeat", "1", "--cuts", "1", "--csv",
             str(tmp_path / "x.csv"), "--json"],
            ["compare", "zoo:lenet5", "--cloud", server.address, "--repeat", "1", "--budget", "200ms"],
        )  # fmt: skip
        for words in verbs:
            assert main([*words, "--images", str(mixed), "--recursive"]) == 0, words
            err = capsys.readouterr().err
            assert "1 not read (2.heic): pi-heif is needed" in err, words
            assert "broken.png is not an image" in err, words
            assert "1 input left out, 2 used" in err, words
            assert main([*words, "--images", str(mixed / "in" / "broken.png")]) == 4, words
            assert "broken.png is not an image" in capsys.readouterr().err
    finally:
        server.end()


@pytest.mark.parametrize("verb", [["run"], ["calibrate-codecs", "--codec", "int8", "--images"]])
def test_standard_input_takes_what_files_may_hold(verb: list[str], tmp_path: Path) -> None:
    wide = tmp_path / "wide.tif"
    Image.fromarray(np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28)).save(wide)
    given = {wide: "standard input is of floating point: 0 is taken as black and 1 as white (said once)"}
    if find_spec("pi_heif"):
        given[HEIC] = ""
    for path, note in given.items():
        ran = subprocess.run(
            [*PYTHON, verb[0], "zoo:lenet5", *verb[1:], "-"], input=path.read_bytes(), capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert note in ran.stderr.decode()
