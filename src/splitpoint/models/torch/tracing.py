"""One export: trace, clean, save, compare; and the retreats where one of them fails."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitpoint.errors import ModelError, SplitpointError, StorageError
from splitpoint.files import destination, is_special, make_folder, publish, scratch
from splitpoint.models.dataflow import ort
from splitpoint.models.layer_names import ALIASES_KEY, SOURCE_KEY, UNUSED_KEY
from splitpoint.models.reasons import reason_of
from splitpoint.models.torch import lowering
from splitpoint.models.torch.report import ExportReport
from splitpoint.models.torch.torch_source import Shapes, TorchSource, Wrapped
from splitpoint.models.torch.weights_option import first_line
from splitpoint.tensors import Array

#: Largest difference between ONNX Runtime and eager PyTorch, relative to how far the output moves between inputs.
TOLERANCE = 1e-3

#: Larger files keep their weights beside them: protobuf ends at 2 GB.
_INLINE_LIMIT = 1 << 30


class Export:
    def __init__(self, name: str, source: TorchSource, shapes: Shapes, say: Callable[[str], None]) -> None:
        self.name, self.source, self.shapes, self.say = name, source, shapes, say
        self.wrapped = Wrapped(source)
        self.notes: list[str] = []

    def write(self, output: Path, start: float) -> ExportReport:
        target = destination(output)
        if not is_special(output):
            make_folder(target.parent)
        with scratch(output, ".export-") as folder:
            written = folder / target.name
            model, layers, batch, error = self._attempts(written)
            sizes = [p.stat().st_size for p in (written, _beside(written)) if p.exists()]
            if _beside(written).exists():  # weights first: a half-written model is never seen
                if is_special(output):
                    raise StorageError(f"{output} cannot hold {sum(sizes) >> 20} MiB of weights: name a regular file")
                publish(_beside(written), _beside(target))
            publish(written, output)
        return ExportReport(
            source=self.name,
            path=output,
            weights=self.source.weights,
            opset=int(model.opset_imports[""]),
            nodes=len(model.graph),
            batch=batch,
            max_error=error,
            seconds=time.perf_counter() - start,
            nbytes=sum(sizes),
            aliases=len(layers.aliases),
            unused=layers.unused,
            notes=tuple(self.notes),
        )

    def _attempts(self, path: Path) -> tuple[Any, Any, int | None, float]:
        """A free batch first, then a fixed one; each with in-place activations only if it is wrong without."""
        reasons: list[Exception] = []
        for free_batch in (True, False) if self.source.batched else (False,):
            inputs = tuple(self.source.inputs.values())
            if not free_batch and self.source.batched:
                fixed = next((int(s[0]) for s in self.shapes.values() if s), 1)
                inputs = tuple(v[:1].repeat(fixed, *(1 for _ in v.shape[1:])) for v in inputs)
            batch = None if free_batch or not inputs or not inputs[0].dim() else int(inputs[0].shape[0])
            self.say(f"tracing {self.name} with {'a free batch' if free_batch else f'batch {batch}'}")
            for in_place in (False, True):
                try:
                    with _functional(self.wrapped, in_place), _uncollected():
                        model, layers = self._lower(inputs, free_batch)
                    self._save(model, layers, path)
                    self.say("comparing with PyTorch")
                    error = self._compare(path, inputs, free_batch)
                except (SplitpointError, MemoryError, OSError):
                    raise
                except Exception as exc:  # torch, onnxscript and onnxruntime raise nearly anything
                    reasons.append(exc)
                    if isinstance(exc, _Different):
                        continue
                    break
                if reasons and not free_batch and self.source.batched:
                    why = _reason(reasons[0])
                    self.notes.append(f"the batch is fixed at {batch}: with a free one the export fails ({why})")
                return model, layers, batch, error
            if self.source.program is not None:
                break
        why = self._unsteady() if isinstance(reasons[-1], _Different) else ""
        raise ModelError(f"{self.name} cannot be exported to ONNX: {why or _reason(reasons[-1])}") from reasons[-1]

    def _unsteady(self) -> str:
        """Why the module gives two answers for one input, so that no file can equal it; empty if it gives one."""
        batch = tuple(self.source.inputs.values())
        buffers = {n: b.clone() for n, b in self.wrapped.named_buffers()}
        try:
            # Like twice, but for what a call leaves behind; then not like.
            first, second, third = (self._answer(batch, seed) for seed in (0, 0, 1))
        except Exception:  # the module's own code; what was wrong before is said
            return ""
        if not _alike(first, second):
            changed = [n for n, b in self.wrapped.named_buffers() if n in buffers and not _alike([b], [buffers[n]])]
            what = f"the buffer {changed[0].removeprefix('model.')}" if changed else "something that it keeps"
            return f"its forward changes {what}, so that two calls with one input give two answers"
        if not _alike(second, third):
            return "it draws random numbers (such as dropout with training=True), so that no two calls are equal"
        return ""

    def _answer(self, batch: tuple[Any, ...], seed: int) -> list[Any]:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            return [o.detach().clone() for o in self.wrapped(*(v.clone() for v in batch))]

    def _lower(self, inputs: tuple[Any, ...], free_batch: bool) -> tuple[Any, lowering.Layers]:
        if self.source.program is not None:
            paths = _program_paths(self.source.program)
            return lowering.translate(self.source.program, paths)
        modules = dict(self.source.model.named_modules(remove_duplicate=False))
        with torch.no_grad():
            identities, output_names = _watch(modules, lambda: self.wrapped.names(*inputs))
        return lowering.translate(
            lowering.trace(self.wrapped, inputs, free_batch=free_batch, identities=identities),
            {path: _own_weights(path, m) for path, m in modules.items()},
            input_names=list(self.source.inputs),
            output_names=output_names,
            preprocess="preprocess" if "preprocess" not in modules else "splitpoint_preprocess",
            prefix="model",
        )

    def _save(self, model: Any, layers: lowering.Layers, path: Path) -> None:
        spec = self.source.spec
        model.graph.name = re.sub(r"\W+", "_", self.source.name) or "model"
        model.doc_string = None
        model.metadata_props.clear()
        model.metadata_props[SOURCE_KEY] = self.source.weights
        model.metadata_props[ALIASES_KEY] = json.dumps(layers.aliases, indent=0)
        model.metadata_props[UNUSED_KEY] = json.dumps(layers.unused)
        if spec is not None:
            model.metadata_props.update(spec.to_metadata())
        weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        beside = _beside(path).name if weights > _INLINE_LIMIT else None
        import_module("onnx_ir").save(model, path, external_data=beside)

    def _compare(self, path: Path, inputs: tuple[Any, ...], free_batch: bool) -> float:
        """`relative_error` of the file on batches of 2, 1 and 3, or twice on the fixed one; _Different if too large."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        sizes = (2, 1, 3) if free_batch else (inputs[0].shape[0] if inputs and inputs[0].dim() else 1,) * 2
        runs = []
        for seed, size in enumerate(sizes, start=10):
            batch = self.source.draw(size, seed)
            with torch.no_grad():
                eager = [o.detach().numpy() for o in self.wrapped(*batch)]
            runs.append((eager, session.run(None, {n: v.numpy() for n, v in zip(names, batch, strict=True)})))
        error = relative_error(runs)
        if math.isnan(error) and not self.source.inputs:
            error = max(float(np.abs(w.astype(np.float64) - h).max(initial=0)) for w, h in zip(*runs[0], strict=True))
        if math.isnan(error):
            self.notes.append("the output does not move between inputs, so that the file equals PyTorch is not proven")
        low = any(p.dtype == torch.float16 for p in self.source.model.parameters())
        if error > (2e-2 if low else TOLERANCE):
            raise _Different(f"ONNX Runtime's output differs from PyTorch's by {error:.1e} of what it moves by")
        return error


