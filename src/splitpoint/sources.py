"""Where a stream's frames come from: a folder, a video file, a camera here or on the network.

    source = open_source("walk.mp4")
    for frame in source:
        edge.infer(frame.inputs(edge.model))

Videos and cameras are read with OpenCV, which is an extra and imported when one is opened.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from urllib.parse import unquote, urlsplit

from splitpoint.callbacks import call
from splitpoint.capture import OPEN_MS, Capture, NotOpenedError, missing_nbytes, only_guessed, opencv
from splitpoint.errors import InputError, UsageError
from splitpoint.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_inputs, read_frame, read_inputs
from splitpoint.models.model import Model
from splitpoint.tensors import Array
from splitpoint.text import HIDDEN
from splitpoint.trace import Clock, Span
from splitpoint.units import counted, size

_VIDEO = "/dev/video"
_DEVICE = re.compile(_VIDEO + r"\d+")
_CAMERA = re.compile(r"(?:camera:)?([0-9]{1,3})")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
#: What FFmpeg reads streams from, each with its usual port; 0 where nothing can be asked whether it is there.
SCHEMES = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935, "rtmps": 443, "tcp": 0, "udp": 0,
           "rtp": 0, "srt": 0}  # fmt: skip
_PIPELINE = re.compile(r"\s!\s")
#: Elements of a GStreamer pipeline that ends by itself.
_ENDS = re.compile(r"filesrc|num-buffers")
#: What udev calls V4L2 devices: their major number.
_V4L2 = 81
_LINUX = sys.platform == "linux"
#: How long it may take to find out why a stream did not open.
_ASK_S = 3.0
#: How long to wait before a camera that has gone is tried again: twice as long each time, up to the second number.
_AGAIN_S, _MOST_AGAIN_S = 0.5, 5.0
#: A camera that goes again before that has not come back for good.
_SETTLED_S = 10.0
#: Frames of a video that must be readable, as a share of those that its container promises.
_ENOUGH = 0.9

#: Told, in a sentence, that a camera has gone, and that it is back. Called from the thread that reads.
OnEvent = Callable[[str], None]


def ignore(text: str) -> None:
    """Nobody is to be told."""


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """One input of a stream: a file, or the `pixels` of a picture (uint8 [height, width, 3], RGB).

    `captured_s` is when a camera gave it, seconds on the clock of `spans`; 0 where nobody waits for it. `spans` are
    what was done for it already. `label` is a short name for tables.
    """

    name: str
    path: Path | None = None
    pixels: Array | None = None
    captured_s: float = 0.0
    spans: tuple[Span, ...] = ()
    label: str = ""

    def inputs(self, model: Model) -> dict[str, Array]:
        """The model's inputs, as `inputs.read_inputs` and `inputs.read_frame` make them."""
        if self.pixels is not None:
            return read_frame(model, self.pixels, self.name)
        assert self.path is not None
        return read_inputs(model, self.path)


def is_stream(text: str) -> bool:
    """Whether `text` is a folder, a video or a camera: what is streamed, not run one by one."""
    return (
        _is_device(text) or (text.startswith("camera:") and bool(_CAMERA.fullmatch(text)))
        or bool(_URL.fullmatch(text) or _PIPELINE.search(text))
        or Path(text).suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(text)
    )  # fmt: skip


