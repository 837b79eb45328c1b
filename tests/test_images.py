"""The input contract: each mode against Pillow's and torchvision's arithmetic, broken images refused."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from places import SUPPORT

from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.images import (
    InputSpec,
    classify,
    explain_missing,
    geometry,
    guess_spec,
    read_image,
)
from splitpoint.tensors import Array, TensorSpec


def spec(**changes: object) -> InputSpec:
    base: dict[str, object] = {"dtype": "uint8", "layout": "NHWC", "size": (32, 48)}
    return InputSpec(**(base | changes))  # type: ignore[arg-type]


def picture(width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture without symmetry: each corner and channel differs."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, 127 + 120 * np.sin(x / 9 + y / 23)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# --- geometry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_stretch_is_pillows_resize(interpolation: str) -> None:
    image = picture()
    got = read_image(encoded(image), spec(interpolation=interpolation))
    want = image.resize((48, 32), Image.Resampling[interpolation.upper()])
    assert got.shape == (1, 32, 48, 3)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got[0], np.asarray(want))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (301, 77), (40, 500)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shortest_is_resize_then_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    image = picture(*size)
    rule = spec(size=(32, 32), mode="shortest", resize_to=40, interpolation=interpolation)
    got = read_image(encoded(image), rule)[0].astype(int)
    w, h = size  # torchvision's Resize(40) and CenterCrop(32)
    new_w, new_h = (40, int(40 * h / w)) if w <= h else (int(40 * w / h), 40)
    whole = image.resize((new_w, new_h), Image.Resampling[interpolation.upper()])
    left, top = round((new_w - 32) / 2), round((new_h - 32) / 2)
    want = np.asarray(whole.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(got - want).max() <= 1
    assert np.abs(got[::-1] - want).max() > 20  # the comparison can fail


def test_crop_is_the_kept_fraction() -> None:
    assert spec(size=(224, 224), mode="shortest", crop=0.875).shorter_side == 256
    assert spec(size=(224, 224), mode="shortest", crop=1).shorter_side == 224
    assert spec(size=(224, 224), mode="shortest").shorter_side == 224
    by_crop = read_image(encoded(picture()), spec(size=(28, 28), mode="shortest", crop=0.875))
    by_side = read_image(encoded(picture()), spec(size=(28, 28), mode="shortest", resize_to=32))
    np.testing.assert_array_equal(by_crop, by_side)


def test_letterbox_pads_evenly_around_the_whole_picture() -> None:
    white = Image.new("RGB", (100, 50), (255, 255, 255))
    got = read_image(encoded(white), spec(size=(64, 64), mode="letterbox", pad=7))[0]
    assert (got[:16] == 7).all()
    assert (got[16:48] == 255).all()
    assert (got[48:] == 7).all()
    tall = read_image(encoded(white.rotate(90, expand=True)), spec(size=(64, 64), mode="letterbox", pad=7))[0]
    np.testing.assert_array_equal(tall, got.transpose(1, 0, 2))
    # An odd remainder leaves the extra row below, as YOLO's letterbox does.
    place = geometry(64, 31, spec(size=(64, 64), mode="letterbox"))
    assert (place.size, place.offset) == ((64, 31), (0, 16))
    same = read_image(encoded(picture(48, 32)), spec(mode="letterbox"))
    np.testing.assert_array_equal(same[0], np.asarray(picture(48, 32)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["stretch", "shortest", "letterbox"])
def test_extreme_shapes_still_fill_the_input(size: tuple[int, int], mode: str) -> None:
    got = read_image(encoded(Image.new("RGB", size, (9, 9, 9))), spec(mode=mode, size=(32, 32), pad=9))
    assert got.shape == (1, 32, 32, 3)
    assert (got == 9).all()


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


def test_grey_input_bgr_and_the_first_frame() -> None:
    grey = read_image(encoded(picture()), spec(color="GRAY"))
    assert grey.shape == (1, 32, 48, 1)
    np.testing.assert_array_equal(
        grey[0, :, :, 0], np.asarray(picture().convert("L").resize((48, 32), Image.Resampling.BILINEAR))
    )
    rgb, bgr = (read_image(encoded(picture()), spec(color=c)) for c in ("RGB", "BGR"))
    np.testing.assert_array_equal(rgb[..., ::-1], bgr)
    frames = [Image.new("RGB", (20, 20), c) for c in ((200, 0, 0), (0, 200, 0))]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_image(gif, spec())[0, 0, 0] == (200, 0, 0)).all()


def test_layout_and_numbers() -> None:
    pixels = read_image(encoded(picture()), spec())[0].astype(np.float64)
    rule = spec(dtype="float32", layout="NCHW", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    got = read_image(encoded(picture()), rule)
    want = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 32, 48)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, want.astype(np.float32))
    half = read_image(encoded(picture()), spec(dtype="float16", mean=127.0, std=128.0))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half[0], ((pixels - 127) / 128).astype(np.float16))
    # mean and std follow the model's channel order
    blue_first = read_image(encoded(picture()), spec(dtype="float32", color="BGR", mean=(1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(blue_first[0], (pixels[..., ::-1] - [1, 2, 3]).astype(np.float32))
    planes = read_image(encoded(picture()), spec(layout="NCHW"))
    np.testing.assert_array_equal(planes[0], pixels.transpose(2, 0, 1))


def test_numbers_that_float16_cannot_hold() -> None:
    with pytest.raises(InputError, match="float16 cannot hold"):
        read_image(encoded(picture()), spec(dtype="float16", scale=1000.0))


def test_frames_from_a_camera() -> None:
    frame = np.asarray(picture())
    np.testing.assert_array_equal(read_image(frame, spec()), read_image(encoded(picture()), spec()))
    grey = frame[..., 0]
    np.testing.assert_array_equal(read_image(grey, spec()), read_image(grey[..., None], spec()))
    assert read_image(frame[::-1, ::2], spec()).shape == (1, 32, 48, 3)
    wrong: list[Array] = [frame.astype(np.float32), frame[..., :2], frame[:0], frame[0]]
    for array in wrong[:3]:
        with pytest.raises(InputError, match=r"must be uint8\[height,width,3\]"):
            read_image(array, spec())
    with pytest.raises(InputError, match="cam 2 must be"):
        read_image(frame[None], spec(), name="cam 2")


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


# --- grey of more than 8 bits ---------------------------------------------------------------------------------


def tiff(values: Array, sample_format: int, *, white_is_zero: bool = False, bits: int = 0) -> bytes:
    """A grey TIFF, written out (TIFF 6.0): Pillow cannot write all the kinds that it reads."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, width), (257, height), (258, bits or values.itemsize * 8), (259, 1), (262, not white_is_zero),
            (273, 8), (277, 1), (278, height), (279, len(data)), (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, int(value)) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


