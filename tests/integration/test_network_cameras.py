"""Cameras of a network, real ones as far as OpenCV can tell: over HTTP and RTSP, on loopback."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import streams
from commands import PYTHON
from videos import video

from splitpoint import capture, sources
from splitpoint.errors import InputError
from splitpoint.sources import open_source, redacted

Kind = Callable[[streams.Camera], AbstractContextManager[str]]
KINDS = pytest.mark.parametrize("kind", [streams.mjpeg, streams.rtsp])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has gone is tried again at once."""
    monkeypatch.setattr(sources, "_AGAIN_S", 0.01)
    monkeypatch.setattr(sources, "_MOST_AGAIN_S", 0.01)


def with_secret(url: str) -> str:
    return url.replace("://", "://admin:geheim@")


@KINDS
def test_a_camera_that_hangs_up_is_asked_again(kind: Kind) -> None:
    camera, said = streams.Camera(per_connection=8), list[str]()
    with kind(camera) as url:
        source = open_source(with_secret(url), on_event=said.append)
        assert (source.name, source.live, source.count) == (url, True, None)
        seen: list[int] = []
        for frame in source:
            assert frame.captured_s > 0
            assert frame.pixels is not None
            seen.append(streams.frame_of(frame.pixels))
            if len(seen) == 12:
                break
        source.close()
    assert seen == [*range(8), *range(4)]
    assert said[0] == f"{url} gives no more frames (after 8): trying until it is back"
    assert said[1].startswith(f"{url} is back after ")
    assert len(said) == 2


@KINDS
def test_a_camera_that_falls_silent_is_asked_again(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "READ_MS", 500)
    camera, said = streams.Camera(per_connection=40, hangs=True), list[str]()  # enough to find out its frame rate
    with kind(camera) as url:
        source = open_source(url, on_event=said.append)
        frames = iter(source)
        for _ in range(45):
            next(frames)
        source.close()
    assert "gives no more frames" in said[0]


@KINDS
def test_a_camera_that_refuses(kind: Kind) -> None:
    with kind(streams.Camera(off=True)) as url, pytest.raises(InputError) as caught:
        open_source(with_secret(url))
    assert str(caught.value) == f"{url} gives no video: is its path right?"


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_nobody_is_there(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"{scheme}://admin:geheim@127.0.0.1:{taken.getsockname()[1]}/live"
        with pytest.raises(InputError, match=r"gives no video: 127.0.0.1:\d+ cannot be reached \(Connection refused\)"):
            open_source(url)


def test_who_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "OPEN_MS", 300)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("rtsp", "http"):
            with pytest.raises(InputError, match=r"gives no video: is its path right, and does it want a name"):
                open_source(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/live")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("foo://admin:geheim@cam/1", r"^foo://cam/1 is no stream that is known here: they begin with rtsp://"),
        ("http://admin:geheim@cam/photo.JPG?key=geheim", r"^http://cam/photo.JPG\?… is one picture, not a stream"),
        ("rtsp://admin:ge#heim@cam/1", r"^rtsp://cam/1 gives no video: its address makes no sense .* # as %23"),
        ("rtsp:///1", "its address makes no sense"),
        ("file:///nowhere/a%20b.mp4", "no such file or folder: /nowhere/a b.mp4"),
    ],
)
def test_addresses_that_cannot_be_right(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint) as caught:
        open_source(text)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:geheim@cam/1",
        "rtsp://geheim@cam",
        "rtsp://admin:ge/he@im:geheim@cam:554/1",
        "rtsp://admin:geheim#@cam/1",
        "http://cam/video.cgi?user=admin&pwd=geheim",
        "rtsp://cam/user=admin&password=geheim&channel=1.sdp",
        "rtsp://cam/user=admin_password=geheim_channel=1.sdp",
        "souphttpsrc location=http://cam/ user-pw=geheim ! decodebin ! appsink",
    ],
)
def test_secrets_are_not_shown(text: str) -> None:
    assert "geheim" not in redacted(text)
    assert "cam" in redacted(text) or "souphttpsrc" in redacted(text)


def test_a_web_servers_video_waits_and_ends(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on standard error."""

    video(tmp_path / "walk.avi", 20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        source = open_source(f"http://127.0.0.1:{server.server_address[1]}/walk.avi")
        assert (source.live, source.count) == (False, 20)
        assert len(list(source)) == 20
        source.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@KINDS
def test_run_streams_it_and_prints_no_secret(kind: Kind) -> None:
    """The whole process: what FFmpeg writes on standard error by itself is seen, too."""
    camera = streams.Camera(per_connection=6)
    with kind(camera) as url:
        words = ["run", "zoo:lenet5", "--source", with_secret(url), "--reconnect", "0", "--json"]
        ran = subprocess.run(
            [*PYTHON, *words, "--on-overload", "queue"], capture_output=True, text=True, timeout=120, check=False
        )
        camera.off = True
        refused = subprocess.run([*PYTHON, *words], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, refused.returncode) == (4, 4)
    assert [json.loads(line)["input"] for line in ran.stdout.splitlines()] == [f"frame {k}" for k in range(1, 7)]
    said = ran.stderr.splitlines()
    assert said[0].startswith(f"{url} as it comes; when that is too fast, frames wait")
    assert said[-1] == f"splitpoint: {url} gives no more frames (after 6): is it still there?"
    assert len(said) == 4, ran.stderr
    assert refused.stderr == f"splitpoint: {url} gives no video: is its path right?\n"
    assert "geheim" not in ran.stdout + ran.stderr + refused.stderr


def test_the_newest_frame_is_taken_by_default() -> None:
    with streams.mjpeg(streams.Camera(per_connection=6)) as url:
        words = ["run", "zoo:lenet5", url, "--reconnect", "0", "--json"]
        ran = subprocess.run([*PYTHON, *words], capture_output=True, text=True, timeout=120, check=False)
    assert "the oldest is dropped (drop-oldest" in ran.stderr
