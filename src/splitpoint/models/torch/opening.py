"""From what a user names to a `TorchSource`.

What runs other people's code: ``package.module:function`` is Python that the user names and is run; a
``.pt2`` is to be treated like it (see `_pt2`); libraries run their own code; weights files run nothing.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from splitpoint.errors import ModelError, UsageError, nearest
from splitpoint.models.torch.libraries import timm_source, torchvision_source, transformers_source
from splitpoint.models.torch.signal import carry_signal, seeded
from splitpoint.models.torch.torch_source import Shapes, TorchSource, Wrapped
from splitpoint.models.torch.weights_option import WeightsOption, first_line, load_file
from splitpoint.text import listed

_LIBRARIES = {"torchvision": torchvision_source, "timm": timm_source, "hf": transformers_source}


def open_source(name: str, weights: WeightsOption, shapes: Shapes, say: Callable[[str], None]) -> TorchSource:
    """The `TorchSource` that `name` stands for; ModelError, UsageError or MissingExtraError otherwise."""
    scheme, _, rest = name.partition(":")
    if name.endswith(".pt2"):
        source = _pt2(Path(name), weights)
    elif scheme in _LIBRARIES:
        say(f"opening {name} ({weights})")
        source = _LIBRARIES[scheme](rest, weights, shapes)
    else:
        source = _function(name, weights, shapes)
    unknown = set(shapes) - set(source.inputs)
    if unknown:
        raise UsageError(f"{name} has no input {sorted(unknown)[0]}; its inputs are {listed(source.inputs)}")
    if weights.seed is not None:
        say(f"making the random weights carry signal (seed {weights.seed})")
        wrapped = Wrapped(source)
        carry_signal(source.model, lambda batch: wrapped(*batch), source.draw(4, weights.seed), weights.seed)
    return source


def _function(name: str, weights: WeightsOption, shapes: Shapes) -> TorchSource:
    """``package.module:function`` → what the function returns: (nn.Module, example inputs)."""
    package, _, attribute = name.partition(":")
    model, example = _call(package, attribute)
    model = _plain(name, model)
    names = _argument_names(model, example)
    examples = dict(example) if isinstance(example, Mapping) else dict(zip(names, _sequence(example), strict=True))
    for key, value in examples.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{name}: the example input {key} must be a tensor, not {type(value).__name__}")
    for key in set(shapes) & set(examples):
        examples[key] = _vary(examples[key], tuple(shapes[key]), 1)
    if weights.seed is not None:
        with seeded(weights.seed):
            for module in model.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
    elif weights.path is not None:
        load_file(model, weights.path)
    text = name if weights.default else f"{name}, {weights}"
    return _example_source(attribute, model, examples, text, isinstance(example, Mapping))


def _call(package: str, attribute: str) -> tuple[Any, Any]:
    name = f"{package}:{attribute}"
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(package)
        function = getattr(module, attribute, None)
        if function is None:
            raise ModelError(f"{package} has no function {attribute}{nearest(attribute, vars(module))}")
        returned = function()
    except ModelError:
        raise
    except ModuleNotFoundError as exc:
        if exc.name and (package == exc.name or package.startswith(exc.name + ".")):
            raise ModelError(
                f"there is no Python module {exc.name} to import (looked here and where packages are)"
            ) from exc
        raise ModelError(f"{name} needs the Python package {exc.name}, which is not installed") from exc
    except Exception as exc:  # the user's own code: name it, with its own words
        raise ModelError(f"{name} failed: {type(exc).__name__}: {first_line(exc)}") from exc
    finally:
        if added:
            sys.path.remove(here)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], torch.nn.Module)):
        raise ModelError(f"{name} must return (nn.Module, example inputs), but returned {type(returned).__name__}")
    return returned


def _plain(name: str, model: Any) -> Any:
    """`model` out of what may be wrapped around it. ModelError for modules that torch.export cannot take."""
    for wrapper, inner in (("OptimizedModule", "_orig_mod"), ("DataParallel", "module"),
                           ("DistributedDataParallel", "module")):  # fmt: skip
        if type(model).__name__ == wrapper and isinstance(getattr(model, inner, None), torch.nn.Module):
            model = getattr(model, inner)
    for path, module in model.named_modules():
        where = f"its {path} is" if path else "it is"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name} cannot be exported: {where} TorchScript (torch.jit), which torch.export does not take; return "
                "the nn.Module that was scripted or traced"
            )
        home = type(module).__module__
        if ".quantized" in home and home.startswith(("torch.ao.nn.", "torch.nn.")) and ".qat" not in home:
            raise ModelError(
                f"{name} cannot be exported: {where} quantised by PyTorch ({type(module).__name__}), which has no form "
                "in ONNX; export the float module, and quantise the ONNX file (onnxruntime.quantization)"
            )
    return model


def _sequence(example: Any) -> tuple[Any, ...]:
    return tuple(example) if isinstance(example, list | tuple) else (example,)


def _argument_names(model: Any, example: Any) -> list[str]:
    if isinstance(example, Mapping):
        return [str(k) for k in example]
    count = len(_sequence(example))
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return [named[k] if k < len(named) else f"input_{k}" for k in range(count)]


def _example_source(
    name: str, model: Any, examples: Mapping[str, Any], text: str, keywords: bool, free: bool = True
) -> TorchSource:
    """A source that knows its inputs by one example only; others are drawn to look like it."""
    sizes = {v.shape[0] if v.dim() else None for v in examples.values()}
    batched = free and len(sizes) == 1 and None not in sizes

    def draw(count: int, seed: int) -> tuple[Any, ...]:
        shapes = [(count, *v.shape[1:]) if batched else tuple(v.shape) for v in examples.values()]
        # A seed of its own for each: two inputs with the same numbers can cancel out.
        return tuple(
            _vary(v, s, 1000 * seed + k) for k, (v, s) in enumerate(zip(examples.values(), shapes, strict=True))
        )

    inputs = dict(zip(examples, draw(2, 1), strict=True)) if batched else dict(examples)
    return TorchSource(name, model, inputs, draw, text, keywords=tuple(examples) if keywords else None, batched=batched)


def _vary(example: Any, shape: tuple[int, ...], seed: int) -> Any:
    """A tensor of `shape` with values in the range of `example`'s."""
    generator = torch.Generator().manual_seed(seed)
    if example.is_floating_point():
        wide = example.double()
        mean, std = (float(wide.mean()), float(wide.std(correction=0))) if example.numel() else (0.0, 0.0)
        if std > 0:
            return (mean + std * torch.randn(shape, generator=generator)).to(example.dtype)
        return torch.rand(shape, generator=generator).to(example.dtype)  # zeros or ones say nothing about the range
    if example.dtype == torch.bool or not example.numel():
        return torch.randint(0, 2, shape, generator=generator).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, max(high, low + 1) + 1, shape, generator=generator).to(example.dtype)