def open_source(
    text: str, *, rate: float = 0.0, recursive: bool = False, reconnect_s: float = inf, on_event: OnEvent = ignore,
    clock: Clock = time.perf_counter,
) -> Source:  # fmt: skip
    """The source that `text` names.

    It is a folder (`recursive`: with those in it), a video file, a camera (``0``, ``camera:0``, ``/dev/video0``, a link
    to one such as ``/dev/v4l/by-id/…``), a stream (``rtsp://…``, ``http://…``, see `SCHEMES`), or a GStreamer pipeline
    that ends in ``! appsink``.

    A camera is asked for `rate` frames a second, if that is not 0. When it or a stream goes away it is tried again for
    `reconnect_s` seconds, which `on_event` is told once, and once when it is back.

    InputError if it is not there or cannot be read, MissingExtraError if OpenCV is needed and not installed, UsageError
    if OpenCV has no GStreamer. Names and passwords in a stream's address are in no message.
    """
    options = Options(rate, reconnect_s, on_event, clock)
    if _PIPELINE.search(text):
        return _pipeline(text, options)
    if url := _URL.fullmatch(text):
        return _stream(url[1].lower(), text, options)
    there, number = os.path.exists(text), _CAMERA.fullmatch(text)
    if _is_device(text) or (number and not there):
        return Camera(f"{_VIDEO}{int(number[1])}" if number else text, options)
    if not there:
        hints = "a camera is camera:0 or /dev/video0" if text.startswith(("camera", "/dev/")) else ""
        raise InputError(f"no such file or folder: {text}{f' ({hints})' if hints else ''}")
    path = Path(text)
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        return Video(path, clock=clock)
    return Files((path,), name=str(path), recursive=recursive)


def _is_device(text: str) -> bool:
    """Whether it names a camera by its device, directly or by a link, plugged in or not."""
    if _DEVICE.fullmatch(text) or text.startswith("/dev/v4l/"):
        return True
    try:
        state = os.stat(text)
    except (OSError, ValueError):  # not there; a link to what is not there may be a camera's
        with suppress(OSError, ValueError):
            return bool(os.path.islink(text) and _DEVICE.fullmatch(os.path.realpath(text)))
        return False
    return _LINUX and stat.S_ISCHR(state.st_mode) and os.major(state.st_rdev) == _V4L2


