"""Models: from what a user names to a graph with weights.

``MODEL`` is one of

    photo.onnx                      an ONNX file (opset 7 and up, external data, above 2 GB)
    zoo:efficientnet_lite0          a network that comes with splitpoint
    torchvision:resnet50            exported once, where PyTorch is installed, and cached
    timm:convnext_tiny              "
    hf:bert-base-uncased            "
    my_package.nets:make            a function that returns (nn.Module, example inputs)
    exported.pt2                    a program saved by torch.export
    efficientnet_lite0  lenet5  alexnet  vgg16_bn  mobilenet_v2
    (and lenet  le_net  alex_net  vgg_net  mobile_net  mobilenet)
    splitpoint.models.neurosurgeon:alex_net    the Neurosurgeon replica's own networks, built here without PyTorch

With ``@random[:SEED]`` or ``@FILE`` behind it, it has these weights: ``alexnet@random:0``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from splitpoint.errors import ModelError, UsageError
from splitpoint.images import InputSpec
from splitpoint.machine import default_cache
from splitpoint.models import input_values as real
from splitpoint.models.fingerprint import fingerprint
from splitpoint.models.foreign import MODEL_SUFFIXES
from splitpoint.models.model import Model, bound_inputs, build
from splitpoint.models.names import BUILT, SHORT_NAMES, full_name, name_of, offered, with_weights
from splitpoint.models.neurosurgeon import neurosurgeon_path
from splitpoint.models.random_weights import redrawn, seed_of
from splitpoint.models.reading import read
from splitpoint.models.shapes import fix_shapes
from splitpoint.models.zoo import ZOO, zoo_path


def load(
    model: str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    weights: str | None = None,
    input_spec: InputSpec | Path | None = None,
    values: Mapping[str, Any] | None = None,
    allow_domains: Collection[str] = (),
) -> Model:
    """The `Model` that `model` names.

    `shapes` fixes free input dimensions; a free batch is assumed to be 1 otherwise. `weights` is for PyTorch
    sources: a file, or ``random[:seed]``. `input_spec` says how photos become the input of a plain ONNX file. `values`
    are real ones, by input, for those that must make sense (a threshold, a size, a sampling rate), as numbers or
    arrays: shapes are measured with them, and models timed and verified. They are kept, so that it is enough to give
    them once. `allow_domains` are operator domains of which all may be in the model, beside what is run anyway
    (`models.operators`).

    >>> model = load("zoo:lenet5")
    >>> print(model.graph.cut("conv2").crossing[0].shape)
    (1, 16, 10, 10)

    Raises ModelError, MissingExtraError where PyTorch is needed, InputError for a broken input spec or wrong values.
    """
    path = locate(model, weights=weights, shapes=shapes)
    try:
        skeleton, blobs = read(path, allow_domains)
    except ModelError as exc:
        if path.is_relative_to(default_cache() / "exports"):  # the user has never heard of that file
            raise ModelError(f"{exc}: delete the folder {path.parent}, and {model} is exported anew") from exc
        raise
    fix_shapes(skeleton, shapes or {})
    inputs = bound_inputs(skeleton)
    known = {**real.noted(skeleton, inputs), **real.remembered(fingerprint(skeleton), inputs)}
    known |= real.given(skeleton, inputs, values or {})
    real.note(skeleton, known)
    loaded = build(skeleton, blobs, name_of(model), values=known)
    if values:
        real.remember(loaded.fingerprint, known)
    if input_spec is not None:
        spec = input_spec if isinstance(input_spec, InputSpec) else InputSpec.from_file(input_spec)
        if not spec.labels and loaded.input_spec is not None:
            spec = msgspec.structs.replace(spec, labels=loaded.input_spec.labels)
        loaded = loaded.with_input_spec(spec)
    return loaded


def locate(model: str | Path, *, weights: str | None = None, shapes: Mapping[str, Sequence[int]] | None = None) -> Path:
    """The ONNX file behind `model`, exported or built first if it must be. `weights` count if `model` names none."""
    text, named = full_name(model), with_weights(model)[1]
    if named is not None and weights not in (None, named):
        raise UsageError(f"{model} names its weights, and --weights {weights} others: give one of the two")
    weights = weights if named is None else named
    if not str(model):
        raise ModelError("no model is given: a MODEL is " + _FORMS)
    seed = seed_of(weights)
    if text.startswith("zoo:"):
        path = zoo_path(text[4:])
        if seed is not None:
            return redrawn(path, seed)
        _refuse_weights(weights, text)
        return path
    if text.startswith(BUILT):
        if weights is not None and seed is None:
            raise ModelError(f"{text} has random weights: --weights takes random[:SEED] for it")
        return neurosurgeon_path(text.removeprefix(BUILT), seed or 0)
    from splitpoint.models import torch as torch_source

    if torch_source.is_torch_source(text):
        return torch_source.exported(text, weights=weights, shapes=shapes)
    path = Path(text)
    if path.suffix.lower() in MODEL_SUFFIXES or path.exists():
        if path.exists():  # where it does not, reading it says so
            _refuse_weights(weights, text)
        return path
    known = [*SHORT_NAMES, *(f"zoo:{n}" for n in ZOO)]
    raise ModelError(f"no model is called {text}{offered(text, known) or f': a MODEL is {_FORMS}'}")


_FORMS = "an .onnx file, zoo:NAME, torchvision:NAME, timm:NAME, hf:NAME, package.module:function or a .pt2 file"


def _refuse_weights(weights: str | None, text: str) -> None:
    if weights is not None:
        raise ModelError(
            f"{text} has its weights inside: --weights is for torchvision:, timm:, hf: and modules; random is for zoo:"
        )
