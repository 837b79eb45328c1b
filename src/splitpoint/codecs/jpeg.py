"""jpeg:QUALITY: the opponent that a cut must beat, a photo as every camera sends it."""

from __future__ import annotations

import io
import struct
from math import ceil, prod

import numpy as np

from splitpoint.codecs import Codec, at_most, checked, dims
from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError
from splitpoint.tensors import Array, TensorSpec

#: libjpeg's own limit for a side.
_LONGEST = 65500
#: Bits a pixel of photos scaled to 224 x 224, by quality, interpolated between these: until a calibration measures.
_QUALITIES = (1, 10, 30, 50, 75, 85, 90, 95, 98, 100)
_BITS = (0.2, 0.4, 0.8, 1.1, 1.5, 2.0, 2.5, 3.6, 5.2, 7.5)
_HEADER = 623
#: The only segments in front of the picture: APP0 (JFIF), DQT, SOF0, DHT, DRI, SOS. Pillow keeps all others it finds,
#: a hundred bytes for each of four, reads Exif, and warns on the server's screen about what is wrong in there.
_SOF0, _SOS = 0xFFC0, 0xFFDA
_SEGMENTS = frozenset({0xFFE0, 0xFFDB, _SOF0, 0xFFC4, 0xFFDD, _SOS})
_LONGEST_HEADER = 2048


class Jpeg(Codec):
    """Baseline JPEG with colour at half the resolution (4:2:0), as Pillow writes it by default."""

    sized = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._quality = int(name.partition(":")[2])

    def accepts(self, spec: TensorSpec) -> bool:
        if spec.dtype != "uint8" or len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] not in (1, 3):
            return False
        h, w = spec.shape[1:3]
        sized = isinstance(h, int) and isinstance(w, int)
        return sized and 1 <= int(h) <= _LONGEST and 1 <= int(w) <= _LONGEST and int(h) * int(w) <= MAX_PIXELS

    def nbytes(self, spec: TensorSpec) -> int:
        bits = float(np.interp(self._quality, _QUALITIES, _BITS))
        colour = 1.0 if spec.shape[3] == 3 else 0.85
        return min(self.most(spec), round(_HEADER + bits * colour * prod(dims(spec)[1:3]) / 8))

    def most(self, spec: TensorSpec) -> int:
        # A coefficient takes 26 bits at most (a code of 16 and 10 bits of its value), and blocks are padded to whole
        # ones. 32 leaves room for the zero byte that follows each 0xFF.
        h, w = (ceil(int(n) / 16) * 16 for n in spec.shape[1:3])
        return h * w * (6 if spec.shape[3] == 3 else 4) + 1024

    def encode(self, array: Array) -> Array:
        from PIL import Image

        picture = checked(self, array)[0]
        data = io.BytesIO()
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        image.save(data, "JPEG", quality=self._quality, subsampling="4:2:0" if image.mode == "RGB" else -1)
        return np.frombuffer(data.getvalue(), np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        # Not Image.open: of all that Pillow reads, a stranger gets this one decoder.
        from PIL.JpegImagePlugin import JpegImageFile

        packed = at_most(data, self, spec)
        try:
            # Before Pillow sees a byte, and before a pixel is allocated.
            height, width, colours = _header(packed, spec)
            if (height, width, colours) != spec.shape[1:]:
                raise InputError(f"{spec} came as a JPEG of {width} x {height} pixels with {colours} colour channels")
            with JpegImageFile(io.BytesIO(packed)) as image:
                image.load()
                return np.asarray(image).reshape(dims(spec))
        except InputError:
            raise
        except Exception as exc:  # Pillow raises nearly anything on broken bytes
            raise InputError(f"{spec} came as a broken or truncated JPEG: {exc}") from exc


def _header(data: bytes, spec: TensorSpec) -> tuple[int, int, int]:
    """Height, width and number of colour channels of a baseline JPEG with one scan; InputError for any other.

    Progressive ones, and those with a scan a channel, are kept whole as coefficients, a multiple of what the spec
    says, and gone over once a scan: a few bytes buy a pass over the picture, and half a million fit what is allowed.
    """
    if data[:2] != b"\xff\xd8":
        raise InputError(f"{spec} came as bytes that are not a JPEG")
    at, size = 2, (0, 0, 0)
    while at < _LONGEST_HEADER:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker not in _SEGMENTS:
            raise InputError(f"{spec} came as a JPEG with segment {marker:04x}: only plain baseline ones are decoded")
        if marker == _SOF0:
            size = struct.unpack_from(">HHB", data, at + 5)
        if marker == _SOS:
            if data[at + 4] != size[2]:
                raise InputError(f"{spec} came as a JPEG of several scans: only plain baseline ones are decoded")
            return size
        at += 2 + length
    raise InputError(f"{spec} came as a JPEG with more than {_LONGEST_HEADER} bytes before its picture")
