"""What is exported: a module with its weights, example inputs and input contract (`TorchSource`), and its wrapper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from splitpoint.errors import ModelError, UsageError
from splitpoint.images import InputSpec
from splitpoint.models.torch.signal import pictures
from splitpoint.tensors import TensorSpec

Shapes = Mapping[str, Sequence[int]]


@dataclass
class TorchSource:
    """A module ready to be exported.

    `model` has its weights. `inputs` are two examples a tensor, by input name; `draw(count, seed)` makes
    others. `keywords` are the model's argument names, where it is called by keyword; `constants` go with
    every call. `scale` and `offset` per channel make the model's own input of a uint8 image; without them it
    takes `inputs` as they are. `program` is set instead of `model` for a ``.pt2``.
    """

    name: str
    model: Any
    inputs: Mapping[str, Any]
    draw: Callable[[int, int], tuple[Any, ...]]
    weights: str
    keywords: tuple[str, ...] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    pick: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    spec: InputSpec | None = None
    program: Any = None
    batched: bool = True

    def specs(self) -> list[TensorSpec]:
        """The model's inputs, batch free where it may be."""
        first: tuple[int | str, ...] = ("batch",) if self.batched else ()
        return [
            TensorSpec(name, str(v.dtype).removeprefix("torch."), (*first, *v.shape[len(first) :]))
            for name, v in self.inputs.items()
        ]

    @property
    def image(self) -> bool:
        return bool(self.scale)


_Module: Any = torch.nn.Module


class Wrapped(_Module):  # type: ignore[misc]  # torch's classes are Any where it is not installed
    """The network as splitpoint wants it: uint8 NHWC pixels in (for image models), a tuple of tensors out."""

    def __init__(self, source: TorchSource) -> None:
        super().__init__()
        self.model = source.model
        self.keywords, self.constants, self.pick = source.keywords, dict(source.constants), source.pick
        self.image = source.image
        if source.image:
            shape = (1, -1, 1, 1)
            self.register_buffer("scale", torch.tensor(source.scale).view(shape), persistent=False)
            self.register_buffer("offset", torch.tensor(source.offset).view(shape), persistent=False)
        if source.program is None:  # an exported program is in evaluation mode for good, and says so by raising
            self.eval()

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        return tuple(self.call(*inputs).values())

    def call(self, *inputs: Any) -> dict[str, Any]:
        """The outputs by name."""
        if self.image:
            # Turned while a value is one byte. Contiguous, or "channels last" shows in the graph as Gathers.
            pixels = inputs[0].permute(0, 3, 1, 2).contiguous().to(torch.float32)
            inputs = (pixels * self.scale + self.offset,)
        if self.keywords is None:
            output = self.model(*inputs, **self.constants)
        else:
            output = self.model(**dict(zip(self.keywords, inputs, strict=True)), **self.constants)
        return tensors_of(output, self.pick)

    def names(self, *inputs: Any) -> list[str]:
        """The output names for these inputs."""
        names = list(self.call(*inputs))
        return ["logits"] if self.image and names == ["output"] else names


def tensors_of(output: Any, pick: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tensors in what a module returned, by name: dictionary keys, or ``output`` / ``output_0``, ``output_1`` …

    Of a mapping only the first name of `pick` that it has is taken, where it has one.
    """
    if isinstance(output, torch.Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        named = {str(k): v for k, v in output.items() if isinstance(v, torch.Tensor)}
        chosen = next((k for k in pick if k in named), None)
        tensors = {chosen: named[chosen]} if chosen else named
    else:
        flat = [v for v in _flatten(output) if isinstance(v, torch.Tensor)]
        tensors = {f"output_{k}": v for k, v in enumerate(flat)} if len(flat) != 1 else {"output": flat[0]}
    if not tensors:
        raise ModelError(f"the model returns no tensor but {type(output).__name__}: it cannot be split")
    return tensors


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flatten(item)]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _flatten(item)]
    return [value]


def image_source(
    name: str, model: Any, weights: str, shapes: Shapes, spec: InputSpec, mean: Sequence[float], std: Sequence[float]
) -> TorchSource:
    """An image model behind uint8 NHWC pixels; `shapes` may ask for another height and width."""
    if "image" in shapes:
        wanted = list(shapes["image"])
        if len(wanted) != 4 or wanted[3] != spec.channels or min(wanted) < 1:
            raise UsageError(f"--shape image: {name} takes batch,height,width,{spec.channels}, not {wanted}")
        spec = _resized(spec, wanted[1], wanted[2])
    height, width = spec.size

    def draw(count: int, seed: int) -> tuple[Any, ...]:
        return (pictures(count, height, width, seed, spec.channels),)

    scale, offset = tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))
    inputs = {"image": draw(2, 1)[0]}
    return TorchSource(name, model, inputs, draw, weights, scale=scale, offset=offset, spec=spec)


def _resized(spec: InputSpec, height: int, width: int) -> InputSpec:
    if spec.resize_to is None:
        return msgspec.structs.replace(spec, size=(height, width))
    kept = max(spec.size) / spec.resize_to
    shorter = max(height, width, math.floor(max(height, width) / kept))
    return msgspec.structs.replace(spec, size=(height, width), resize_to=shorter)


def tensor_source(name: str, model: Any, text: str, key: str, shape: Sequence[int], shapes: Shapes) -> TorchSource:
    """A model of one tensor of floats, `key`: [batch, *`shape`], or as `shapes` asks for it."""
    wanted = tuple(shapes[key])[1:] if key in shapes else tuple(shape)

    def draw(count: int, seed: int) -> tuple[Any, ...]:
        return (torch.randn(count, *wanted, generator=torch.Generator().manual_seed(seed)),)

    return TorchSource(name, model, {key: draw(2, 1)[0]}, draw, text)
