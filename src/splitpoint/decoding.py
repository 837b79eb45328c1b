"""A picture's file → its pixels, 8 bits a channel. What the file leaves open is said, not guessed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from splitpoint.callbacks import call
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.files import open_file
from splitpoint.tensors import Array

if TYPE_CHECKING:
    from PIL import Image

#: Larger images are refused before they are decoded. Pillow's own line (a quarter of a gigabyte as RGB),
#: stated here because Pillow only warns at it.
MAX_PIXELS = 89_478_485

#: The most that a pipe may hold: a photo, not a disk.
MAX_PIPE_NBYTES = 256 << 20
#: What cameras call their raw photos. Pillow would take the small preview inside for the picture.
RAW_SUFFIXES = frozenset(
    {".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".raw", ".3fr"}
)
#: Called with a picture's name and what was made of it where the file leaves a choice, such as ``has several frames:
#: the first is taken``.
OnNote = Callable[[str, str], None]


def silent(name: str, text: str) -> None:
    """Notes are not wanted."""


def open_picture(source: str | Path | bytes, label: str, mode: str, on_note: OnNote) -> tuple[Image.Image, int]:
    """The decoded image, as RGB or L (`mode`) but not yet upright, and its EXIF orientation (1 to 8)."""
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), label, mode, on_note)
    try:
        file = open_file(Path(source))
    except FileNotFoundError as exc:
        raise InputError(f"no such file: {label}") from exc
    except IsADirectoryError as exc:
        raise InputError(f"{label} is a folder, not an image") from exc
    except OSError as exc:
        raise InputError(f"{label} cannot be read: {exc.strerror or exc}") from exc
    with file:
        if file.seekable():
            return _decode(file, label, mode, on_note)
        data = file.read(MAX_PIPE_NBYTES + 1)  # a pipe, such as <(ssh camera cat photo.jpg)
        if len(data) > MAX_PIPE_NBYTES:
            raise InputError(f"{label} holds more than {MAX_PIPE_NBYTES >> 20} MiB: give one image")
        return _decode(io.BytesIO(data), label, mode, on_note)


def _decode(file: BinaryIO, label: str, mode: str, on_note: OnNote) -> tuple[Image.Image, int]:
    from PIL import Image, UnidentifiedImageError

    limit = f"the limit is {MAX_PIXELS // 1_000_000} megapixels: scale it down first"
    head = b""
    try:
        head = file.read(64)
        file.seek(0)
        if head[:3] == _JPEG:
            data = file.read(MAX_PIPE_NBYTES)  # more than its pixels can need
            _check_scans(data, label)
            file = io.BytesIO(data)
        heif = _open_heif(file, label) if _iso_brand(head) == "heif" else None
        image = Image.open(file) if heif is None else heif
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(f"{label} is too large, {width} x {height} pixels; {limit}")
        if heif is not None:
            return _to_8bit(heif.to_pillow(), label, mode, on_note), 1
        if image.format == "EPS":  # Pillow would start Ghostscript on it
            raise InputError(f"{label} is PostScript, a program that would have to be run: convert it to PNG")
        is_dng = _DNG_VERSION in getattr(image, "tag_v2", {})
        if image.format == "TIFF" and (is_dng or Path(label).suffix.lower() in RAW_SUFFIXES):
            raise InputError(f"{label} is a raw photo, and only its preview could be read: develop it to JPEG or TIFF")
        if image.format in _SEQUENCES and getattr(image, "is_animated", False):
            call(on_note, label, "has several frames or pages: the first is taken")
        image.load()
        return _to_8bit(image, label, mode, on_note), _orientation(image)
    except (InputError, MissingExtraError):
        raise
    except UnidentifiedImageError as exc:
        raise InputError(f"{label} {_unreadable(head)}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InputError(f"{label} is too large; {limit}") from exc
    except Exception as exc:  # plug-ins raise nearly anything on broken bytes
        raise InputError(f"{label} is a broken or truncated image: {exc}") from exc


_JPEG = b"\xff\xd8\xff"
#: Scans that a JPEG may have: encoders write 10 to 18, and each is a pass over all of the picture.
_MOST_SCANS = 50
#: Segments of it: a colour profile or an XMP packet of a megabyte has 16.
_MOST_SEGMENTS = 4096
#: The next marker among a scan's bytes, in which 0xFF is followed by 0, and by the marks where a decoder may resume.
_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd8-\xfe]")
_SOS, _EOI = 0xDA, 0xD9
#: Frames of one scan, if that has all of their colours: what follows it is not read. (ITU-T T.81, table B.1.)
_SEQUENTIAL = (0xC0, 0xC1)


def _check_scans(data: bytes, label: str) -> None:
    """InputError for a JPEG that costs much more than its pixels: with hundreds of scans, a few bytes each."""
    at, scans, segments, colours = 2, 0, 0, -1
    while (match := _MARKER.search(data, at)) is not None and match.end() + 8 <= len(data):
        at, marker = match.end(), data[match.end() - 1]
        if marker == _EOI or (marker == _SOS and data[at + 2] == colours):
            return
        segments += 1
        scans += marker == _SOS
        if scans > _MOST_SCANS or segments > _MOST_SEGMENTS:
            what = f"{_MOST_SCANS} scans" if scans > _MOST_SCANS else f"{_MOST_SEGMENTS} segments"
            raise InputError(f"{label} is a JPEG of more than {what}: save it anew, without progressive coding")
        if marker in _SEQUENTIAL:
            colours = data[at + 7]
        at += int.from_bytes(data[at : at + 2], "big")


#: Formats of which a file may hold several pictures that are meant to be seen: a phone's MPO is a photo and its depth.
_SEQUENCES = frozenset({"GIF", "TIFF", "WEBP", "PNG", "AVIF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def _iso_brand(head: bytes) -> str:
    """Which ISO media file this is, by its first box: ``heif``, ``avif``, ``other``, or ``""`` if it is none."""
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    if {b"avif", b"avis"} & {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}:
        return "avif"
    return "heif" if head[8:12] in _HEIF_BRANDS else "other"


def _open_heif(file: BinaryIO, label: str) -> Any:
    """A HEIC file whose main picture is upright: libheif turns it itself, whatever its EXIF says beside that."""
    try:
        import pi_heif
    except ImportError as exc:
        raise MissingExtraError("pi-heif", "heif", f"read {label} (a HEIC photo)") from exc
    return pi_heif.open_heif(file)


def _unreadable(head: bytes) -> str:
    """What a file is that Pillow does not know, by its first bytes, and what to do."""
    if head[:4] in (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00"):
        return "is what macOS keeps beside a file (AppleDouble), not a picture: give the file without the ._"
    if _iso_brand(head) == "avif":
        return "is an AVIF picture, which this Pillow cannot read: install Pillow 11.3 or newer, or convert it to JPEG"
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return "is a JPEG XL picture, which Pillow cannot read: convert it to JPEG or PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a TIFF of a kind that Pillow cannot read (floating-point RGB is one): save it with 8 or 16 bits"
    if _iso_brand(head) or head[:4] == b"\x1a\x45\xdf\xa3" or head[8:12] == b"AVI ":
        return "is a video, not an image: give it with --source"
    return "is not an image that Pillow can read"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # broken metadata beside good pixels: take the pixels as they lie
        return 1
    return value if value in range(1, 9) else 1


def _to_8bit(image: Image.Image, label: str, mode: str, on_note: OnNote) -> Image.Image:
    """The same pixels in `mode`, RGB or L."""
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        image = Image.fromarray(_narrow(image, label, on_note))
    elif _first(getattr(image, "tag_v2", {}), _SAMPLE_FORMAT, _UNSIGNED) == _SIGNED:
        raise InputError(  # Pillow reads them as unsigned ones: -1 would be white
            f"{label} is a TIFF of signed 8-bit integers, which Pillow cannot read: save it with 8 bits unsigned"
        )
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return image if image.mode == mode else image.convert(mode)


# TIFF 6.0, and Adobe's DNG.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _DNG_VERSION = 258, 262, 339, 50706
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
#: What white may be where the file does not say it, by kind of number. By their values alone 12 bits in 32 cannot be
#: told from a dark picture of 16, so a range of which less than a sixteenth is used is not guessed.
_WHITES: Mapping[str, tuple[int, ...]] = {
    "floating point": (1, 255, 65535),
    "32-bit integers": (255, 65535, 2**32 - 1),
    "signed 32-bit integers": (255, 65535, 2**31 - 1),
    "signed 16-bit integers": (255, 2**15 - 1),
}
_LEAST_USED = 1 / 16


def _narrow(image: Image.Image, label: str, on_note: OnNote) -> Array:
    """uint8 ``[height, width]`` of a grey image with more bits."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if values.dtype == np.int32 and _first(tags, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        values = values.view(np.uint32)  # which Pillow has no mode for
    bits = _first(tags, _BITS, 16)
    if image.mode == "F":
        white = _white(values, "floating point", label, on_note)
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):
        signed = "signed " * (values.dtype == np.int32)
        white = _white(values, f"{signed}{16 if signed and bits == 16 else 32}-bit integers", label, on_note)
    else:  # PNG and PGM: Pillow has scaled it to 16 bits
        white = (1 << min(16, bits)) - 1
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # not all of a large picture as float64 at a time
        rows = values[top : top + 256].astype(np.float64)
        grey[top : top + 256] = np.rint(rows.clip(0, white) * (255 / white))
    return 255 - grey if _first(tags, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO else grey


def _white(values: Array, kind: str, label: str, on_note: OnNote) -> int:
    """Which value is white; InputError where that would be a guess."""
    low, high = float(values.min()), float(values.max())
    slack = 0.01 if values.dtype.kind == "f" else 0.0  # resampling overshoots
    whites = _WHITES[kind]
    white = next((w for w in whites if high <= w * (1 + slack)), None)
    if white is None or not low >= -white * slack or (white != whites[0] and high < white * _LEAST_USED):
        raise InputError(
            f"{label} is of {kind} from {low:g} to {high:g}, and nothing says which of them is white: scale them to "
            f"0…{whites[0]}, or save it with 8 or 16 bits"
        )
    call(on_note, label, f"is of {kind}: 0 is taken as black and {white} as white")
    return white


def _first(tags: Mapping[int, Any], tag: int, default: int) -> int:
    """The first value of a TIFF tag."""
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