def _pt2(path: Path, weights: WeightsOption) -> TorchSource:
    """A program saved by ``torch.export.save``. Treat the file like Python code: open your own only.

    torch.export.load unpickles parts of the archive and rebuilds expressions from text; PyTorch says never to load an
    untrusted one, and nothing in PyTorch loads one safely. Every pickle in it is therefore read with the restricted
    unpickler first and the file refused if that one refuses, and so are compiled libraries; this closes the plain ways
    in, not all. No other part of splitpoint opens such a file, and none is ever taken from a peer.
    """
    if not weights.default:
        raise UsageError(f"{path} has its weights inside: --weights is for torchvision:, timm:, hf: and modules")
    if not path.is_file():
        raise ModelError(f"no such file: {path}")
    _refuse_foreign_pickles(path)
    try:
        program = torch.export.load(str(path))
    except Exception as exc:
        raise ModelError(
            f"{path} is not a program this PyTorch ({torch.__version__}) can load: {first_line(exc)}"
        ) from exc
    example = program.example_inputs
    if not example or example[1] or not all(isinstance(v, torch.Tensor) for v in example[0]):
        raise ModelError(f"{path}: only programs with plain tensors as positional inputs can be split")
    names = [n for n in program.graph_signature.user_inputs if isinstance(n, str)]
    examples = dict(zip(names, example[0], strict=True))
    shapes = [n.meta["val"].shape for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    free = bool(shapes) and all(len(s) and not isinstance(s[0], int) for s in shapes)
    text = f"{path.name}, its own weights"
    source = _example_source(path.stem, program.module(), examples, text, keywords=False, free=free)
    source.program = program
    return source


def _refuse_foreign_pickles(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith((".so", ".cpp", ".cubin", ".o")) or "/aotinductor/" in name:
                    raise ModelError(f"{path} holds compiled code ({name}): save it with torch.export.save")
                with archive.open(name) as member:
                    head = member.read(2)
                if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
                    try:
                        torch.load(io.BytesIO(archive.read(name)), weights_only=True)  # noqa: TID251 - cannot run code
                    except Exception as exc:
                        raise ModelError(
                            f"{path} holds a pickle of more than tensors ({name}): it could run code and is refused"
                        ) from exc
    except zipfile.BadZipFile as exc:
        raise ModelError(f"{path} is not a .pt2 archive (torch.export.save writes one)") from exc
