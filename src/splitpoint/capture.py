"""Pictures out of OpenCV: what it opens and reads, and what the containers of video files say of their length."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from splitpoint.errors import InputError, MissingExtraError
from splitpoint.files import open_file
from splitpoint.tensors import Array

#: How long a stream may take to open, and then from one frame to the next.
OPEN_MS, READ_MS = 10_000, 10_000
#: How long closing waits for a read that is under way.
_HANGS_S = 1.0


class NotOpenedError(Exception):
    """OpenCV cannot read it, and does not say why."""


class Capture:
    """A `cv2.VideoCapture` that one thread reads and another may close. Its pictures are RGB."""

    def __init__(
        self, name: str | int, *, file: bool = False, network: bool = False, pipeline: bool = False, rate: float = 0.0
    ) -> None:
        self._cv2 = cv2 = opencv()
        self._lock = threading.Lock()
        self.closed = False
        how: tuple[Any, ...] = ()
        if pipeline:
            how = (cv2.CAP_GSTREAMER,)
        elif (file or network) and cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            # It knows a damaged frame and keeps to times; the others print what they think of a file.
            how = (cv2.CAP_FFMPEG,)
            if network:
                how += ([cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS],)
        try:
            str(name).encode()  # OpenCV does not survive a name that is not UTF-8
            self._capture = cv2.VideoCapture(name, *how)
        except (cv2.error, UnicodeError) as exc:
            raise NotOpenedError from exc
        if not self._capture.isOpened():
            self._capture.release()
            raise NotOpenedError
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


def opencv() -> Any:
    """OpenCV, silent: what goes wrong is said here, in one sentence. MissingExtraError if it is not installed."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # A frame of which only the first part is in the file is no frame. RTSP over TCP loses none.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "fflags;discardcorrupt|rtsp_flags;prefer_tcp")
    try:
        import cv2
    except ImportError as exc:
        raise MissingExtraError("OpenCV", "video", "read videos and cameras") from exc
    return cv2


def missing_nbytes(path: Path) -> int:
    """By how many bytes an MP4, MOV, AVI, MKV or WebM file is shorter than it says; 0 for other kinds. InputError."""
    try:
        with open_file(path) as file:
            whole = path.stat().st_size
            head, said = file.read(64), 0
            if head[:4] == b"RIFF":
                said = 8 + int.from_bytes(head[4:8], "little")
            elif head[:4] == _EBML:
                said = _segment_end(head)
            elif head[4:8] in _BOXES:
                said = _boxes_end(file, whole)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    return max(0, said - whole)


def only_guessed(path: Path) -> bool:
    """Whether OpenCV can only guess how many frames there are, and may be far off: MPEG streams and bare frames."""
    with open_file(path) as file:
        head = file.read(8)
    return head.startswith((b"\0\0\1", b"\0\0\0\1", b"\xff\xd8")) or b"G" in (head[:1], head[4:5])


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
