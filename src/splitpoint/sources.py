"""Where a stream's frames come from: a folder, a video file, a camera.

    source = open_source("walk.mp4")
    for frame in source:
        edge.infer(frame.inputs(edge.model))

Videos and cameras are read with OpenCV, which is an extra and imported when one is opened.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from splitpoint.errors import InputError, MissingExtraError
from splitpoint.inputs import expand, read_frame, read_inputs
from splitpoint.models.model import Model
from splitpoint.tensors import Array
from splitpoint.trace import Clock, Span
from splitpoint.units import counted, size

#: What is taken for a video by its name.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".mjpg"}
)
_VIDEO = "/dev/video"
_DEVICE = re.compile(_VIDEO + r"\d+")
_CAMERA = re.compile(r"camera:(\d{1,3})")
_LINUX = sys.platform == "linux"
#: Frames of a video that must be readable, as a share of those that OpenCV expects.
_ENOUGH = 0.9
#: How long closing waits for a read that is under way.
_HANGS_S = 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """One input of a stream: a file, or the `pixels` of a picture (uint8 [height, width, 3], RGB).

    `captured_s` is when a camera gave it, seconds on the clock of `spans`; 0 where nobody waits for it. `spans` are
    what was done for it already.
    """

    name: str
    path: Path | None = None
    pixels: Array | None = None
    captured_s: float = 0.0
    spans: tuple[Span, ...] = ()

    def inputs(self, model: Model) -> dict[str, Array]:
        """The model's inputs; InputError if they cannot be made of it."""
        if self.pixels is not None:
            return read_frame(model, self.pixels, self.name)
        assert self.path is not None
        return read_inputs(model, self.path)


class Source(Protocol):
    """Frames, once, in order. One that is `live` goes on whether or not anybody takes them."""

    @property
    def name(self) -> str:
        """What it is, in words."""
        ...

    @property
    def live(self) -> bool:
        """Whether frames that nobody takes are lost."""
        ...

    @property
    def rate(self) -> float:
        """How many frames a second come by themselves; 0 if none do, or it is not known."""
        ...

    @property
    def count(self) -> int | None:
        """How many there will be; None if that is not known."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The frames. InputError in place of one that cannot be read, after those before it."""
        ...

    def close(self) -> None:
        """Lets go of the file or the camera, when nobody reads it any more."""
        ...


def is_stream(text: str) -> bool:
    """Whether `text` is a folder, a video or a camera: what is streamed, not run one by one."""
    return bool(_CAMERA.fullmatch(text) or _DEVICE.fullmatch(text)) or (
        Path(text).suffix.lower() in VIDEO_SUFFIXES or Path(text).is_dir()
    )


def open_source(text: str, *, rate: float = 0.0, clock: Clock = time.perf_counter) -> Source:
    """The source that `text` names: a folder, a video file, ``/dev/video0`` or ``camera:0``.

    A camera is asked for `rate` frames a second, if that is not 0. InputError if it is not there or cannot be read,
    MissingExtraError if OpenCV is needed and not installed.
    """
    found = _CAMERA.fullmatch(text)
    if found or _DEVICE.fullmatch(text):
        return Camera(f"{_VIDEO}{int(found[1])}" if found else text, rate=rate, clock=clock)
    path = Path(text)
    if not path.exists():
        camera = " (a camera is camera:0 or /dev/video0)" if text.startswith(("camera", _VIDEO)) else ""
        raise InputError(f"no such file or folder: {text}{camera}")
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        return Video(path, clock=clock)
    return Files((path,), name=str(path))