class Files:
    """Files as they are, folders as the inputs in them, in natural order; `input_files` says what is not read."""

    live, rate = False, 0.0

    def __init__(self, paths: Sequence[Path], name: str = "", *, recursive: bool = False) -> None:
        self.input_files = find_inputs(paths, recursive=recursive)
        self.paths = self.input_files.files
        self.name = name or ", ".join(str(p) for p in paths)
        self._base = paths[0] if len(paths) == 1 and paths[0].is_dir() else None

    @property
    def count(self) -> int:
        return len(self.paths)

    def label(self, path: Path) -> str:
        """A short name for tables: without the folder that was asked for."""
        return path.name if self._base is None else str(path.relative_to(self._base))

    def __iter__(self) -> Iterator[StreamFrame]:
        for path in self.paths:
            yield StreamFrame(str(path), path, label=self.label(path))

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """A video file. One that ends in the middle is an error, behind the last frame that is whole."""

    live, rate = False, 0.0

    def __init__(self, path: Path, *, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.name = str(path)
        self._missing = missing_nbytes(path)
        if path.is_file() and not path.stat().st_size:
            raise InputError(f"{path} is not a video that OpenCV can read: it is empty")
        try:
            # The whole path: to FFmpeg 12:30.mp4 would be a protocol.
            self._capture = Capture(os.path.abspath(path), file=True)
        except NotOpenedError as exc:
            why = f": it ends {size(self._missing)} too early" if self._missing else ""
            if isinstance(exc.__cause__, UnicodeError):
                why = ": its name is not UTF-8, so rename it"
            raise InputError(f"{path} is not a video that OpenCV can read{why}") from exc
        self.count = None if only_guessed(path) else self._capture.count

    def __iter__(self) -> Iterator[StreamFrame]:
        count, began = 0, self._clock()
        while (pixels := self._capture.read()) is not None:
            count += 1
            yield StreamFrame(f"frame {count}", pixels=pixels, spans=(Span("prepare", began, self._clock()),))
            began = self._clock()
        if self._capture.closed:
            return
        if not count:
            raise InputError(f"{self.name} is not a video that OpenCV can read: no frame is in it")
        # Where a container says its duration only, OpenCV guesses how many there are: a few are not missed.
        if count < ((self.count or count + 1) if self._missing else (self.count or 0) * _ENOUGH):
            raise InputError(f"{self.name} ends in the middle: only its first {counted(count, 'frame')} could be read")

    def close(self) -> None:
        self._capture.close()


@dataclass(frozen=True, slots=True)
class Options:
    """How a camera is read: see `open_source`."""

    rate: float = 0.0
    reconnect_s: float = inf
    on_event: OnEvent = ignore
    clock: Clock = time.perf_counter


class Live:
    """A source that gives frames by itself. It does not wait: a slow reader gets the frames that its driver has kept.

    `connect` opens it, or raises InputError with the reason. When it gives no more frames it is opened anew, for
    `reconnect_s` seconds: a cable, a network or the camera itself may come back. With `ends`, no more frames are its
    end. A `download` (a web server's ``http://…/walk.mp4``) says how long it is, waits, and ends.
    """

    def __init__(
        self, name: str, connect: Callable[[], Capture], options: Options, *, ends: bool = False, download: bool = False
    ) -> None:
        self.name, self._connect, self._options, self._ends = name, connect, options, ends or download
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._capture = connect()
        self.live = not download
        self.rate, self.count = (0.0, self._capture.count) if download else (self._capture.rate, None)

    def __iter__(self) -> Iterator[StreamFrame]:
        clock, count, delay_s = self._options.clock, 0, _AGAIN_S
        gone_s: float | None = None
        back_s = clock()
        while not self._closed.is_set():
            pixels, now = self._capture.read(), clock()
            if pixels is not None:
                if gone_s is not None:
                    call(self._options.on_event, f"{self.name} is back after {now - gone_s:.1f} s")
                    gone_s, back_s = None, now
                count += 1
                yield StreamFrame(f"frame {count}", pixels=pixels, captured_s=now if self.live else 0.0)
            elif self._ends or self._closed.is_set():
                if count < (self.count or 0) * _ENOUGH and not self._closed.is_set():
                    raise InputError(f"{self.name} ended early: only its first {counted(count, 'frame')} came")
                return
            else:
                if gone_s is None:
                    gone_s = now
                    if now - back_s > _SETTLED_S:
                        delay_s = _AGAIN_S
                    if self._options.reconnect_s > 0:
                        gone = f"{self.name} gives no more frames (after {count}): trying until it is back"
                        call(self._options.on_event, gone)
                if now - gone_s >= self._options.reconnect_s:
                    raise InputError(f"{self.name} gives no more frames (after {count}): is it still there?")
                self._reopen(delay_s)
                delay_s = min(2 * delay_s, _MOST_AGAIN_S)

    def _reopen(self, delay_s: float) -> None:
        """Opens it anew after `delay_s`; where that fails, the next read gives nothing."""
        self._capture.close()
        if self._closed.wait(delay_s):
            return
        with suppress(InputError):
            capture = self._connect()
            with self._lock:
                self._capture = capture
                if self._closed.is_set():  # meanwhile
                    capture.close()

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._capture.close()


class Camera(Live):
    """A camera of this machine, by its device or a link to it, which may lead to another number when it is back."""

    def __init__(self, device: str, options: Options) -> None:
        def connect() -> Capture:
            # Asked first: OpenCV would say the same in ten lines.
            if _LINUX and not os.path.exists(device):
                there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
                raise InputError(f"there is no camera at {device} (cameras here: {there})")
            try:
                where = os.path.realpath(device) if _LINUX else int(device.removeprefix(_VIDEO))
                return Capture(where, rate=options.rate)
            except NotOpenedError as exc:
                raise InputError(
                    f"{device} cannot be opened as a camera: another program may have it, or you may not use it "
                    "(are you in the group video?)"
                ) from exc

        super().__init__(device, connect, options)


#: Frames, once, in order; InputError in place of one that cannot be read, after those before it. `name` is what it is,
#: in words. Of a `live` one, frames that nobody takes are lost; `rate` is how many a second come by themselves (0: none
#: do, or it is not known), `count` how many there will be (None: not known). `close` lets go of the file or the camera.
Source = Files | Video | Live


def _stream(scheme: str, url: str, options: Options) -> Source:
    shown = redacted(url)
    if scheme == "file":
        return open_source(unquote(url[len("file://") :]), clock=options.clock)
    if scheme not in SCHEMES:
        raise InputError(f"{shown} is no stream that is known here: they begin with {'://, '.join(SCHEMES)}://")
    suffix = Path(url.partition("?")[0]).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"{shown} is one picture, not a stream: fetch it first (curl -s URL | splitpoint run … -)")

    def connect() -> Capture:
        try:
            return Capture(url, network=True)
        except NotOpenedError as exc:
            raise InputError(f"{shown} gives no video: {_why_no_video(scheme, url)}") from exc

    if scheme in ("http", "https") and suffix in VIDEO_SUFFIXES:
        source = Live(shown, connect, options, download=True)
        if source.count:
            return source
        source.close()
    return Live(shown, connect, options)


