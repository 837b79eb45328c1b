"""Folders, videos and cameras as streams; `splitpoint run` on them, with real processes where Ctrl-C is the point."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import picture, video

from splitpoint import sources
from splitpoint.capture import missing_nbytes
from splitpoint.errors import InputError, UsageError
from splitpoint.inputs import read_frame, read_inputs
from splitpoint.models import load
from splitpoint.models.zoo import digits, photos
from splitpoint.sources import Camera, Options, Video, is_stream, open_source
from splitpoint.tensors import Array

# --- opening ----------------------------------------------------------------------------------------------------------


def test_what_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "front-door").symlink_to("/dev/video917")
    streams = (str(tmp_path), "walk.mp4", "WALK.AVI", "x.mts", "x.M2TS", "x.h264", "x.264", "x.hevc", "x.mkv", "x.webm",
               "/dev/video0", "camera:12", "/dev/v4l/by-id/usb-cam", str(tmp_path / "front-door"), "rtsp://cam/1",
               "HTTP://cam/v.mjpg", "v4l2src ! appsink")  # fmt: skip
    for text in streams:
        assert is_stream(text), text
    others = ("photo.jpg", "lenet", "camera", "camera:x", "/dev/null", "-", "0", "zoo:lenet5", "hf:a/b", "a" * 5000)
    for text in others:
        assert not is_stream(text), text


def test_a_folder_is_its_files_in_order() -> None:
    source = open_source(str(photos()[0].parent))
    frames = list(source)
    assert source.count == len(frames)
    assert not source.live
    assert [f.path for f in frames] == sorted(f.path for f in frames)
    model = load("zoo:efficientnet_lite0")
    for name, array in frames[0].inputs(model).items():
        np.testing.assert_array_equal(array, read_inputs(model, frames[0].path)[name])


@pytest.mark.parametrize("text", ["nowhere", "nowhere.mp4"])
def test_what_is_not_there(text: str) -> None:
    with pytest.raises(InputError, match=f"no such file or folder: {text}"):
        open_source(text)


@pytest.mark.parametrize("text", ["/dev/video917", "camera:917", "917"])
def test_a_camera_that_is_not_there(text: str) -> None:
    with pytest.raises(InputError, match=r"there is no camera at /dev/video917 \(cameras here: "):
        open_source(text)


def test_a_link_to_a_camera_that_is_not_there(tmp_path: Path) -> None:
    link = tmp_path / "front-door"
    link.symlink_to("/dev/video917")
    for text in (str(link), "/dev/v4l/by-id/usb-cam"):
        with pytest.raises(InputError, match=f"there is no camera at {text}"):
            open_source(text)


def test_a_folder_called_like_a_cameras_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0").mkdir()
    shutil.copy(digits()[0], tmp_path / "0")
    monkeypatch.chdir(tmp_path)
    assert open_source("0").count == 1, "camera:0 is the camera"


def test_a_pipeline_needs_an_opencv_with_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    secret = "rtspsrc location=rtsp://admin:geheim@cam/1 user-pw=geheim ! decodebin ! video/x-raw,format=BGR ! appsink"
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: False)
    with pytest.raises(UsageError, match="needs an OpenCV that was built with GStreamer"):
        open_source(secret)
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: True)
    opened: list[object] = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: [opened.append(how), Driver(0, opens=False)][1])
    with pytest.raises(InputError, match=r"^the pipeline rtspsrc ! decodebin ! … ! appsink does not start: try it"):
        open_source(secret)
    assert opened == [(secret, cv2.CAP_GSTREAMER)]
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: Driver(3))
    source = open_source("filesrc location=a.mp4 ! decodebin ! appsink")
    assert source.live
    assert len(list(source)) == 3, "a pipeline that ends is not started again"


# --- videos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_a_videos_frames_come_in_order_and_in_their_colours(tmp_path: Path, name: str, codec: str) -> None:
    source = Video(video(tmp_path / name, 20, codec))
    assert (source.count, source.live, missing_nbytes(tmp_path / name)) == (20, False, 0)
    frames = list(source)
    assert [f.name for f in frames] == [f"frame {k}" for k in range(1, 21)]
    for k, frame in enumerate(frames):
        assert np.abs(frame.pixels.astype(int) - picture(k)).mean() < 6, "red is red, and this is frame k"
        assert frame.spans[0].name == "prepare"
    source.close()
    assert list(source) == [], "closing ends it"


def test_a_frame_becomes_what_a_photo_of_it_becomes(tmp_path: Path) -> None:
    Image.fromarray(picture(9)).save(tmp_path / "a.png")
    for name in ("zoo:efficientnet_lite0", "zoo:lenet5"):
        model = load(name)
        given, read = read_frame(model, picture(9)), read_inputs(model, tmp_path / "a.png")
        assert given.keys() == read.keys()
        for key in given:
            np.testing.assert_array_equal(given[key], read[key])


# --- cameras ----------------------------------------------------------------------------------------------------------


class Driver:
    """What OpenCV makes of a camera."""

    def __init__(self, frames: int, *, opens: bool = True) -> None:
        self.left, self.opens, self.released = frames, opens, 0
        self.asked: dict[int, float] = {}

    def isOpened(self) -> bool:
        return self.opens

    def set(self, key: int, value: float) -> None:
        self.asked[key] = value

    def get(self, key: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, Array | None]:
        self.left -= 1
        return (True, picture(0)[..., ::-1]) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[Driver]:
    """What OpenCV opens, one after the other."""
    import cv2

    made = [Driver(3)]
    left = iter(made)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *name: next(left))
    monkeypatch.setattr(sources, "_AGAIN_S", 0.001)
    monkeypatch.setattr(sources, "_MOST_AGAIN_S", 0.001)
    return made


def test_a_camera_gives_frames_until_it_is_unplugged(drivers: list[Driver]) -> None:
    import cv2

    source = Camera("/dev/null", Options(rate=15.0, reconnect_s=0))
    assert (source.live, source.rate, source.count) == (True, 30.0, None)
    assert drivers[0].asked[cv2.CAP_PROP_FPS] == 15.0
    frames = iter(source)
    for k in range(3):
        frame = next(frames)
        np.testing.assert_array_equal(frame.pixels, picture(0))
        assert frame.captured_s > 0
        assert frame.name == f"frame {k + 1}"
    with pytest.raises(InputError, match=r"gives no more frames \(after 3\)"):
        next(frames)
    source.close()
    assert drivers[0].released >= 1


def test_a_camera_that_comes_back(drivers: list[Driver]) -> None:
    """Unplugged, twice in vain, and back: told once that it has gone, and once that it is there again."""
    drivers += [Driver(0, opens=False), Driver(0), Driver(2), Driver(1)]
    said: list[str] = []
    source = Camera("/dev/null", Options(on_event=said.append))
    frames = iter(source)
    assert [next(frames).name for _ in range(5)] == [f"frame {k}" for k in range(1, 6)]
    assert len(said) == 2
    assert said[0] == "/dev/null gives no more frames (after 3): trying until it is back"
    assert re.fullmatch(r"/dev/null is back after \d+\.\d s", said[1])
    assert next(frames).name == "frame 6"
    assert [d.released > 0 for d in drivers] == [True, True, True, True, False]
    source.close()
    assert list(frames) == [], "closing ends it"
    assert drivers[-1].released


def test_who_cannot_be_told_costs_no_frame(
    drivers: list[Driver], reported: set[tuple[str, type[BaseException]]]
) -> None:
    def full(text: str) -> None:
        raise OSError("no space left on device")

    drivers.append(Driver(3))
    frames = iter(Camera("/dev/null", Options(on_event=full)))
    assert [next(frames).name for _ in range(6)][-1] == "frame 6"
    assert {kind for _, kind in reported} == {OSError}


def test_a_camera_that_stays_away(drivers: list[Driver]) -> None:
    drivers += [Driver(0) for _ in range(50)]
    times = iter(range(1000))
    source = Camera("/dev/null", Options(reconnect_s=20, clock=lambda: float(next(times))))
    with pytest.raises(InputError, match=r"/dev/null gives no more frames \(after 3\): is it still there\?"):
        list(source)
    assert sum(d.released > 0 for d in drivers) > 5, "it was tried meanwhile"


def test_closing_ends_the_waiting_for_a_camera(drivers: list[Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_AGAIN_S", 3600.0)
    gone = threading.Event()
    source = Camera("/dev/null", Options(on_event=lambda text: gone.set()))
    frames: list[sources.StreamFrame] = []
    reader = threading.Thread(target=lambda: frames.extend(source))
    reader.start()
    assert gone.wait(30)
    source.close()
    reader.join(30)
    assert not reader.is_alive()
    assert len(frames) == 3


def test_a_camera_that_another_program_has(drivers: list[Driver]) -> None:
    drivers[0].opens = False
    with pytest.raises(InputError, match="another program may have it"):
        Camera("/dev/null", Options())
    assert drivers[0].released == 1


def test_a_link_to_a_camera_is_followed_each_time(
    drivers: list[Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As udev's /dev/v4l/by-id: after it was unplugged it may lead to another number."""
    import cv2

    opened: list[object] = []
    left = iter([Driver(1), Driver(1)])
    monkeypatch.setattr(cv2, "VideoCapture", lambda *name: [opened.append(name[0]), next(left)][1])
    link = tmp_path / "front-door"
    link.symlink_to("/dev/null")
    frames = iter(Camera(str(link), Options()))
    next(frames)
    link.unlink()
    link.symlink_to("/dev/zero")
    next(frames)
    assert opened == ["/dev/null", "/dev/zero"]
