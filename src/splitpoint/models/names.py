"""Short names of models: the zoo's own, and those that the Neurosurgeon replica uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from splitpoint.errors import nearest
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


#: The classifiers of torchvision (0.21 and later), named without importing it, which takes seconds.
TORCHVISION = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
""".split()  # noqa: SIM905 - eighty lines otherwise


def offered(text: str, known: Iterable[str]) -> str:
    """A phrase that names what `text` may mean: one of `known`, or what it is called in torchvision; or ``""``.

    >>> offered("resnet50", ["lenet5"]), offered("ResNet-50", ["lenet5"])
    ('; did you mean torchvision:resnet50?', '; did you mean torchvision:resnet50?')
    """
    name = text.lower().replace("-", "")
    if name in TORCHVISION:
        return f"; did you mean torchvision:{name}?"
    ours = list(known)
    theirs = set(TORCHVISION) - set(ours)
    phrase = nearest(text, [*ours, *theirs])
    return re.sub(r"[\w:]+", lambda word: f"torchvision:{word[0]}" if word[0] in theirs else word[0], phrase)
