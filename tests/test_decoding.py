"""Files of pictures: every pixel format, which way up, and bombs."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import RAMP, encoded, picture, spec, tiff
from PIL import Image, ImageOps
from places import SUPPORT

from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.images import (
    read_image,
)
from splitpoint.tensors import Array


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["stretch", "shortest", "letterbox"])
def test_exif_orientation_is_honoured(orientation: int, mode: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    picture().save(path, exif=exif)
    rule = spec(mode=mode)
    with Image.open(path) as stored:
        upright = ImageOps.exif_transpose(stored)
    got = read_image(path, rule).astype(int)
    want = read_image(encoded(upright), rule).astype(int)  # the PNG written here has no orientation left
    assert np.abs(got - want).max() <= 2
    if orientation > 1:
        assert np.abs(got - read_image(encoded(picture()), rule).astype(int)).max() > 20


def test_a_nonsense_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    got = read_image(encoded(picture(), "JPEG", exif=exif, quality=95), spec())
    np.testing.assert_array_equal(got, read_image(encoded(picture(), "JPEG", quality=95), spec()))


# --- pixels -------------------------------------------------------------------------------------------------


def solid(mode: str, value: object) -> bytes:
    image = Image.new(mode, (50, 40), value)  # type: ignore[arg-type]
    return encoded(image, "TIFF" if mode in ("CMYK", "LAB") else "PNG")


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (80, 255), (80, 80, 80)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),  # fully transparent: the white behind it
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_every_pixel_format_becomes_rgb(mode: str, value: object, rgb: tuple[int, ...]) -> None:
    got = read_image(solid(mode, value), spec())
    assert np.abs(got.reshape(-1, 3).astype(int) - rgb).max() <= 1


def test_palette_with_and_without_transparency() -> None:
    image = picture().quantize(16)
    want = np.asarray(image.convert("RGB").resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(encoded(image), spec())[0], want)
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([200, 0, 0])
    assert (read_image(encoded(clear, transparency=0), spec()) == 255).all()
    assert (read_image(encoded(clear), spec()) == (200, 0, 0)).all()


# --- broken files -------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(InputError, match=r"bomb\.png is too large.*89 megapixels"):
        read_image(path, spec())


def test_just_above_the_limit_is_refused_even_where_pillow_only_warns(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(10_000, 8_950))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match=r"large\.png is too large"),
    ):
        read_image(path, spec())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_named(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"half.{format.lower()}"
    whole = encoded(picture(), format)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"half\.{format.lower()} is (a broken|not an image)"):
        read_image(path, spec())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on corrupt EXIF; whatever else it raises must be ours
def test_damaged_files_never_escape_the_error_tree() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        whole = bytearray(encoded(picture(40, 30), format))
        for _ in range(40):
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(damaged), 200), 4):
                damaged[at] = rng.integers(0, 256)
            try:
                outcomes.add(read_image(bytes(damaged), spec()).shape)
            except InputError:
                outcomes.add("refused")
    assert outcomes == {(1, 32, 48, 3), "refused"}


def test_files_that_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("this is not a picture")
    with pytest.raises(InputError, match=r"notes\.jpg is not an image that Pillow can read"):
        read_image(text, spec())
    with pytest.raises(InputError, match=r"no such file: .*gone\.png"):
        read_image(tmp_path / "gone.png", spec())
    with pytest.raises(InputError, match="is a folder, not an image"):
        read_image(str(tmp_path), spec())
    with pytest.raises(InputError, match="image is not an image"):
        read_image(b"", spec())
    with pytest.raises(InputError, match="cannot be read"):
        read_image("a\0b.png", spec())
    with pytest.raises(InputError, match="PostScript"):
        read_image(encoded(picture(), "EPS"), spec())
    with pytest.raises(InputError, match="give it with --source"):
        read_image(b"\0\0\0\x18ftypisom" + bytes(64), spec())
    with pytest.raises(InputError, match=r"AppleDouble.* give the file without the \._"):
        read_image(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(64), spec())
    with pytest.raises(InputError, match="JPEG XL"):
        read_image(b"\xff\x0a" + bytes(64), spec())
    raw = encoded(picture(), "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    with pytest.raises(InputError, match="image is a raw photo, and only its preview"):
        read_image(raw, spec())
    (tmp_path / "a.nef").write_bytes(encoded(picture(), "TIFF"))
    with pytest.raises(InputError, match=r"a\.nef is a raw photo"):
        read_image(tmp_path / "a.nef", spec())


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photo")
    writer = threading.Thread(target=(tmp_path / "photo").write_bytes, args=(encoded(picture()),))
    writer.start()
    got = read_image(tmp_path / "photo", spec())
    writer.join()
    np.testing.assert_array_equal(got, read_image(encoded(picture()), spec()))


@pytest.mark.parametrize(
    ("values", "sample_format", "note"),
    [
        ((RAMP * 65535).astype(np.uint16), 1, None),
        (RAMP.astype(np.float32), 3, "floating point: 0 is taken as black and 1 as white"),
        ((RAMP * 1.005).astype(np.float32), 3, "1 as white"),  # resampling overshoots
        ((RAMP * 255).astype(np.float32), 3, "255 as white"),
        ((RAMP * 65535).astype(np.float32), 3, "65535 as white"),
        ((RAMP * 255).round().astype(np.uint32), 1, "32-bit integers: 0 is taken as black and 255 as white"),
        ((RAMP * 65535).astype(np.uint32), 1, "65535 as white"),
        ((RAMP * (2**32 - 1)).astype(np.uint32), 1, "4294967295 as white"),
        (
            (RAMP * (2**31 - 1)).astype(np.int32),
            2,
            "signed 32-bit integers: 0 is taken as black and 2147483647 as white",
        ),
        ((RAMP * 255).round().astype(np.int16), 2, "255 as white"),
        ((RAMP * 32767).astype(np.int16), 2, "signed 16-bit integers: 0 is taken as black and 32767 as white"),
    ],
)
def test_wide_grey_keeps_its_brightness(values: Array, sample_format: int, note: str | None) -> None:
    notes: list[tuple[str, str]] = []
    got = read_image(
        tiff(values, sample_format), spec(size=(4, 64)), name="x.tif", on_note=lambda *said: notes.append(said)
    )
    assert np.abs(got[0, :, :, 0].astype(int) - np.rint(RAMP * 255)).max() <= 2
    assert len(notes) == (note is not None)
    assert not note or (notes[0][0] == "x.tif" and note in notes[0][1])


@pytest.mark.parametrize(
    ("values", "sample_format"),
    [
        (np.full((4, 4), np.nan, np.float32), 3),
        (np.full((4, 4), np.inf, np.float32), 3),
        (RAMP.astype(np.float32) * 2 - 1, 3),
        (RAMP.astype(np.float32) * 6, 3),  # a bright picture of 0 to 1, or a black one of 0 to 255?
        (RAMP.astype(np.float32) * 1e6, 3),
        ((RAMP * 1023).astype(np.uint32), 1),
        ((RAMP * 1e6).astype(np.uint32), 1),
        (-(RAMP * 100).astype(np.int32), 2),
    ],
)
def test_a_white_that_would_be_guessed_is_an_error(values: Array, sample_format: int) -> None:
    with pytest.raises(InputError, match=r"image is of .* nothing says which of them is white: scale"):
        read_image(tiff(values, sample_format), spec())


def test_signed_bytes_are_not_read_as_unsigned_ones() -> None:
    with pytest.raises(InputError, match=r"image is a TIFF of signed 8-bit integers, .*: save it with 8 bits unsigned"):
        read_image(tiff((RAMP * 255 - 128).astype(np.int8), 2), spec())


def test_white_may_be_zero_and_dark_16_bit_pictures_stay_dark() -> None:
    values = (RAMP * 65535).astype(np.uint16)
    plain = read_image(tiff(values, 1), spec()).astype(int)
    np.testing.assert_array_equal(read_image(tiff(values, 1, white_is_zero=True), spec()), 255 - plain)
    dark = (RAMP * 200).astype(np.uint16)
    assert read_image(tiff(dark, 1), spec()).max() <= 1
    assert read_image(encoded(Image.fromarray(dark)), spec()).max() <= 1, "PNG"
    pgm = b"P5 64 4 65535\n" + dark.astype(">u2").tobytes()
    assert read_image(pgm, spec()).max() <= 1
    pgm = b"P5 64 4 1023\n" + (RAMP * 1023).astype(">u2").tobytes()
    assert read_image(pgm, spec()).max() >= 254, "a PGM says what its white is"


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_of_several_pictures_the_first_is_taken_and_it_is_said(format: str) -> None:
    notes: list[str] = []
    frames = [Image.new("RGB", (20, 20), c) for c in ((200, 0, 0), (0, 200, 0))]
    both = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    got = read_image(both, spec(), on_note=lambda _, text: notes.append(text))
    assert np.abs(got[0, 0, 0].astype(int) - (200, 0, 0)).max() < 12
    assert notes == ["has several frames or pages: the first is taken"]
    read_image(encoded(frames[0], format), spec(), on_note=lambda _, text: notes.append(text))
    assert len(notes) == 1


# --- HEIC -----------------------------------------------------------------------------------------------------


#: `picture(64, 48)`, lying on its side and marked so twice, as phones do it: by HEIF's own ``irot`` and by EXIF.
HEIC = SUPPORT / "photos" / "turned.heic"


def upright() -> Array:
    return np.asarray(picture(64, 48).transpose(Image.Transpose.ROTATE_270)).astype(int)


def test_heic_is_turned_once() -> None:
    pytest.importorskip("pi_heif", reason="needs the extra [heif]")
    for source in (HEIC, HEIC.read_bytes()):
        got = read_image(source, spec(size=(64, 48)))[0].astype(int)
        assert np.abs(got - upright()).mean() < 6
    with pytest.raises(InputError, match="a broken or truncated image"):
        read_image(HEIC.read_bytes()[:500], spec())
    with pytest.raises(InputError, match="a broken or truncated image"):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", spec())


def test_heic_is_turned_once_by_what_the_decoder_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decoder of the same interface, where pi-heif is not installed: its picture is upright, its EXIF says 6."""

    class Opened:
        size = (48, 64)

        def to_pillow(self) -> Image.Image:
            image = Image.fromarray(upright().astype(np.uint8))
            image.getexif()[0x0112] = 6
            return image

    monkeypatch.setitem(sys.modules, "pi_heif", SimpleNamespace(open_heif=lambda file: Opened()))
    np.testing.assert_array_equal(read_image(HEIC, spec(size=(64, 48)))[0], upright())
    Opened.size = (20_000, 20_000)
    with pytest.raises(InputError, match="too large, 20000 x 20000 pixels"):
        read_image(HEIC, spec())


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(MissingExtraError, match=r"turned\.heic.*\[heif\]"):
        read_image(HEIC, spec())


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_every_format_is_turned_once(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(picture(64, 48), format, exif=exif)
    turn = {3: "ROTATE_180", 6: "ROTATE_270", 8: "ROTATE_90"}[orientation]
    want = np.asarray(picture(64, 48).transpose(Image.Transpose[turn])).astype(int)
    got = read_image(stored, spec(size=want.shape[:2]))[0].astype(int)
    assert np.abs(got - want).mean() < 8
