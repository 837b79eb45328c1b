"""JPEG: a baseline file that others read, and files that the decoder never sees."""

from __future__ import annotations

import io

import numpy as np
import pytest
from codec_arrays import (
    photo,
    there_and_back,
)
from PIL import Image, JpegImagePlugin, features

from splitpoint.codecs import OPPONENTS, known_names, open_codec, open_priced, usual_name
from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError, UsageError
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints
from splitpoint.tensors import Array, TensorSpec, spec_of
from splitpoint.wire import codec_feature
from splitpoint.wire import features as wire_features

# -- jpeg -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [1, 3])
def test_jpeg_is_a_baseline_file_that_others_read(colours: int) -> None:
    array = photo(61, 83, colours)
    errors = []
    for quality in (10, 75, 95, 100):
        codec = open_codec(f"jpeg:{quality}")
        data = codec.encode(array)
        with Image.open(io.BytesIO(data.tobytes())) as image:
            assert image.format == "JPEG"
            assert image.mode == ("RGB" if colours == 3 else "L")
            assert "progressive" not in image.info
            seen = np.asarray(image).reshape(array.shape)
        decoded = there_and_back(codec.name, array)
        assert np.array_equal(decoded, seen)
        errors.append(float(np.abs(decoded.astype(float) - array).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]
    if colours == 1:
        assert errors[-1] < 1


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 1, 1), (1, 1, 700, 3), (1, 700, 1, 1), (1, 257, 129, 3)])
def test_jpeg_of_noise_stays_below_the_most(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 256, shape, np.uint8), 255 * rng.integers(0, 2, shape, np.uint8)):
        for quality in (1, 50, 100):
            there_and_back(f"jpeg:{quality}", array)