def relative_error(runs: Sequence[tuple[Sequence[Array], Sequence[Array]]]) -> float:
    """The largest difference in `runs`, pairs of wanted and had outputs, relative to how far that output moves.

    An output moves by the largest difference between the first items of two runs' wanted values; one that moves by
    less than rounding does must be equal within TOLERANCE of its magnitude. NaN if none moves. Integer outputs must
    be equal. Raises _Different for other shapes or dtypes, unequal integers, and values that are not finite.
    """
    worst, moved, integers = 0.0, False, True
    wanted, had = (zip(*outputs, strict=True) for outputs in zip(*runs, strict=True))
    for want, have in zip(wanted, had, strict=True):
        for w, h in zip(want, have, strict=True):
            if (w.shape, w.dtype) != (h.shape, h.dtype):
                raise _Different(f"ONNX Runtime gives {h.dtype}{h.shape}, PyTorch {w.dtype}{w.shape}")
            if w.dtype.kind != "f" and not np.array_equal(w, h):
                raise _Different("an integer output is not the same in ONNX Runtime")
            if not (np.isfinite(w).all() and np.isfinite(h).all()):
                raise _Different("the output is not finite")
        if want[0].dtype.kind != "f" or not want[0].size:
            continue
        integers = False
        firsts = [w[:1].astype(np.float64).ravel() for w in want] if want[0].ndim else list(want)
        same = [f for f in firsts if f.shape == firsts[0].shape]
        spread = max(float(np.abs(f - firsts[0]).max()) for f in same)
        magnitude = max(float(np.abs(w).max()) for w in want)
        error = max(float(np.abs(w.astype(np.float64) - h).max()) for w, h in zip(want, have, strict=True))
        if spread > 1e-6 * magnitude:
            worst, moved = max(worst, error / spread), True
        elif error > TOLERANCE * magnitude:
            raise _Different("an output that does not move is another in ONNX Runtime")
    return worst if moved or integers else math.nan


