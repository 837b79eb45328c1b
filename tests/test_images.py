"""The input contract: each mode against Pillow's and torchvision's arithmetic, broken images refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from pictures import RAMP, encoded, picture, spec, tiff
from PIL import Image

from splitpoint.errors import InputError
from splitpoint.images import (
    InputSpec,
    classify,
    explain_missing,
    geometry,
    guess_spec,
    read_image,
)
from splitpoint.tensors import Array, TensorSpec

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


def test_who_cannot_be_told_breaks_no_picture(reported: set[tuple[str, type[BaseException]]]) -> None:
    def full(name: str, text: str) -> None:
        raise OSError("no space left on device")

    floats = tiff(RAMP.astype(np.float32), 3)
    np.testing.assert_array_equal(read_image(floats, spec(), on_note=full), read_image(floats, spec()))
    assert {kind for _, kind in reported} == {OSError}


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
