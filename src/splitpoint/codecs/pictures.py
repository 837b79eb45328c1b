"""The pictures that a cut must beat: a photo as cameras send it (jpeg, jpeg444), and as others would (`OPPONENTS`)."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np

from splitpoint.codecs import CODECS, Codec, at_most, checked, dims
from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError
from splitpoint.tensors import Array, TensorSpec

#: libjpeg's own limit for a side, and those of the others.
_LONGEST = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535, "PNG": 65500}
#: Bits a pixel of photos scaled to 224 x 224 as JPEG 4:2:0, by quality, interpolated between these: until a calibration
#: measures. Lossless ones take about `_LOSSLESS`.
_QUALITIES = (1, 10, 30, 50, 75, 85, 90, 95, 98, 100)
_BITS = (0.2, 0.4, 0.8, 1.1, 1.5, 2.0, 2.5, 3.6, 5.2, 7.5)
_LOSSLESS = 12.0
_HEADER = 623
#: The only segments in front of the picture: APP0 (JFIF), DQT, SOF0, DHT, DRI, SOS. Pillow keeps all others it finds,
#: a hundred bytes for each of four, reads Exif, and warns on the server's screen about what is wrong in there.
_SOF0, _SOS = 0xFFC0, 0xFFDA
_SEGMENTS = frozenset({0xFFE0, 0xFFDB, _SOF0, 0xFFC4, 0xFFDD, _SOS})
_LONGEST_HEADER = 2048

#: Kind, without a resolution → Pillow's format and what its encoder is told.
_FORMATS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "jpeg": ("JPEG", {"subsampling": "4:2:0"}),
    "jpeg444": ("JPEG", {"subsampling": "4:4:4"}),
    "webp": ("WEBP", {}),
    "avif": ("AVIF", {"subsampling": "4:4:4"}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "png": ("PNG", {}),
}


class Picture(Codec):
    """A picture of one of Pillow's formats. With ``@50`` its sides are halved before it is encoded (Lanczos) and the
    decoded picture is enlarged again (bicubic)."""

    sized = False

    def __init__(self, name: str) -> None:
        self.name = name
        kind, _, quality = name.partition(":")
        kind, _, percent = kind.partition("@")
        self._format, options = _FORMATS[kind]
        self._percent = int(percent or 100)
        self._quality = int(quality or 100)
        self._options = {**options, "quality": self._quality} if quality else options
        self.exact = not quality
        #: Whether strangers may send it: then it is decoded by the strict way alone.
        self._sent = name.partition(":")[0] in CODECS

    def accepts(self, spec: TensorSpec) -> bool:
        if spec.dtype != "uint8" or len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] not in (1, 3):
            return False
        (h, w), longest = spec.shape[1:3], _LONGEST[self._format]
        sized = isinstance(h, int) and isinstance(w, int)
        fits = sized and 1 <= int(h) <= longest and 1 <= int(w) <= longest and int(h) * int(w) <= MAX_PIXELS
        return fits and (self._sent or self._known())

    def _known(self) -> bool:
        """Whether this Pillow has the format: AVIF came with 11.3, and neither it nor WebP need be built in."""
        from PIL import features

        return self._format in ("JPEG", "PNG") or bool(features.check(self._format.lower()))

    def nbytes(self, spec: TensorSpec) -> int:
        bits = _LOSSLESS if self.exact else float(np.interp(self._quality, _QUALITIES, _BITS))
        full = 1.22 if self._options.get("subsampling") == "4:4:4" else 1.0
        colour = full if spec.shape[3] == 3 else 0.85
        return min(self.most(spec), round(_HEADER + bits * colour * prod(self._sides(spec)) / 8))

    def most(self, spec: TensorSpec) -> int:
        # A coefficient takes 26 bits at most (a code of 16 and 10 bits of its value), and blocks are padded to whole
        # ones. 32 leaves room for the zero byte that follows each 0xFF. With all of the colour there is twice as much.
        h, w = (ceil(int(n) / 16) * 16 for n in self._sides(spec))
        whole = self._options.get("subsampling") != "4:2:0"
        return h * w * (4 if spec.shape[3] == 1 else 12 if whole else 6) + 1024

    def _sides(self, spec: TensorSpec) -> tuple[int, ...]:
        """Height and width of the picture that is encoded."""
        return tuple(ceil(n * self._percent / 100) for n in dims(spec)[1:3])

    def encode(self, array: Array) -> Array:
        from PIL import Image

        picture = checked(self, array)[0]
        data = io.BytesIO()
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        if self._percent != 100:
            h, w = self._sides(TensorSpec("", "uint8", array.shape))
            image = image.resize((w, h), Image.Resampling.LANCZOS)
        grey = {"subsampling": -1} if image.mode == "L" and self._format == "JPEG" else {}
        image.save(data, self._format, **{**self._options, **grey})
        return np.frombuffer(data.getvalue(), np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        packed = at_most(data, self, spec)
        if not self._sent:
            return self._own(packed, spec)
        # Not Image.open: of all that Pillow reads, a stranger gets this one decoder.
        from PIL.JpegImagePlugin import JpegImageFile

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

    def _own(self, packed: bytes, spec: TensorSpec) -> Array:
        """An opponent's picture, which this process has encoded: no other bytes come here (`open_codec`)."""
        from PIL import Image

        _, height, width, colours = dims(spec)
        with Image.open(io.BytesIO(packed), formats=[self._format]) as image:
            decoded: Image.Image = image.convert("L" if colours == 1 else "RGB")
        if decoded.size != (width, height):
            decoded = decoded.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(decoded).reshape(dims(spec))


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