class Files:
    """Files as they are, folders as what is in them, sorted by name."""

    live, rate = False, 0.0

    def __init__(self, paths: Sequence[Path], name: str = "") -> None:
        self.paths = tuple(expand(list(paths)))
        self.name = name or ", ".join(str(p) for p in paths)

    @property
    def count(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            yield Frame(str(path), path)

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """A video file. One that ends in the middle is an error, behind the last frame that is whole."""

    live, rate = False, 0.0

    def __init__(self, path: Path, *, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.name = str(path)
        self._missing = missing_nbytes(path)
        try:
            self._capture = _Capture(path)
        except _NotOpenedError as exc:
            why = f": it ends {size(self._missing)} too early" if self._missing else ""
            raise InputError(f"{path} is not a video that OpenCV can read{why}") from exc
        self.count = self._capture.count

    def __iter__(self) -> Iterator[Frame]:
        made = 0
        while True:
            began = self._clock()
            pixels = self._capture.read()
            if pixels is None:
                break
            made += 1
            yield Frame(f"frame {made}", pixels=pixels, spans=(Span("prepare", began, self._clock()),))
        if not self._capture.closed and self._ends_early(made):
            raise InputError(f"{self.name} ends in the middle: only its first {counted(made, 'frame')} could be read")

    def _ends_early(self, made: int) -> bool:
        """Whether there should be more: the file is shorter than it says, or many frames are missing.

        Where a container does not say how many there are, OpenCV guesses from its duration: a few are not missed.
        """
        count = self.count or made + 1
        return made < count if self._missing else not made or made < (self.count or 0) * _ENOUGH

    def close(self) -> None:
        self._capture.close()


class Camera:
    """A camera, read for as long as it is asked. It does not wait: whoever is slow gets what its driver has kept."""

    live, count = True, None

    def __init__(self, device: str, *, rate: float = 0.0, clock: Clock = time.perf_counter) -> None:
        self.name, self._clock = device, clock
        # Asked first: OpenCV would say the same in ten lines.
        if _LINUX and not Path(device).exists():
            there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
            raise InputError(f"there is no camera at {device} (cameras here: {there})")
        try:
            self._capture = _Capture(device if _LINUX else int(device.removeprefix(_VIDEO)), rate=rate)
        except _NotOpenedError as exc:
            raise InputError(
                f"{device} cannot be opened as a camera: another program may have it, or you may not use it "
                "(are you in the group video?)"
            ) from exc
        self.rate = self._capture.rate

    def __iter__(self) -> Iterator[Frame]:
        made = 0
        while (pixels := self._capture.read()) is not None:
            made += 1
            yield Frame(f"frame {made}", pixels=pixels, captured_s=self._clock())
        if not self._capture.closed:
            raise InputError(f"{self.name} gives no more frames (after {made}): is it still plugged in?")

    def close(self) -> None:
        self._capture.close()


# --- OpenCV -----------------------------------------------------------------------------------------------------------


class _NotOpenedError(Exception):
    """OpenCV cannot read it, and does not say why."""


class _Capture:
    """A `cv2.VideoCapture` that one thread reads and another may close. Its pictures are RGB."""

    def __init__(self, name: str | int | Path, *, rate: float = 0.0) -> None:
        self._cv2 = cv2 = _opencv()
        self._lock = threading.Lock()
        self.closed = False
        try:
            self._capture = (
                cv2.VideoCapture(str(name), _backend(cv2)) if isinstance(name, Path) else cv2.VideoCapture(name)
            )
        except cv2.error as exc:
            raise _NotOpenedError from exc
        if not self._capture.isOpened():
            self._capture.release()
            raise _NotOpenedError
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if rate:
            self._capture.set(cv2.CAP_PROP_FPS, rate)

    @property
    def rate(self) -> float:
        """Frames a second; 0 if it does not say."""
        rate = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return rate if 0 < rate < 1e4 else 0.0

    @property
    def count(self) -> int | None:
        """How many frames its header promises, or OpenCV guesses; None if neither."""
        count = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    def read(self) -> Array | None:
        """The next picture; None if there is none."""
        with self._lock:
            if self.closed:
                return None
            try:
                there, pixels = self._capture.read()
                return self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB) if there else None
            except self._cv2.error:
                return None

    def close(self) -> None:
        """Lets go of it, unless a read hangs: OpenCV does not survive being closed under one."""
        self.closed = True
        if self._lock.acquire(timeout=_HANGS_S):
            try:
                self._capture.release()
            finally:
                self._lock.release()


def _backend(cv2: Any) -> int:
    """FFmpeg where OpenCV has it: it knows a damaged frame, and the others print what they think of a file."""
    has = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    return int(cv2.CAP_FFMPEG if has else cv2.CAP_ANY)


def _opencv() -> Any:
    """OpenCV, silent: what goes wrong is said here, in one sentence. MissingExtraError if it is not installed."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # A frame of which only the first part is in the file is no frame.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "fflags;discardcorrupt")
    try:
        import cv2
    except ImportError as exc:
        raise MissingExtraError("OpenCV", "video", "read videos and cameras") from exc
    return cv2


# --- containers -------------------------------------------------------------------------------------------------------


def missing_nbytes(path: Path) -> int:
    """By how many bytes a video file is shorter than it says; 0 for kinds that do not say it.

    They are MP4 and MOV, AVI, MKV and WebM. InputError if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            whole = path.stat().st_size
            head = file.read(64)
            if head[:4] == b"RIFF":
                said = 8 + int.from_bytes(head[4:8], "little")
            elif head[:4] == _EBML:
                said = _segment_end(head)
            elif head[4:8] in _BOXES:
                said = _boxes_end(file, whole)
            else:
                said = 0
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    return max(0, said - whole)


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _segment_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends (RFC 9559), which follows the EBML header; 0 if it does not say."""
    size, at = _number(head, 4)
    at += size
    if head[at : at + 4] != _SEGMENT:
        return 0
    size, at = _number(head, at + 4)
    return at + size if size else 0


def _number(head: bytes, at: int) -> tuple[int, int]:
    """(an EBML number, 0 if it is not known, where it ends): leading zero bits tell its bytes (RFC 8794, 4)."""
    length = 9 - head[at].bit_length() if head[at:] and head[at] else 1
    bits = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (0 if bits == (1 << 7 * length) - 1 else bits), at + length


def _boxes_end(file: BinaryIO, whole: int) -> int:
    """Where the last box of an MP4 file ends, by what the boxes say of themselves (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < whole:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return at + 8
        nbytes = int.from_bytes(head[:4], "big")
        if nbytes == 1:  # the size did not fit
            nbytes = int.from_bytes(head[8:16], "big")
        elif nbytes == 0:  # to the end of the file
            return whole
        if nbytes < 8:  # not a box: for OpenCV to judge
            return whole
        at += nbytes
    return at
