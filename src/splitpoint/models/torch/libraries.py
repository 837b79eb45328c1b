"""Models of torchvision, timm and transformers by name. They run their own code only: never `trust_remote_code`."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from splitpoint.errors import MissingExtraError, ModelError, UsageError, nearest
from splitpoint.images import InputSpec
from splitpoint.models.torch.signal import seeded
from splitpoint.models.torch.torch_source import Shapes, TorchSource, image_source, tensor_source
from splitpoint.models.torch.weights_option import GIVE_WEIGHTS, WeightsOption, download, first_line, load_file

#: GoogLeNet and Inception with trained weights have no auxiliary heads and rescale their input; FCN and
#: DeepLab have one. Random weights and `--weights FILE` get the same network.
_AS_PRETRAINED: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True},
    "inception_v3": {"aux_logits": False, "transform_input": True},
}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def _interpolation(value: Any) -> Any:
    text = str(getattr(value, "value", value)).lower()
    return text if text in ("bilinear", "bicubic", "nearest", "lanczos") else "bilinear"


def _library(module: str, name: str) -> Any:
    """The module of a library, for the export of `name`."""
    try:
        return import_module(module)
    except ImportError as exc:
        raise MissingExtraError(module.partition(".")[0], "torch", f"export {name}") from exc


def _weighted(
    name: str, weights: WeightsOption, trained: Callable[[], Any], fresh: Callable[[], Any], drop: tuple[str, ...] = ()
) -> Any:
    """The module with the weights that are wanted: `trained()`, or `fresh()` with random ones or those of a file."""
    if weights.default:
        return download(f"the file of weights of {name}", trained)
    with seeded(weights.seed or 0):
        model = fresh()
    if weights.path is not None:
        load_file(model, weights.path, drop)
    return model


def torchvision_source(name: str, weights: WeightsOption, shapes: Shapes) -> TorchSource:
    models = _library("torchvision.models", f"torchvision:{name}")
    known = models.list_models()
    if name not in known:
        raise ModelError(f"torchvision has no model {name}{nearest(name, known)}")
    family = models.get_model_builder(name).__module__.split(".")[2:3]
    refusal = _REFUSED.get(family[0] if family else "")
    if refusal:
        raise ModelError(f"torchvision:{name} cannot be exported: {refusal}")
    listed = models.get_model_weights(name)
    default = getattr(listed, "DEFAULT", None) or next(iter(listed), None)
    if weights.default and default is None:
        raise ModelError(f"torchvision has no trained weights for {name}: {GIVE_WEIGHTS}")
    extra = dict(_AS_PRETRAINED.get(name, {}))
    segments = family == ["segmentation"]
    if segments:
        extra["weights_backbone"] = None
        if name.startswith(("fcn", "deeplab")):
            extra["aux_loss"] = True
        extra["num_classes"] = len(default.meta["categories"]) if default else 21
    model = _weighted(
        f"torchvision:{name}",
        weights,
        trained=lambda: models.get_model(name, weights=default),
        fresh=lambda: models.get_model(name, weights=None, **extra),
        drop=_AUXILIARY if name in _AS_PRETRAINED else (),
    )
    trained = getattr(default, "name", "")
    text = f"torchvision:{name} {trained}" if weights.default else f"torchvision:{name}, {weights}"
    if family == ["video"]:
        return tensor_source(name, model, text, "video", (3, 16, 112, 112), shapes)
    spec, mean, std = _torchvision_spec(default, segments)
    return image_source(name, model, text, shapes, spec, mean, std)


#: torchvision's families that are not a tensor → tensor network.
_REFUSED: Mapping[str, str] = {
    "detection": "torchvision's detectors take a list of images and post-process in Python, which torch.export does "
    "not follow; use an ONNX file of a detector, or export its backbone with package.module:function",
    "quantization": "torch's quantised modules have no ONNX form; quantise the exported ONNX file instead",
    "optical_flow": "it takes two images in a recurrent loop; wrap it with package.module:function",
}


def _torchvision_spec(default: Any, segments: bool) -> tuple[InputSpec, Sequence[float], Sequence[float]]:
    preset = None if default is None else default.transforms()
    mean = (0.485, 0.456, 0.406) if preset is None else tuple(preset.mean)
    std = (0.229, 0.224, 0.225) if preset is None else tuple(preset.std)
    labels = tuple(default.meta.get("categories") or ()) if default is not None else ()
    resize = preset.resize_size[0] if preset is not None and preset.resize_size else 256
    crop = getattr(preset, "crop_size", None)
    interpolation = _interpolation(getattr(preset, "interpolation", "bilinear"))
    common: dict[str, Any] = {"labels": labels, "interpolation": interpolation}
    if segments or (crop is None and preset is not None):
        return _pixels(size=(resize, resize), mode="stretch", task="raw", **common), mean, std
    side = crop[0] if crop else 224
    spec = _pixels(size=(side, side), mode="shortest", resize_to=max(side, resize), task="classify", **common)
    return spec, mean, std


def _pixels(**more: Any) -> InputSpec:
    return InputSpec(dtype="uint8", layout="NHWC", input="image", **more)


def timm_source(name: str, weights: WeightsOption, shapes: Shapes) -> TorchSource:
    timm, data = _library("timm", f"timm:{name}"), _library("timm.data", f"timm:{name}")
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise ModelError(f"timm has no model {name}{nearest(base, timm.list_models())}")
    if weights.default and not timm.models.is_model_pretrained(name):
        raise ModelError(f"timm has no trained weights for {name}: {GIVE_WEIGHTS}")
    model = _weighted(
        f"timm:{name}",
        weights,
        trained=lambda: timm.create_model(name, pretrained=True),
        fresh=lambda: timm.create_model(name, pretrained=False),
    )
    text = f"timm:{name}, {weights}"
    if weights.default:
        text = f"timm:{name} {model.pretrained_cfg.get('tag') or 'default'}"
    config = data.resolve_data_config({}, model=model)
    channels, height, width = config["input_size"]
    if channels not in (1, 3):
        raise ModelError(
            f"timm:{name} takes {channels} channels, which is no image: wrap it with package.module:function"
        )
    shortest = config.get("crop_mode") in (None, "center")
    resize = max(height, width, math.floor(max(height, width) / (config.get("crop_pct") or 1)))
    spec = _pixels(
        size=(height, width),
        color="GRAY" if channels == 1 else "RGB",
        mode="shortest" if shortest else "stretch",
        resize_to=resize if shortest else None,
        interpolation=_interpolation(config.get("interpolation")),
        task="classify" if getattr(model, "num_classes", 0) else "raw",
        labels=_timm_labels(data, model),
    )
    return image_source(name, model, text, shapes, spec, config["mean"], config["std"])


def _timm_labels(data: Any, model: Any) -> tuple[str, ...]:
    subset = data.infer_imagenet_subset(model)
    if not subset or model.num_classes not in (1000, 21841, 21843, 11821, 12000):
        return ()
    info = data.ImageNetInfo(subset)
    labels = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    return labels if len(labels) == model.num_classes else ()


def transformers_source(name: str, weights: WeightsOption, shapes: Shapes) -> TorchSource:
    """``hf:NAME``: a folder with a config.json or a hub id; with random weights also a model type (``hf:bert``)."""
    transformers = _library("transformers", f"hf:{name}")
    types = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not weights.default and name in types and not Path(name).is_dir():
        config = transformers.AutoConfig.for_model(name)
    else:
        if name in types:
            advice = "for this model type's default network take --weights random[:seed]"
        else:
            hint = nearest(name, types) if "/" not in name else ""
            advice = f"give a folder with its config.json, or a model type with --weights random (hf:bert){hint}"
        try:
            config = download(f"hf:{name}", lambda: transformers.AutoConfig.from_pretrained(name), advice)
        except ValueError as exc:
            raise ModelError(f"hf:{name} is no transformers model: {first_line(exc)}") from exc
    named = next((a for a in getattr(config, "architectures", None) or () if hasattr(transformers, a)), None)
    architecture = getattr(transformers, named) if named else transformers.AutoModel
    make = getattr(architecture, "from_config", None) or architecture._from_config
    model = _weighted(f"hf:{name}", weights, lambda: architecture.from_pretrained(name), lambda: make(config))
    text = f"hf:{name}" if weights.default else f"hf:{name} ({type(model).__name__}), {weights}"
    return _hf_source(name.rstrip("/").rsplit("/", 1)[-1], model, text, shapes)


def _hf_source(name: str, model: Any, text: str, shapes: Shapes) -> TorchSource:
    config = model.config
    accepted = inspect.signature(model.forward).parameters
    constants: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "return_dict" in accepted:
        constants["return_dict"] = True
    pick = ("logits", "last_hidden_state")
    if model.main_input_name == "pixel_values":
        source = _hf_image(name, model, text, shapes)
        source.keywords, source.constants, source.pick = ("pixel_values",), constants, pick
        return source
    if model.main_input_name != "input_ids":
        raise ModelError(
            f"hf:{name} takes {model.main_input_name}: text and image models are exported by name, others through "
            "package.module:function"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"hf:{name} has an encoder and a decoder that run a different number of times: export one of them through "
            "package.module:function"
        )
    shape = list(shapes.get("input_ids", shapes.get("attention_mask", (1, 32))))
    if len(shape) != 2 or min(shape) < 1:
        raise UsageError(f"--shape input_ids: hf:{name} takes batch,length, not {shape}")
    vocabulary = int(getattr(config, "vocab_size", 1000))
    length = shape[1]
    masked = "attention_mask" in accepted

    def draw(count: int, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (count, length), generator=generator)
        mask = torch.ones(count, length, dtype=torch.int64)
        if masked and length > 4:  # padded at the end, each item otherwise: the mask must matter
            for row in range(count):
                mask[row, length - (row * 3) % (length // 2) :] = 0 if (row * 3) % (length // 2) else 1
        return (ids, mask) if masked else (ids,)

    keywords = ("input_ids", "attention_mask") if masked else ("input_ids",)
    inputs = dict(zip(keywords, draw(2, 1), strict=True))
    return TorchSource(name, model, inputs, draw, text, keywords=keywords, constants=constants, pick=pick)


def _hf_image(name: str, model: Any, text: str, shapes: Shapes) -> TorchSource:
    config = model.config
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    labels = tuple(str(v) for _, v in sorted((getattr(config, "id2label", None) or {}).items()))
    named = not all(v == f"LABEL_{i}" for i, v in enumerate(labels))
    classify = type(model).__name__.endswith("ImageClassification")
    spec = _pixels(
        size=(height, width),
        mode="stretch",
        task="classify" if classify else "raw",
        labels=labels if named and classify else (),
    )
    return image_source(name, model, text, shapes, spec, *_hf_normalisation(config))


def _hf_normalisation(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The image processor's mean and std, where it lies beside the config; transformers' own 0.5 otherwise."""
    where = getattr(config, "_name_or_path", "") or ""
    half = (0.5, 0.5, 0.5)
    try:
        find = import_module("transformers.utils").cached_file
        path = find(where, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False) if where else None
        settings = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):
        return half, half
    return tuple(settings.get("image_mean") or half), tuple(settings.get("image_std") or half)