RAMP = np.linspace(0.0, 1.0, 64).reshape(1, 64).repeat(4, axis=0)


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


def test_who_cannot_be_told_breaks_no_picture(reported: set[tuple[str, type[BaseException]]]) -> None:
    def full(name: str, text: str) -> None:
        raise OSError("no space left on device")

    floats = tiff(RAMP.astype(np.float32), 3)
    np.testing.assert_array_equal(read_image(floats, spec(), on_note=full), read_image(floats, spec()))
    assert {kind for _, kind in reported} == {OSError}


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


# --- the spec itself ----------------------------------------------------------------------------------------


def test_a_spec_round_trips_and_prints() -> None:
    rule = spec(
        dtype="float32", layout="NCHW", input="x", color="BGR", mode="letterbox", pad=0,
        interpolation="lanczos", scale=0.5, mean=(1.0, 2.0, 3.0), std=2.0, task="raw", apply_softmax=False,
        output="y", labels=("a", "b"), top=2,
    )  # fmt: skip
    assert InputSpec.from_json(rule.to_json()) == rule
    assert InputSpec.from_metadata(rule.to_metadata()) == rule
    assert InputSpec.from_metadata({}) is None
    assert str(rule) == "x: float32[1,3,32,48] BGR, letterbox, pad 0, lanczos"
    assert spec(size=[32, 48], labels=["a"]) == spec(size=(32, 48), labels=("a",))


