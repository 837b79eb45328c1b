"""Cameras of a network, on loopback: motion JPEG over HTTP, H.264 over RTSP. Each frame says which one it is."""

from __future__ import annotations

import base64
import io
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from splitpoint.tensors import Array

SIDE = 96


def grey(k: int) -> int:
    """How bright frame `k` is."""
    return 40 + 8 * (k % 20)


def frame_of(pixels: Array) -> int:
    """Which of the first twenty frames it is."""
    return min(range(20), key=lambda k: abs(grey(k) - float(pixels.mean())))


# --- H.264 ------------------------------------------------------------------------------------------------------------


class Bits:
    """A bit string as H.264 writes it (ITU-T H.264, 7.2 and 9.1)."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, length: int, value: int) -> Bits:
        self.text += f"{value:0{length}b}"
        return self

    def ue(self, *values: int) -> Bits:
        for value in values:
            self.text += f"{value + 1:0{2 * (value + 1).bit_length() - 1}b}"
        return self

    def unit(self, head: int, end: bytes = b"") -> bytes:
        """A NAL unit, with emulation prevention."""
        whole = self.text + ("" if end else "1")
        whole += "0" * (-len(whole) % 8)
        data = bytes(int(whole[at : at + 8], 2) for at in range(0, len(whole), 8)) + end
        return bytes([head]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", data)


def parameter_sets() -> tuple[bytes, bytes]:
    """SPS (baseline profile, SIDE x SIDE) and PPS."""
    blocks = SIDE // 16
    sps = Bits().u(8, 66).u(8, 0).u(8, 30).ue(0, 0, 2, 0).u(1, 0).ue(blocks - 1, blocks - 1)
    sps.u(1, 1).u(1, 1).u(1, 0).u(1, 0)  # frames only, direct 8x8, no cropping, no VUI
    pps = Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(1, 0).u(1, 0).u(1, 0)
    return sps.unit(0x67), pps.unit(0x68)


def picture(k: int) -> bytes:
    """Frame `k` as an IDR slice: every macroblock is written out (I_PCM), which needs no encoder."""
    slice_ = Bits().ue(0, 7, 0).u(4, 0).ue(k % 2).u(1, 0).u(1, 0).ue(0)  # first block, I, PPS, frame, IDR, no marks, QP
    block = bytes([round(16 + grey(k) * 219 / 255)]) * 256 + bytes([128]) * 128
    for _ in range((SIDE // 16) ** 2):
        slice_.ue(25)
        slice_.text += "0" * (-len(slice_.text) % 8)
        slice_.text += "".join(f"{byte:08b}" for byte in block)
    return slice_.unit(0x65, b"\x80")


def h264(frames: int) -> bytes:
    """A raw stream, as a recorder writes it to x.h264."""
    start = b"\0\0\0\1"
    return start + start.join([*parameter_sets(), *(picture(k) for k in range(frames))])


# --- servers ----------------------------------------------------------------------------------------------------------


@dataclass
class Camera:
    """What a camera on the network does: `per_connection` frames to whoever connects, and then it hangs up.

    Or says nothing any more, if it `hangs`. It refuses everyone while it is `off`. `asked` are the requests so far.
    """

    per_connection: int = 10_000
    hangs: bool = False
    off: bool = False
    asked: list[str] = field(default_factory=list)
    #: What is left of it when a test is over: set to end what is under way.
    ended: threading.Event = field(default_factory=threading.Event)


def jpeg(k: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), grey(k), np.uint8)).save(data, "JPEG", quality=95)
    return data.getvalue()


@contextmanager
def mjpeg(camera: Camera, period_s: float = 0.02) -> Iterator[str]:
    """The address of a camera that sends motion JPEG (multipart/x-mixed-replace)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            camera.asked.append(self.path)
            if camera.off:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the reader has gone
                for k in range(camera.per_connection):
                    data = jpeg(k)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
                    if camera.ended.wait(period_s):
                        return
                if camera.hangs:
                    camera.ended.wait()

        def log_message(self, *_: object) -> None:
            """Not on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        camera.ended.set()
        server.shutdown()
        server.server_close()  # waits for its connections
        thread.join()


@contextmanager
def rtsp(camera: Camera, period_s: float = 0.02) -> Iterator[str]:
    """The address of a camera that sends H.264 by RTSP (RFC 2326), RTP in the same TCP connection (RFC 6184)."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=_rtsp, args=(connection, camera, period_s)))
                threads[-1].start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/stream"
    finally:
        camera.ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for other in threads:
            other.join()


def _rtsp(connection: socket.socket, camera: Camera, period_s: float) -> None:
    sps, pps = (base64.b64encode(unit).decode() for unit in parameter_sets())
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
        f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1; sprop-parameter-sets={sps},{pps}\r\n"
        "a=control:track\r\n"
    )
    with connection, suppress(OSError):
        connection.settimeout(5)
        file = connection.makefile("rb")
        while request := file.readline().decode():
            headers = {}
            while line := file.readline().decode().strip():
                key, _, value = line.partition(":")
                headers[key.lower()] = value.strip()
            method = request.split()[0]
            camera.asked.append(f"{request.strip()} {headers.get('authorization', '')}".strip())
            more, body = "", ""
            if method == "OPTIONS":
                more = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                more, body = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n", sdp
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            elif method == "PLAY":
                more = "Session: 1\r\n"
            status = "503 Service Unavailable" if camera.off else "200 OK"
            connection.sendall(f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', 0)}\r\n{more}\r\n{body}".encode())
            if method == "PLAY":
                _play(connection, camera, period_s)
                return


def _play(connection: socket.socket, camera: Camera, period_s: float) -> None:
    sequence = 0
    for k in range(camera.per_connection):
        for unit in (*parameter_sets(), picture(k)):
            last = unit[0] == 0x65
            packet = struct.pack(">BBHII", 0x80, 96 | 0x80 * last, sequence & 0xFFFF, k * 3600, 1) + unit
            connection.sendall(struct.pack(">BBH", ord("$"), 0, len(packet)) + packet)
            sequence += 1
        if camera.ended.wait(period_s):
            return
    if camera.hangs:
        camera.ended.wait()
