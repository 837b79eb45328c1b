"""Short names of models: the zoo's own, and those that the Neurosurgeon replica uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from splitpoint.text import plain

SHORT_NAMES: Mapping[str, str] = {
    "efficientnet_lite0": "zoo:efficientnet_lite0",
    "lenet5": "zoo:lenet5",
    "alexnet": "torchvision:alexnet",
    "vgg16_bn": "torchvision:vgg16_bn",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "lenet": "zoo:lenet5",
    "alex_net": "torchvision:alexnet",
    "vgg_net": "torchvision:vgg16_bn",
    "mobile_net": "torchvision:mobilenet_v2",
    "mobilenet": "torchvision:mobilenet_v2",
    "le_net": "zoo:lenet5",
}

_SCHEMES = ("zoo", "torchvision", "timm", "hf")
#: Before the names of the networks in `models.neurosurgeon`, which are built without PyTorch.
BUILT = "splitpoint.models.neurosurgeon:"
_STATES = (".safetensors", ".pt", ".pth")


def with_weights(model: str | Path) -> tuple[str, str | None]:
    """(MODEL, weights) of ``MODEL@random[:SEED]`` or ``MODEL@FILE``, weights as ``--weights`` takes them; None if no
    weights are named, as where a file is called just so.

    >>> with_weights("alexnet@random:0"), with_weights("alexnet"), with_weights("net@2x.onnx")
    (('alexnet', 'random:0'), ('alexnet', None), ('net@2x.onnx', None))
    """
    text = str(model)
    name, at, weights = text.rpartition("@")
    named = at and name and (weights.partition(":")[0] == "random" or weights.lower().endswith(_STATES))
    return (name, weights) if named and not Path(text).exists() else (text, None)


def full_name(model: str | Path) -> str:
    """What `model` is short for; itself if it is no short name, or if a file is called just so."""
    text = with_weights(model)[0]
    return SHORT_NAMES[text] if text in SHORT_NAMES and not Path(text).is_file() else text


def is_named(model: str) -> bool:
    """Whether `model` is a name of ours or of a hub's: not a file, nor one with weights of a file, and not Python code
    that would be run."""
    model, weights = with_weights(model)
    if weights is not None and weights.partition(":")[0] != "random":
        return False
    scheme, colon, _ = model.partition(":")
    return model in SHORT_NAMES or model.startswith(BUILT) or (bool(colon) and scheme in _SCHEMES)


def name_of(model: str | Path) -> str:
    """The name a model is served under: ``resnet50`` for ``torchvision:resnet50``, ``lenet5`` for ``lenet``, a file's
    stem."""
    text = full_name(model)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        return rest.rstrip("/").rsplit("/", 1)[-1]
    if colon and not Path(text).exists():
        return rest
    return plain(Path(text).stem) or "model"


def names_of(model: str) -> tuple[str, ...]:
    """The names that a server may have `model` under, the first it has is meant: what it is short for comes last.

    >>> names_of("lenet"), names_of("torchvision:resnet50"), names_of("net.v2")
    (('lenet', 'lenet5'), ('torchvision:resnet50', 'resnet50'), ('net.v2',))
    """
    model, _ = with_weights(model)
    names = [model, plain(model)]  # a file's name is served as text that can be printed
    if ":" in model or Path(model).suffix in (".onnx", ".pt2"):
        names.append(name_of(model))
    if model in SHORT_NAMES:
        names.append(name_of(SHORT_NAMES[model]))
    return tuple(dict.fromkeys(names))
