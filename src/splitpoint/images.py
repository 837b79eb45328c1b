"""From an image to the tensor that a model takes, and from its output to labels.

An `InputSpec` says what is not in the graph: size, layout, colour order, how to resize, how to scale the numbers, and
the labels. It is in the model's metadata (`splitpoint.input_spec`, `splitpoint.labels`) or in a file that the user
writes (``--input-spec FILE``, JSON or TOML):

    {"dtype": "float32", "layout": "NCHW", "size": [224, 224], "mode": "shortest", "crop": 0.875,
     "scale": 0.00392156862745098, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
     "labels": "imagenet.txt"}

Our own exports take uint8 NHWC and normalise in the graph, so that the JPEG itself can cross. Other ONNX files mostly
take normalised floats: for those, `scale`, `mean` and `std` are applied here, on the device.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec import Meta

from splitpoint.decoding import OnNote, open_picture, silent
from splitpoint.errors import InputError, nearest
from splitpoint.files import linked_folders, named, open_file
from splitpoint.parsing import MalformedError, parse_json, parse_toml
from splitpoint.tensors import Array, TensorSpec, spec_of
from splitpoint.text import CONTROL, listed

if TYPE_CHECKING:
    from PIL import Image

Dtype = Literal["uint8", "float32", "float16"]
Layout = Literal["NHWC", "NCHW"]
Color = Literal["RGB", "BGR", "GRAY"]
Mode = Literal["stretch", "shortest", "letterbox"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
Task = Literal["classify", "raw"]

_MAX_SIDE = 16_384
_MAX_TEXT = 16 << 20
_Side = Annotated[int, Meta(ge=1, le=_MAX_SIDE)]
_Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]

#: The model's metadata keys that carry a spec and its labels (one a line).
SPEC_KEY = "splitpoint.input_spec"
LABELS_KEY = "splitpoint.labels"

#: What each key may be: the second half of every error about a value.
_ALLOWED: Mapping[str, str] = {
    "input": "the name of the model's input, or left out when it has one",
    "dtype": "uint8, float32 or float16",
    "layout": "NHWC or NCHW",
    "size": f"[height, width], each 1 to {_MAX_SIDE}",
    "color": "RGB, BGR or GRAY",
    "mode": "stretch (ignore the aspect ratio), shortest (resize the shorter side to resize_to, then crop "
    "the centre) or letterbox (fit inside, fill the rest with pad)",
    "resize_to": f"with mode shortest, the shorter side before the crop: a whole number from max(size) to {_MAX_SIDE}",
    "crop": "with mode shortest, the kept fraction of the shorter side: above 0.05 and at most 1; "
    "resize_to is then max(size) / crop",
    "pad": "a whole number from 0 to 255",
    "interpolation": "bilinear, bicubic, nearest or lanczos",
    "scale": "a finite number other than 0, for float dtypes; values are ((x * scale) - mean) / std",
    "mean": "one finite number, or one a channel, for float dtypes; values are ((x * scale) - mean) / std",
    "std": "one finite number other than 0, or one a channel, for float dtypes",
    "task": "classify (answers are labels) or raw (answers are tensors)",
    "apply_softmax": "true when the model's output are logits, false when they are probabilities already",
    "output": "the name of the output to classify, or left out when the model has one",
    "labels": "a list of strings, or the name of a text file beside the spec or below, with one a line; no "
    "control characters",
    "top": "a whole number from 1 to 1000",
}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class InputSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image becomes a model's input, and how its output becomes labels.

    The image is turned upright (EXIF), converted to `color`, resized by `mode` with `interpolation` (antialiased when
    it shrinks, like Pillow and torchvision), and for float dtypes mapped to ``((x * scale) - mean) / std`` with x in
    0..255. `mean` and `std` are in the order of the model's channels: for BGR the first is blue's.

    InputError if a value is not possible, however it is made.

    >>> spec = InputSpec(dtype="uint8", layout="NHWC", size=(224, 224), mode="shortest", crop=0.875)
    >>> print(spec.tensor)
    image: uint8[1,224,224,3]
    >>> InputSpec.from_json(spec.to_json()) == spec
    True
    """

    dtype: Dtype
    layout: Layout
    size: tuple[_Side, _Side]
    input: str = ""
    color: Color = "RGB"
    mode: Mode = "stretch"
    resize_to: _Side | None = None
    crop: Annotated[float, Meta(gt=0.05, le=1)] | None = None
    pad: Annotated[int, Meta(ge=0, le=255)] = 114
    interpolation: Interpolation = "bilinear"
    scale: _Finite = 1.0
    mean: tuple[_Finite, ...] | _Finite = 0.0
    std: tuple[_Finite, ...] | _Finite = 1.0
    task: Task = "classify"
    apply_softmax: bool = True
    output: str = ""
    labels: tuple[str, ...] = ()
    top: Annotated[int, Meta(ge=1, le=1000)] = 5

    def __post_init__(self) -> None:
        for field in _FIELDS:
            key, given = field.name, getattr(self, field.name)
            try:
                value = msgspec.convert(msgspec.to_builtins(given, enc_hook=float), field.type)  # float: of NumPy's
            except (msgspec.ValidationError, TypeError, ValueError):
                possible = False
            else:
                msgspec.structs.force_setattr(self, key, value)
                possible = key not in _POSSIBLE or _POSSIBLE[key](self)
            if not possible:
                raise InputError(f"input spec: {key} = {_short(given)} is not possible; {key} is {_ALLOWED[key]}")
        if self.resize_to is not None and self.crop is not None:
            raise InputError("input spec: give resize_to or crop, not both: they say the same thing")
        for key, plain in (("scale", 1.0), ("mean", 0.0), ("std", 1.0)):
            if self.dtype == "uint8" and getattr(self, key) != plain:
                raise InputError(
                    f"input spec: {key} is for float dtypes; a model that takes uint8 normalises in its graph"
                )

    @property
    def channels(self) -> int:
        return 1 if self.color == "GRAY" else 3

    @property
    def tensor(self) -> TensorSpec:
        """The tensor `read_image` returns: name (`input`, or ``image``), dtype and shape with batch 1."""
        h, w = self.size
        shape = (1, h, w, self.channels) if self.layout == "NHWC" else (1, self.channels, h, w)
        return TensorSpec(self.input or "image", self.dtype, shape)

    @property
    def shorter_side(self) -> int:
        """With mode ``shortest``: the length the image's shorter side is resized to, in pixels."""
        if self.resize_to is not None:
            return self.resize_to
        return max(self.size) if self.crop is None else math.floor(max(self.size) / self.crop + 1e-9)

    def bind(self, inputs: Sequence[TensorSpec]) -> InputSpec:
        """This spec with `input` filled in; InputError if none of the model's `inputs` takes its tensor."""
        names, chosen = listed(t.name for t in inputs), [t for t in inputs if self.input in ("", t.name)]
        if not chosen:
            raise InputError(f"input spec: the model has no input {self.input}; it has {names}")
        if len(chosen) > 1:
            raise InputError(f"input spec: the model has the inputs {names}; say with `input` which one is the image")
        target, tensor = chosen[0], self.tensor
        if len(target.shape) != 4 or not target.fits(tensor.dtype, [int(d) for d in tensor.shape]):
            raise InputError(
                f"input spec: it describes {tensor.type}, but the model's input is {target}; "
                "correct dtype, layout, size or color in the spec"
            )
        bound = copy.copy(self)  # for every picture: it need not be checked again
        msgspec.structs.force_setattr(bound, "input", target.name)
        return bound

    def to_json(self) -> str:
        """This spec as indented JSON, keys at their default left out."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> InputSpec:
        """The spec in a JSON object. Its labels are a list: a model or a server may not name local files."""
        return _convert(parse_json, text, "input spec")

    @classmethod
    def from_file(cls, path: str | Path) -> InputSpec:
        """The spec in a `.json` or `.toml` file; `labels` may be a file in its folder or below."""
        path = Path(path)
        parse = parse_toml if path.suffix.lower() == ".toml" else parse_json
        return _convert(parse, _read_text(path, "input spec"), f"input spec {path}", path)

    def to_metadata(self) -> dict[str, str]:
        """The model metadata that carries this spec: `splitpoint.input_spec` and `splitpoint.labels`."""
        entries = {SPEC_KEY: msgspec.json.encode(msgspec.structs.replace(self, labels=())).decode()}
        if self.labels:
            entries[LABELS_KEY] = "\n".join(self.labels)
        return entries

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> InputSpec | None:
        """The spec in a model's metadata, with its labels, or None."""
        if SPEC_KEY not in metadata:
            return None
        spec = cls.from_json(metadata[SPEC_KEY])
        if not spec.labels and metadata.get(LABELS_KEY):
            spec = msgspec.structs.replace(spec, labels=_lines(metadata[LABELS_KEY]))
        return spec

    def __str__(self) -> str:
        how = {
            "shortest": f"shorter side to {self.shorter_side}, centre crop",
            "letterbox": f"letterbox, pad {self.pad}",
        }
        return f"{self.tensor} {self.color}, {how.get(self.mode, self.mode)}, {self.interpolation}"


