"""PyTorch models → ONNX files: `export`, the only step that needs torch.


A module is traced by torch.export with a free batch, translated to ONNX, cleaned, and then *compared*: the
file is run in ONNX Runtime on batches of 1, 2 and 3 against the eager module. This file and `report` import no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from splitpoint.callbacks import call
from splitpoint.errors import MissingExtraError, ModelError, StorageError
from splitpoint.files import check_writable, make_folder, open_file, private_folder
from splitpoint.images import InputSpec
from splitpoint.machine import default_cache
from splitpoint.models.names import BUILT, SHORT_NAMES
from splitpoint.models.torch.report import ExportReport

Shapes = Mapping[str, Sequence[int]]

#: Raised when the exporter's output changes, so that cached files are made anew.
EXPORT_VERSION = 1

_SCHEMES = ("torchvision", "timm", "hf")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_torch_source(name: str) -> bool:
    """Whether `name` (or what it is short for) is exported from PyTorch.

    >>> [is_torch_source(n) for n in ("torchvision:alexnet", "mobile_net", "nets:make", "zoo:lenet5", "net.onnx")]
    [True, True, True, False, False]
    """
    name = SHORT_NAMES.get(name, name)
    if name.startswith(BUILT):
        return False
    scheme, colon, _ = name.partition(":")
    module = scheme != "zoo" and _FUNCTION.fullmatch(name)
    return name.endswith(".pt2") or bool(colon and (scheme in _SCHEMES or module))


def export(
    model: str,
    output: Path,
    *,
    weights: str | None = None,
    shapes: Shapes | None = None,
    input_spec: InputSpec | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write the PyTorch model that `model` names to the ONNX file `output`, and say how that went.

    `weights` is a file, ``random[:seed]``, or None for the library's trained ones. `shapes` give inputs other sizes
    than the model's usual ones (their batch is taken only where it cannot be free). `progress` is told what happens.

    Raises MissingExtraError without PyTorch; ModelError if the model, its weights or the export are no good, or the
    file does not compute what PyTorch does; UsageError for senseless arguments; StorageError if it cannot be written.
    """
    name = SHORT_NAMES.get(model, model)
    if not is_torch_source(name):
        raise ModelError(f"{model} is not a PyTorch model: it needs no export")
    for package in ("torch", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "torch", f"export {model}")
    try:
        tempfile.gettempdir()
    except OSError as exc:
        raise StorageError("PyTorch needs a folder for temporary files: name one with TMPDIR=DIR") from exc
    say = _heard(progress)
    with _quiet():
        from splitpoint.models.torch.opening import open_source
        from splitpoint.models.torch.tracing import Export
        from splitpoint.models.torch.weights_option import WeightsOption

        start = time.perf_counter()
        wanted = WeightsOption.parse(weights)
        source = open_source(name, wanted, shapes or {}, say)
        if input_spec is not None:
            source.spec = input_spec.bind(source.specs())
        return Export(name, source, shapes or {}, say).write(output, start)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, what torch, timm and transformers print, warn and log stays off the terminal; exceptions do not."""
    previous = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(previous)


def _heard(progress: Callable[[str], None] | None) -> Callable[[str], None]:
    """`progress`, able to print while everything else is quiet."""
    out, err = sys.stdout, sys.stderr

    def say(text: str) -> None:
        if progress is not None:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                call(progress, text)

    return say


def exported(
    model: str,
    *,
    weights: str | None = None,
    shapes: Shapes | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The ONNX file of the PyTorch model `model`: from the cache, or exported into it now.

    The cache is ``$SPLITPOINT_CACHE/exports`` (``~/.cache/splitpoint/exports``), or, where that cannot be
    written, a temporary folder of this process. Its key covers everything the file depends on: name, weights (a
    file's content), shapes, library versions and, for ``package.module:function`` and ``.pt2``, the file's content.
    """
    name = SHORT_NAMES.get(model, model)
    say = progress or (lambda text: None)
    exports = default_cache(say) / "exports"
    folder = exports / _key(name, weights, shapes or {})
    stem = re.sub(r"[^\w.-]+", "_", name.removesuffix(".pt2").rpartition(":")[2].rstrip("/").rpartition("/")[2])
    path = folder / f"{stem or 'model'}.onnx"
    try:
        private_folder(exports)
        if os.path.isfile(path):
            return path
        make_folder(folder)
        check_writable(path)
        export(name, path, weights=weights, shapes=shapes, progress=progress)
    except StorageError as exc:  # what is only kept for the next time must not end this one
        try:
            instead = tempfile.mkdtemp(prefix="splitpoint-")
        except OSError:
            raise exc from None
        atexit.register(shutil.rmtree, instead, ignore_errors=True)
        say(f"the export is not kept for the next time: {exc}")
        path = Path(instead) / path.name
        export(name, path, weights=weights, shapes=shapes, progress=progress)
    return path


def _key(name: str, weights: str | None, shapes: Shapes) -> str:
    from importlib.metadata import PackageNotFoundError, version

    parts: list[object] = [EXPORT_VERSION, name, {k: list(v) for k, v in sorted(shapes.items())}]
    for package in ("torch", "torchvision", "timm", "transformers", "onnxscript"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} -")
    random = weights is not None and weights.partition(":")[0] == "random"
    parts.append(weights if weights is None or random else _file_hash(Path(weights)))
    scheme, _, rest = name.partition(":")
    if name.endswith(".pt2"):
        parts.append(_file_hash(Path(name)))
    elif scheme == "hf" and Path(rest).is_dir():
        files = sorted(p for p in Path(rest).iterdir() if p.is_file())
        parts.append([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    elif scheme not in _SCHEMES:
        parts.append(_module_hash(scheme))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _file_hash(path: Path) -> str:
    try:
        with open_file(path) as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _module_hash(package: str) -> str:
    """Hash of the Python file of `package`, looked up without running it where it lies in the current directory."""
    local = Path(*package.split(".")).with_suffix(".py")
    if local.is_file():
        return _file_hash(local)
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ModelError(f"there is no Python module {package} to import (looked here and where packages are)")
    return _file_hash(Path(spec.origin))