def test_spec_files_in_json_and_toml(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n dog \n\nowl\n")
    (tmp_path / "spec.json").write_text('{"dtype":"uint8","layout":"NHWC","size":[32,48],"labels":"names.txt"}')
    (tmp_path / "spec.toml").write_text(
        'dtype = "uint8"\nlayout = "NHWC"\nsize = [32, 48]\nlabels = ["cat", "dog", "", "owl"]\n'
    )
    first, second = (InputSpec.from_file(tmp_path / f"spec.{s}") for s in ("json", "toml"))
    assert first == second == spec(labels=("cat", "dog", "", "owl"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "int8"), ("dtype", 5), ("layout", "NCWH"), ("size", 224), ("size", [224]), ("size", [0, 4]),
        ("size", [4, 40_000]), ("color", "rgb"), ("mode", "crop"), ("interpolation", "cubic"),
        ("resize_to", 16), ("resize_to", "big"), ("crop", 0.0), ("crop", 1.5), ("pad", -1), ("pad", 256),
        ("pad", [1, 2, 3]),
        ("scale", 0), ("scale", "x"), ("mean", [1, 2]), ("std", [1, 0, 1]), ("std", 0), ("task", "detect"),
        ("top", 0), ("apply_softmax", "yes"), ("labels", [1, 2]), ("labels", 7), ("output", 3),
        ("labels", ["\x1b[2Jgone"]),
    ],
)  # fmt: skip
def test_a_wrong_value_names_the_key_and_what_is_allowed(key: str, value: object) -> None:
    raw: dict[str, object] = {"dtype": "float32", "layout": "NHWC", "size": [32, 48], "mode": "shortest"}
    with pytest.raises(InputError, match=rf"^input spec: {key} = .* is not possible; {key} is \S") as caught:
        InputSpec.from_json(msgspec.json.encode(raw | {key: value}))
    assert "\x1b" not in str(caught.value)


def test_other_mistakes_in_a_spec(tmp_path: Path) -> None:
    good = '"dtype":"uint8","layout":"NHWC","size":[32,48]'
    cases = {
        f'{{{good},"interpolaton":"bicubic"}}': "unknown key 'interpolaton'; did you mean interpolation",
        f'{{{good},"zzz":1}}': "unknown key 'zzz'; the keys are input, dtype",
        '{"dtype":"uint8","layout":"NHWC"}': r"size is missing; size is \[height, width\]",
        "[1]": "must be an object",
        "{": "is not JSON",
        f'{{{good},"mean":[1,2,3]}}': "mean is for float dtypes",
        f'{{{good},"mode":"shortest","crop":0.9,"resize_to":60}}': "not both",
        f'{{{good},"resize_to":60}}': "resize_to = 60 is not possible; resize_to is with mode shortest",
        f'{{{good},"labels":"/etc/passwd"}}': "labels must be a list here",
    }
    for text, message in cases.items():
        with pytest.raises(InputError, match=message):
            InputSpec.from_json(text)
    path = tmp_path / "spec.json"
    path.write_text(f'{{{good},"labels":"gone.txt"}}')
    with pytest.raises(InputError, match=r"no such label file: .*gone\.txt"):
        InputSpec.from_file(path)
    path.write_text(f'{{{good},"top":0}}')
    with pytest.raises(InputError, match=r"input spec .*spec\.json: top = 0 is not possible"):
        InputSpec.from_file(path)
    path.with_suffix(".toml").write_text("size = [")
    with pytest.raises(InputError, match=r"spec\.toml is not TOML"):
        InputSpec.from_file(path.with_suffix(".toml"))
    with pytest.raises(InputError, match="no such input spec file"):
        InputSpec.from_file(tmp_path / "gone.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        InputSpec.from_file(path)
    with pytest.raises(InputError, match="crop = 'x' is not possible"):
        spec(mode="shortest", crop="x")


def test_a_spec_is_bound_to_the_input_it_fits() -> None:
    image, mask = TensorSpec("img", "uint8", ("batch", 32, 48, 3)), TensorSpec("mask", "float32", (1, 5))
    assert spec().bind([image]).input == "img"
    assert spec(input="img").bind([mask, image]).tensor.name == "img"
    with pytest.raises(InputError, match="no input pic; it has img"):
        spec(input="pic").bind([image])
    with pytest.raises(InputError, match="inputs img, mask; say with `input`"):
        spec().bind([image, mask])
    for wrong in (spec(dtype="float32"), spec(layout="NCHW"), spec(size=(8, 8)), spec(color="GRAY")):
        with pytest.raises(InputError, match=r"describes .*, but the model's input is img: uint8\[batch,32,48,3\]"):
            wrong.bind([image])
    with pytest.raises(InputError, match="but the model's input is"):
        spec().bind([TensorSpec("img", "uint8", (4, 32, 48, 3))])


# --- no spec ------------------------------------------------------------------------------------------------


def test_only_bytes_are_guessed() -> None:
    guessed = guess_spec(TensorSpec("x", "uint8", ("n", 3, 64, 80)))
    assert guessed == InputSpec(dtype="uint8", layout="NCHW", size=(64, 80), input="x", task="raw")
    grey = guess_spec(TensorSpec("x", "uint8", (1, 28, 28, 1)))
    assert grey is not None
    assert (grey.layout, grey.color) == ("NHWC", "GRAY")
    for shape, dtype in [
        (("n", 3, 224, 224), "float32"), (("n", 3, "h", "w"), "uint8"), ((1, 3, 3, 3), "uint8"),
        ((1, 7, 224, 224), "uint8"), ((1, 128), "uint8"),
    ]:  # fmt: skip
        assert guess_spec(TensorSpec("x", dtype, shape)) is None


@pytest.mark.parametrize(
    "tensor",
    [
        TensorSpec("images", "float32", ("batch", 3, 640, 480)),
        TensorSpec("x", "float16", (1, "h", "w", 3)),
        TensorSpec("x", "float32", (1, 1, 28, 28)),
    ],
)
def test_the_example_in_the_error_can_be_pasted(tensor: TensorSpec, tmp_path: Path) -> None:
    text = explain_missing([tensor], "yolo.onnx")
    assert text.startswith(f"yolo.onnx does not say how an image becomes its input {tensor}")
    assert "--input-spec" in text
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "spec.json").write_text(text[text.index("\n{") :])
    pasted = InputSpec.from_file(tmp_path / "spec.json").bind([tensor])
    assert read_image(encoded(picture()), pasted).dtype.name == tensor.dtype