_FIELDS = msgspec.structs.fields(InputSpec)
#: What each value must be of that its type does not say.
_POSSIBLE: Mapping[str, Callable[[InputSpec], bool]] = {
    "resize_to": lambda s: s.resize_to is None or (s.mode == "shortest" and s.resize_to >= max(s.size)),
    "crop": lambda s: s.crop is None or s.mode == "shortest",
    "scale": lambda s: s.scale != 0,
    "mean": lambda s: np.size(s.mean) in (1, s.channels),
    "std": lambda s: np.size(s.std) in (1, s.channels) and bool(np.all(s.std)),
    # They come with models from elsewhere and are printed: no escape sequences for the terminal.
    "labels": lambda s: not any(map(CONTROL.search, s.labels)),
}


def _read_text(path: Path, what: str) -> str:
    try:
        with open_file(path) as file:
            data = file.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise InputError(f"{what} {path} is larger than {_MAX_TEXT >> 20} MiB")
        return data.decode("utf-8-sig")
    except FileNotFoundError as exc:
        raise InputError(f"no such {what} file: {path}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{what} {path} cannot be read as text: {exc}") from exc


def _lines(text: str) -> tuple[str, ...]:
    """The labels in `text`, one a line. Blank lines inside count: they keep the numbering."""
    return tuple(line.strip() for line in re.split("\r\n|\r|\n", text.rstrip()))