def test_jpeg_sides() -> None:
    accepts = open_codec("jpeg:90").accepts
    assert accepts(TensorSpec("x", "uint8", (1, 1, 65500, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, 1, 65501, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, 65500, MAX_PIXELS // 65500 + 1, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, "height", "width", 3)))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def bad_jpegs(spec: TensorSpec) -> dict[str, bytes]:
    """What an attacker may send for `spec`; Pillow itself would have decoded most of them."""
    array = photo(int(spec.shape[1]), int(spec.shape[2]))
    data = open_codec("jpeg:90").encode(array).tobytes()
    size, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    huge = data[: size + 5] + b"\xff\xdc\xff\xdc" + data[size + 9 :]
    progressive, other, grey = io.BytesIO(), io.BytesIO(), io.BytesIO()
    image = Image.fromarray(array[0])
    image.save(progressive, "JPEG", progressive=True)
    image.rotate(90, expand=True).save(other, "JPEG")
    image.convert("L").save(grey, "JPEG")
    one = b"".join(segment(0xDA, bytes([1, k, 0x11 * (k > 1), 0, 63, 0])) for k in (1, 2, 3))
    return {
        "a bomb of 65500 x 65500": huge,
        "progressive": progressive.getvalue(),
        "another size": other.getvalue(),
        "grey": grey.getvalue(),
        "a scan for each channel, again and again": data[:scan] + 50 * one + b"\xff\xd9",
        "thousands of comments": data[:2] + 3000 * segment(0xFE, b"") + data[2:],
        "Exif": data[:2] + segment(0xE1, b"Exif\0\0II*\0" + bytes(60)) + data[2:],
        "a header without an end": data[:2] + 300 * segment(0xE0, bytes(20)) + data[2:],
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "nothing": b"",
        "its first bytes": data[:3],
        "no size": data[:size] + data[scan:],
    }


@pytest.mark.parametrize("kind", list(bad_jpegs(TensorSpec("x", "uint8", (1, 40, 56, 3)))))
def test_jpegs_that_pillow_never_sees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TensorSpec("x", "uint8", (1, 40, 56, 3))
    data = np.frombuffer(bad_jpegs(spec)[kind], np.uint8)
    opened: list[object] = []

    class Watched(JpegImagePlugin.JpegImageFile):
        def __init__(self, *arguments: object) -> None:
            opened.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(JpegImagePlugin, "JpegImageFile", Watched)
    codec = open_codec("jpeg:90")
    with pytest.raises(InputError, match=r"^x: uint8\[1,40,56,3\] "):
        codec.decode(data, spec)
    assert not opened
    codec.decode(codec.encode(photo()), spec)
    assert len(opened) == 1


def test_scans_behind_the_picture_are_not_gone_over() -> None:
    array = photo(256, 256)
    codec, spec = open_codec("jpeg:90"), spec_of("x", array)
    data = codec.encode(array).tobytes()
    again = segment(0xDA, bytes([3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]))
    for bad in (data[:-2] + 5000 * again + b"\xff\xd9", data + 5000 * again):
        try:
            decoded = codec.decode(np.frombuffer(bad, np.uint8), spec)
        except InputError:
            continue
        assert np.array_equal(decoded, codec.decode(codec.encode(array), spec))


# -- jpeg444, and opponents -----------------------------------------------------------------------------------------


def smooth(height: int = 90, width: int = 120) -> Array:
    """A photo without noise, whose colour changes faster than its brightness."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([128 + 90 * np.sin(x * 2 + k * 2.1) * np.cos(y / 25) for k in range(3)], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)[None]


def error(name: str, array: Array) -> float:
    codec = open_priced(name)
    decoded = codec.decode(codec.encode(array), spec_of("x", array))
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    return float(np.abs(decoded.astype(float) - array).mean())


def test_jpeg444_keeps_colour_that_jpeg_halves() -> None:
    assert error("jpeg444:95", smooth()) < 0.5 * error("jpeg:95", smooth())
    there_and_back("jpeg444:90", photo(33, 47, 1))  # grey has no colour to keep


@pytest.mark.parametrize("kind", list(OPPONENTS))
@pytest.mark.parametrize("colours", [1, 3])
def test_opponents_are_pictures_that_pillow_writes(kind: str, colours: int) -> None:
    codec = open_priced(usual_name(kind))
    array = photo(61, 83, colours)
    if not codec.accepts(spec_of("x", array)):
        assert not features.check(kind.partition("@")[0].partition("-")[0]), "what Pillow has is tried"
        return
    data = codec.encode(array)
    with Image.open(io.BytesIO(data.tobytes())) as image:
        shrunk = int(kind.partition("@")[2] or 100)
        assert image.size == (-(-83 * shrunk // 100), -(-61 * shrunk // 100))
        assert image.format == kind.partition("@")[0].partition("-")[0].upper()
    moved = error(codec.name, array)
    assert (moved == 0) == codec.exact
    assert codec.exact == (kind in ("webp-lossless", "png"))


def test_a_smaller_picture_loses_more() -> None:
    with Image.open(photos()[0]) as image:
        array = np.asarray(image.convert("RGB"))[None, 100:260, 100:300]
    errors = [error(f"{kind}:90", array) for kind in ("jpeg", "jpeg@75", "jpeg@50")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", list(OPPONENTS))
def test_no_opponent_is_ever_sent_or_decoded_for_a_stranger(kind: str) -> None:
    name = usual_name(kind)
    with pytest.raises(UsageError, match="no codec is called"):
        open_codec(name)
    assert codec_feature(name) not in wire_features()
    assert kind not in known_names()
    with pytest.raises(UsageError):
        Constraints(codecs=(name,))


def test_a_picture_format_that_pillow_lacks_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TensorSpec("x", "uint8", (1, 40, 56, 3))
    monkeypatch.setattr(features, "check", lambda name: False)
    assert not open_priced("avif:90").accepts(spec)
    assert not open_priced("webp:90").accepts(spec)
    assert open_priced("png").accepts(spec)
    assert open_codec("jpeg:90").accepts(spec)


def test_the_module_of_pictures_hides_no_function_of_the_package() -> None:
    assert open_priced("png").name == "png"  # which imports the module
    from splitpoint.codecs import picture

    assert picture("png") == "PNG"
