"""Random weights whose network still listens to its input.

A freshly initialised one often does not (docs/design.md): its batch norms have statistics of nothing, or its head is
zero. Comparing such a network proves nothing, so random weights are made to carry signal, and that is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from splitpoint.errors import ModelError

#: Least difference between the outputs of two inputs, relative to the outputs' magnitude, that counts as signal.
LEAST_SIGNAL = 1e-2

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_Batch = tuple[Any, ...]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers follow `seed`; outside, the caller's stream goes on undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pictures(count: int, height: int, width: int, seed: int, channels: int = 3) -> Any:
    """`count` made-up images, uint8 ``[count, height, width, channels]``: colour, shapes and grain.

    Plain noise would do badly here: after a few poolings every noise image looks the same grey.
    """
    draw = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, channels, height, width)
    for cells, weight in ((1, 0.8), (3, 1.0), (9, 0.7), (30, 0.4)):
        coarse = torch.randn(count, channels, min(cells, height), min(cells, width), generator=draw)
        image += weight * nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    image += 0.2 * torch.randn(image.shape, generator=draw)
    return (128 + 56 * image).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def carry_signal(model: Any, run: Callable[[_Batch], Sequence[Any]], batch: _Batch, seed: int) -> None:
    """Change `model`'s random weights in place until its output depends on its input.

    `run` gives the output tensors for a batch of inputs (4 different ones are enough). Raises ModelError if
    the output still does not move by LEAST_SIGNAL of its magnitude.
    """
    with seeded(seed), torch.no_grad():
        _redraw(model)
        for improve in (_calibrate, _rescale):
            improve(model, lambda: run(batch))
            strength = signal(run(batch))
            if strength >= LEAST_SIGNAL:
                return
        raise ModelError(
            f"with random weights this model's output hardly depends on its input (it moves by {strength:.1e} of its "
            "magnitude), so nothing computed with it can be checked: give real ones with --weights FILE"
        )


def signal(outputs: Sequence[Any]) -> float:
    """How far the first output moves between the items of a batch, relative to its magnitude; 0 for not finite."""
    values = [o for o in outputs if o.is_floating_point()] or [o.float() for o in outputs]
    best = 0.0
    for value in values:
        value = value.detach().double()
        scale = float(value.abs().max()) if value.numel() else 0.0
        if value.dim() and len(value) > 1 and scale > 0 and math.isfinite(scale):
            best = max(best, float((value[1:] - value[:1]).abs().max()) / scale)
    return best


def _redraw(model: Any) -> None:
    """Give what initialises to nothing a value: zero heads, zero norm gains, tiny layer scales, zero embeddings."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if not value.is_floating_point() or not value.numel():
                continue
            constant = bool((value == value.flatten()[0]).all())
            size = float(value.flatten()[0].abs())
            if name == "weight" and isinstance(module, _NORMS):
                if constant and size == 0:
                    # The last norm of a residual block. Not 1: then LeViT-128s amplifies rounding to 6 % of
                    # its output (measured; with 0.1 to 5e-6), and comparing anything with it says nothing.
                    value.fill_(0.1)
            elif constant and 0 < size <= 1e-2 and value.numel() > 1 and "bias" not in name:
                value.fill_(1.0)  # a layer scale: ConvNeXt's 1e-6 would switch every block off
            elif constant and size == 0 and value.squeeze().dim() >= 1 and value.dim() >= 2:
                fan_in = value[0].numel() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) else 2500
                value.normal_(0, fan_in**-0.5)


def _calibrate(model: Any, forward: Callable[[], object]) -> None:
    """Set every batch norm's statistics to those of one batch; everything else stays in evaluation mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: a norm used twice gets the mean of both
        norm.train()
    try:
        if norms:
            forward()
    except ValueError:
        pass  # one value a channel has no variance: this one keeps mean 0 and variance 1
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


def _rescale(model: Any, forward: Callable[[], object]) -> None:
    """Scale each convolution and linear layer so that its outputs differ by about 1 between the inputs of one batch.

    One pass is enough: a hook corrects a layer's output together with its weight, so the next layer already sees the
    corrected one (LSUV, Mishkin & Matas 2016, with the variance taken over the batch instead of over everything).
    """
    done: set[int] = set()

    def hook(module: Any, _inputs: object, output: Any) -> Any:
        if id(module) in done or not isinstance(output, torch.Tensor) or len(output) < 2:
            return None
        done.add(id(module))
        mean = output.mean(dim=0, keepdim=True)
        spread = float((output - mean).std())
        if not math.isfinite(spread) or spread < 1e-20:
            return None
        module.weight.div_(spread)
        if module.bias is not None:
            module.bias.zero_()
            return module.forward(*_inputs) if isinstance(_inputs, tuple) else None
        return output / spread

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                hooks.callback(module.register_forward_hook(hook).remove)
        forward()