def _convert(parse: Callable[[Any], Any], text: str | bytes, where: str, path: Path | None = None) -> InputSpec:
    """The spec in `text`, of the file `path`, and its labels; InputError names the key."""
    try:
        raw = parse(text)
    except MalformedError as exc:
        raise InputError(f"{where} is not {'TOML' if parse is parse_toml else 'JSON'}: {exc}") from exc
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be an object with keys such as dtype, layout and size")
    values: dict[str, Any] = dict(raw)
    for key in values:
        if key not in _ALLOWED:
            hint = nearest(str(key), _ALLOWED) or f"; the keys are {', '.join(_ALLOWED)}"
            raise InputError(f"{where}: unknown key {_short(key)}{hint}")
    if isinstance(values.get("labels"), str):
        if path is None:
            raise InputError(f"{where}: labels must be a list here: a path works in an --input-spec file only")
        try:
            labels = named(values["labels"], path.parent, linked_folders(path))
        except ValueError as exc:
            raise InputError(f"{where}: the file of labels {exc}") from exc
        values["labels"] = _lines(_read_text(labels, "label"))
    for key in ("dtype", "layout", "size"):
        if key not in values:
            raise InputError(f"{where}: {key} is missing; {key} is {_ALLOWED[key]}")
    try:
        return InputSpec(**values)
    except InputError as exc:
        raise InputError(str(exc).replace("input spec", where, 1)) from exc


# --- no spec ------------------------------------------------------------------------------------------------


def guess_spec(tensor: TensorSpec) -> InputSpec | None:
    """The spec of a model's uint8 image input of fixed size, which takes pixels as they are (RGB and stretching are
    assumed), or None.

    A float input is never guessed: the mean and std that it was trained with are not in the file, and wrong ones give
    confident wrong answers.
    """
    layout = _layout(tensor)
    if layout is None or tensor.dtype != "uint8":
        return None
    h, w, c = layout[1]
    if not isinstance(h, int) or not isinstance(w, int):
        return None
    color: Color = "GRAY" if c == 1 else "RGB"
    return InputSpec(dtype="uint8", layout=layout[0], size=(h, w), input=tensor.name, color=color, task="raw")


def _layout(tensor: TensorSpec) -> tuple[Layout, tuple[int | str, int | str, int]] | None:
    """Layout and (height, width, channels) of an image-shaped tensor; None when it is none or ambiguous."""
    if len(tensor.shape) != 4:
        return None
    _, a, b, c = tensor.shape
    first, last = a in (1, 3), c in (1, 3)
    if first == last:
        return None
    if last:
        return "NHWC", (a, b, int(c))
    return "NCHW", (b, c, int(a))