def test_a_model_without_an_image_input_says_so() -> None:
    text = explain_missing([TensorSpec("ids", "int64", (1, 128))], "bert")
    assert text == "bert has no input that an image fits (ids: int64[1,128]): give its tensors as .npy or .npz files"


# --- labels -------------------------------------------------------------------------------------------------


def test_classify_sorts_and_applies_softmax_once() -> None:
    rule = spec(labels=("a", "b", "", "d"), top=3)
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], dtype=np.float32)) + 7
    got = classify({"logits": logits}, rule)
    assert [name for name, _ in got] == ["d", "class 2", "b"]
    assert [p for _, p in got] == pytest.approx([0.4, 0.3, 0.2], abs=1e-6)
    again = classify(np.array([0.1, 0.2, 0.3, 0.4]), spec(apply_softmax=False, top=2))
    assert again == [("class 3", 0.4), ("class 2", 0.3)]
    assert [name for name, _ in classify(np.zeros((1, 6, 1, 1)), spec())] == [f"class {i}" for i in range(5)]
    assert classify(np.array([[1000.0, 0.0]]), spec())[0] == ("class 0", 1.0)  # no overflow


def test_answers_that_cannot_be_classified() -> None:
    with pytest.raises(InputError, match="has 1001 classes, but the input spec has 2 labels"):
        classify(np.zeros((1, 1001)), spec(labels=("a", "b")))
    with pytest.raises(InputError, match=r"shape \[2,10\].*set task to raw"):
        classify(np.zeros((2, 10)), spec())
    with pytest.raises(InputError, match="not finite: check dtype, scale, mean and std"):
        classify(np.array([[np.nan, 1.0]]), spec())
    outputs = {"logits": np.zeros((1, 3)), "aux": np.ones((1, 4))}
    with pytest.raises(InputError, match="outputs logits, aux: say with `output`"):
        classify(outputs, spec())
    with pytest.raises(InputError, match="no output logit; did you mean logits"):
        classify(outputs, spec(output="logit"))
    assert len(classify(outputs, spec(output="aux"))) == 4