def _alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return all(np.array_equal(x.numpy(), y.numpy(), equal_nan=x.is_floating_point()) for x, y in zip(a, b, strict=True))


class _Different(Exception):
    """The file does not compute what the module does."""


def _own_weights(path: str, module: Any) -> list[str]:
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [f"{path}.{name}" if path else name for name, _ in own]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, no cyclic garbage collection: tracing makes millions of objects that stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _watch(modules: Mapping[str, Any], run: Callable[[], list[str]]) -> tuple[list[str], list[str]]:
    """(paths of modules that return their input unchanged, what ``run()`` returns)."""
    unchanged: dict[str, bool] = {}

    def see(path: str, _module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        same = isinstance(output, torch.Tensor) and bool(inputs) and output is inputs[0]
        unchanged[path] = unchanged.get(path, True) and same

    # In-place activations return their input too, changed; `_functional` has them work on a copy here.
    with contextlib.ExitStack() as hooks:
        for path, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(see, path)).remove)
        result = run()
    return [p for p, same in unchanged.items() if p and same], result


@contextlib.contextmanager
def _functional(module: Any, in_place: bool) -> Iterator[None]:
    """Inside, activations do not write over their input (unless `in_place`): torch exports that twice as fast."""
    changed = [m for m in module.modules() if getattr(m, "inplace", None) is True and not in_place]
    for m in changed:
        m.inplace = False
    try:
        yield
    finally:
        for m in changed:
            m.inplace = True


def _program_paths(program: Any) -> dict[str, list[str]]:
    """Module path → its parameters, as far as an exported program tells."""
    paths: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            paths.setdefault(re.sub(r"@\d+", "", path), [])
    for name in program.state_dict:
        paths.setdefault(name.rpartition(".")[0], []).append(name)
    return paths


def _reason(exc: Exception) -> str:
    """Why torch could not, in one line: the exporter wraps it in a page of advice."""
    seen = exc
    while isinstance(seen.__cause__, Exception):
        seen = seen.__cause__
    text = reason_of(seen) if type(seen).__module__.startswith("onnxruntime") else first_line(seen)
    if "data-dependent" in text:
        return f"its Python code decides by the values of a tensor, which torch.export cannot follow ({text})"
    if text.startswith("Constraints violated"):
        return "its Python code decides by the size of the batch"
    return text


def _beside(path: Path) -> Path:
    """The file of the weights that are too large for one ONNX file."""
    return path.with_name(path.name + ".data")