def explain_missing(inputs: Sequence[TensorSpec], model: str) -> str:
    """The error text for an image given to `model` without a spec: what is not known, and a file to paste.

    It has the tensor's own dtype, layout and size where they are known, and ImageNet's numbers, for the user to check.
    """
    for tensor in inputs:
        layout = _layout(tensor)
        if layout is None or tensor.dtype not in get_args(Dtype):
            continue
        h, w, c = layout[1]
        fixed = (h if isinstance(h, int) else 224, w if isinstance(w, int) else 224)
        example: dict[str, object] = {"dtype": tensor.dtype, "layout": layout[0], "size": fixed}
        if len(inputs) > 1:
            example["input"] = tensor.name
        example |= {"color": "GRAY" if c == 1 else "RGB", "mode": "shortest", "crop": 0.875}
        if tensor.dtype != "uint8":
            example["scale"] = 1 / 255
            example |= {"mean": [0.5], "std": [0.5]} if c == 1 else {
                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]
            }  # fmt: skip
        example |= {"task": "classify", "labels": "labels.txt"}
        body = msgspec.json.format(msgspec.json.encode(example), indent=2).decode()
        return (
            f"{model} does not say how an image becomes its input {tensor}: resize, colour order, mean and "
            "std are not in the file. Write them to spec.json and add --input-spec spec.json; for a network "
            f"trained like torchvision's on ImageNet (check yours) that is:\n{body}"
        )
    return f"{model} has no input that an image fits ({listed(inputs)}): give its tensors as .npy or .npz files"


# --- image → tensor -----------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Where an upright image's pixels go: `box` of it (left, top, right, bottom) fills `size` (width, height) of the
    model's input at `offset` (x, y)."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)