def redacted(text: str) -> str:
    """A source as it may be printed: an address without name, password, query and values in its path, a pipeline
    without the properties of its elements.

    >>> redacted("rtsp://admin:p@ss/word@10.0.0.7:554/h264?key=1")
    'rtsp://10.0.0.7:554/h264?…'
    >>> redacted("rtsp://10.0.0.7/user=admin&password=x&channel=1.sdp")
    'rtsp://10.0.0.7/user=…&password=…&channel=…'
    >>> redacted("rtspsrc location=rtsp://admin:pw@cam/1 ! decodebin ! appsink")
    'rtspsrc ! decodebin ! appsink'
    """
    if _PIPELINE.search(text):
        words = (part.split() or ["…"] for part in _PIPELINE.split(text))
        return " ! ".join(w[0] if re.fullmatch(r"[A-Za-z0-9_-]+", w[0]) else "…" for w in words)
    if not (url := _URL.fullmatch(text)):
        return text
    scheme, rest = url.groups()
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority or ":" in authority:  # a password may hold a / or # of its own
        rest = rest.rpartition("@")[2]
    rest, query, _ = rest.partition("?")
    rest = re.sub(r"=[^&/_]*", "=…", rest)
    return HIDDEN.sub("?", f"{scheme}://{rest}{'?…' if query else ''}")


def _why_no_video(scheme: str, url: str) -> str:
    """What is known of a stream that OpenCV could not open: it does not say why."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or SCHEMES[scheme]
    except ValueError:
        host, port = None, 0
    if not host or ("@" in url and parts.username is None):
        return "its address makes no sense (in a name or password write @ as %40, / as %2F, # as %23, : as %3A)"
    if port:
        try:
            socket.create_connection((host, port), timeout=_ASK_S).close()
        except (OSError, UnicodeError) as exc:
            return f"{host}:{port} cannot be reached ({getattr(exc, 'strerror', None) or exc})"
    secret = "" if parts.username else f", and does it want a name and password ({scheme}://NAME:PASSWORD@{host}/…)"
    return f"is its path right{secret}?" if port else f"nothing came within {OPEN_MS / 1e3:g} s"


def _pipeline(text: str, options: Options) -> Source:
    cv2 = opencv()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise UsageError(
            "a GStreamer pipeline needs an OpenCV that was built with GStreamer, which the installed one was not: "
            "wheels from PyPI never are, a system's own (python3-opencv, JetPack's) often is"
        )
    name = redacted(text)

    def connect() -> Capture:
        try:
            return Capture(text, pipeline=True)
        except NotOpenedError as exc:
            last = "" if "appsink" in text else " (it has to end in ! videoconvert ! appsink)"
            raise InputError(f"the pipeline {name} does not start{last}: try it with gst-launch-1.0") from exc

    return Live(name, connect, options, ends=bool(_ENDS.search(text)))
