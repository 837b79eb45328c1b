"""Videos as OpenCV reads them: to their end, broken ones too."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import streams
from videos import picture, video

from splitpoint.capture import missing_nbytes
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.models.zoo import photos
from splitpoint.sources import Video, open_source
from splitpoint.tensors import Array


def test_opencv_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "a.avi", 2)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"\[video\]\): .* install 'opencv-python-headless>="):
        open_source(str(path))
    assert open_source(str(photos()[0].parent)).count, "a folder does without"


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.avi", "mp4v"), ("a.mkv", "mp4v")])
@pytest.mark.parametrize("share", [0.9, 0.8, 0.7])
def test_a_video_that_ends_in_the_middle_of_a_frame(tmp_path: Path, name: str, codec: str, share: float) -> None:
    whole = video(tmp_path / name, 20, codec)
    expected = [f.pixels for f in Video(whole)]
    cut = tmp_path / f"cut{whole.suffix}"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    assert missing_nbytes(cut) == len(data) - int(len(data) * share)
    got: list[Array] = []
    with pytest.raises(InputError, match=r"cut\.\w+ ends in the middle: only its first \d+ frames could be read"):
        got.extend(frame.pixels for frame in Video(cut))
    assert 0 < len(got) < 20
    for a, b in zip(got, expected, strict=False):
        np.testing.assert_array_equal(a, b)  # no half frame is passed on


def test_a_video_without_its_index_cannot_be_opened(tmp_path: Path) -> None:
    whole = video(tmp_path / "whole.mp4", codec="mp4v")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"is not a video that OpenCV can read: it ends \d+ B too early"):
        open_source(str(cut))


def test_something_else_that_is_called_a_video(tmp_path: Path) -> None:
    for data in (b"hello", b"RIFF", bytes(100), b"\0\0\0\1moov" + bytes(8)):
        (tmp_path / "a.mp4").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.mp4 is not a video that OpenCV can read"):
            open_source(str(tmp_path / "a.mp4"))
    for name in ("x.mts", "x.m2ts", "x.h264"):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=rf"{name} is not a video that OpenCV can read: it is empty"):
            open_source(str(tmp_path / name))
    (tmp_path / "y.h264").write_bytes(b"\0\0\0\1\x67" + bytes(100))
    with pytest.raises(InputError, match=r"y\.h264 is not a video that OpenCV can read"):
        list(open_source(str(tmp_path / "y.h264")))
    (tmp_path / "\udcff.mp4").write_bytes(b"hello")
    with pytest.raises(InputError, match="its name is not UTF-8, so rename it"):
        open_source(str(tmp_path / "\udcff.mp4"))


@pytest.mark.parametrize("name", ["a.ts", "a.mts", "a.m2ts", "a.mpg", "a.m2v", "a.mkv", "a.mjpeg", "12:30:07.avi"])
def test_other_containers_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    """Of streams without an index OpenCV only guesses how many frames they hold: that is not taken for the truth."""
    codec = {"a.mkv": "mp4v", "a.mjpeg": "MJPG", "12:30:07.avi": "MJPG"}.get(name, "mpg2")
    written = video(tmp_path / f"written{Path(name).suffix}", 20, codec).rename(tmp_path / name)
    frames = list(open_source(str(written)))
    assert len(frames) == 20
    assert np.abs(frames[7].pixels.astype(int) - picture(7)).mean() < 8


def test_raw_h264_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.h264").write_bytes(streams.h264(12))
    source = open_source(str(tmp_path / "x.h264"))
    assert source.count is None
    assert [streams.frame_of(f.pixels) for f in source] == list(range(12))