def geometry(width: int, height: int, spec: InputSpec) -> Geometry:
    """How `spec` places an upright image of `width` x `height` pixels.

    ``shortest`` is torchvision's Resize(n) + CenterCrop and ``letterbox`` is YOLO's, with the same rounding.
    """
    out_h, out_w = spec.size
    if spec.mode == "stretch":
        return Geometry((0, 0, width, height), (out_w, out_h))
    if spec.mode == "letterbox":
        ratio = min(out_w / width, out_h / height)
        fit_w = min(out_w, max(1, round(width * ratio)))
        fit_h = min(out_h, max(1, round(height * ratio)))
        return Geometry((0, 0, width, height), (fit_w, fit_h), ((out_w - fit_w) // 2, (out_h - fit_h) // 2))
    short = spec.shorter_side
    if width <= height:
        new_w, new_h = short, int(short * height / width)
    else:
        new_w, new_h = int(short * width / height), short
    left, top = round((new_w - out_w) / 2), round((new_h - out_h) / 2)
    # Resampling only the part that is kept gives the same pixels as resizing everything and cropping.
    fx, fy = width / new_w, height / new_h
    box = (left * fx, top * fy, min(width, (left + out_w) * fx), min(height, (top + out_h) * fy))
    return Geometry(box, (out_w, out_h))


def read_image(
    source: str | Path | bytes | Array, spec: InputSpec, *, name: str = "", on_note: OnNote = silent
) -> Array:
    """The tensor `spec` describes, C-contiguous with batch 1, from an image.

    `source` is a file, the bytes of one (any Pillow format except PostScript; HEIC with the extra [heif]), or an
    upright RGB or grey frame as uint8 ``[height, width, 3]`` / ``[height, width]``. `name` is what errors call it.
    Transparency is laid over white, of several frames or pages the first is taken (`on_note` is told), colour profiles
    are ignored. Files are decoded at full size: JPEG's cheaper scaled decoding would change the pixels.

    Grey of more than 8 bits is scaled to 8: white is 65535 in 16 bits. 32-bit integers and floating point do not say
    what white is: it is the least of 255, 65535 and the type's largest integer, or of 1, 255 and 65535, that no value
    is above, and `on_note` is told which. Where that leaves less than a sixteenth of the range in use it is not
    guessed.

    InputError for a file that is not there, not an image, broken, larger than MAX_PIXELS, or whose white is not known;
    MissingExtraError for HEIC without pi-heif.
    """
    if isinstance(source, np.ndarray):
        return _tensor(_frame(source, name or "frame"), 1, spec)
    label = name or ("image" if isinstance(source, bytes) else str(source))
    image, orientation = open_picture(source, label, "L" if spec.color == "GRAY" else "RGB", on_note)
    return _tensor(image, orientation, spec)


def _frame(array: Array, name: str) -> Image.Image:
    from PIL import Image

    shape = array.shape[:2] if array.ndim == 3 and array.shape[2] == 1 else array.shape
    if array.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
        got = spec_of(name, array).type
        raise InputError(f"{name} must be uint8[height,width,3] RGB or uint8[height,width] grey, but {got} came")
    return Image.fromarray(np.ascontiguousarray(array.reshape(shape)))


def _tensor(image: Image.Image, orientation: int, spec: InputSpec) -> Array:
    """`image` (RGB or L, stored sideways as `orientation` says) resized and as numbers."""
    from PIL import Image

    mode = "L" if spec.color == "GRAY" else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    sideways = orientation >= 5
    place = geometry(*((height, width) if sideways else (width, height)), spec)

    # The box is mapped into the stored image and the result is turned: 224 x 224 pixels, not 12 million.
    left, top, right, bottom = place.box
    if sideways:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    box = (max(0.0, left), max(0.0, top), min(width, right), min(height, bottom))
    size = place.size[::-1] if sideways else place.size
    image = image.resize(size, Image.Resampling[spec.interpolation.upper()], box=box)
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}.get(orientation)  # fmt: skip
    if turn:
        image = image.transpose(Image.Transpose[turn])
    if place.size != (spec.size[1], spec.size[0]):
        canvas = Image.new(image.mode, (spec.size[1], spec.size[0]), (spec.pad,) * len(image.getbands()))
        canvas.paste(image, place.offset)
        image = canvas
    pixels = np.asarray(image).reshape(*spec.size, spec.channels)
    return _numbers(pixels[..., ::-1] if spec.color == "BGR" else pixels, spec)


def _numbers(pixels: Array, spec: InputSpec) -> Array:
    """uint8 ``[height, width, channels]`` as the spec's dtype and layout, with its scale, mean and std."""
    tensor = np.empty(tuple(int(d) for d in spec.tensor.shape), spec.dtype)
    planes = tensor[0] if spec.layout == "NCHW" else np.moveaxis(tensor[0], -1, 0)
    if spec.dtype == "uint8":
        planes[...] = np.moveaxis(pixels, -1, 0)
        return tensor
    # A byte has 256 values: a table a channel is exact, one rounding from float64, and a look-up
    # a pixel is all it costs.
    values = np.arange(256, dtype=np.float64) * spec.scale
    mean, std = (np.full(spec.channels, v, np.float64) for v in (spec.mean, spec.std))
    for channel, plane in enumerate(planes):
        with np.errstate(over="ignore"):
            table = ((values - mean[channel]) / std[channel]).astype(spec.dtype)
        if not np.isfinite(table).all():
            raise InputError(f"input spec: scale, mean and std give values that {spec.dtype} cannot hold")
        plane[...] = table[pixels[..., channel]]
    return tensor


# --- answer → labels ----------------------------------------------------------------------------------------


def classify(outputs: Mapping[str, Array] | Array, spec: InputSpec) -> list[tuple[str, float]]:
    """The `spec.top` most probable classes of one image, best first, as (label, probability 0 to 1).

    `outputs` are the model's outputs, or the one to classify: any shape with one item, ``[1, classes]`` as a rule.
    Equal ones keep the classes' order. InputError if the labels do not fit the output or it is not finite.
    """
    name, values = _pick(outputs, spec)
    classes = max(values.shape, default=1)
    if values.size != classes:
        got = ",".join(map(str, values.shape))
        raise InputError(
            f"output {name} has the shape [{got}], classes are [1, classes]: "
            "set task to raw in the input spec, or output to the one with the classes"
        )
    if spec.labels and len(spec.labels) != classes:
        raise InputError(f"output {name} has {classes} classes, but the input spec has {len(spec.labels)} labels")
    scores = values.astype(np.float64).reshape(-1)
    if not np.isfinite(scores).all():
        raise InputError(f"output {name} has values that are not finite: check dtype, scale, mean and std of the spec")
    if spec.apply_softmax:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[: spec.top]
    return [((spec.labels[i] if spec.labels else "") or f"class {i}", float(scores[i])) for i in best.tolist()]


def _pick(outputs: Mapping[str, Array] | Array, spec: InputSpec) -> tuple[str, Array]:
    if isinstance(outputs, np.ndarray):
        return spec.output or "output", outputs
    if spec.output:
        if spec.output not in outputs:
            raise InputError(f"input spec: the model has no output {spec.output}{nearest(spec.output, outputs)}")
        return spec.output, outputs[spec.output]
    if len(outputs) != 1:
        raise InputError(
            f"the model has the outputs {listed(outputs)}: say with `output` in the spec which to classify"
        )
    return next(iter(outputs.items()))
