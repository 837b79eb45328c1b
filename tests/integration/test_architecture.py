"""Rooms import only earlier rooms; importing does no work; nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import splitpoint

SRC = Path(splitpoint.__file__).parent

#: docs/design.md. Rooms of one row may not import each other.
ORDER = (
    ("install", "telemetry"),
    ("errors", "units", "text", "callbacks"),
    ("files", "parsing"),
    ("documents",),
    ("tensors", "trace", "security", "certificates", "lifetime", "cgroup", "system"),
    ("machine", "graph", "link"),
    ("decoding", "capture"),
    ("images",),
    ("zoo",),
    ("models",),
    ("engines", "codecs"),
    ("segments",),
    ("inputs", "profile"),
    ("calibration", "sources"),
    ("planning",),
    ("predict",),
    ("wire",),
    ("transports",),
    ("survey",),
    ("runtime",),
    ("report",),
    ("lab", "measured_cuts", "tasks"),
    ("cli",),
)
RANK = {room: k for k, row in enumerate(ORDER) for room in row}


@cache
def modules() -> dict[str, Path]:
    """``models.shapes`` → its file. The root (public names only) and __main__ belong to no room."""
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            found[name] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, when_imported: bool = False) -> Iterator[tuple[str, int]]:
    """Modules a file imports, with their lines; `when_imported` leaves out those of functions and of type checkers."""
    left_out = {
        id(inner)
        for entry in ast.walk(tree(path))
        if isinstance(entry, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(entry, ast.If) and "TYPE_CHECKING" in ast.unparse(entry.test))
        for inner in ast.walk(entry)
    }
    for entry in ast.walk(tree(path)):
        if when_imported and id(entry) in left_out:
            continue
        if isinstance(entry, ast.Import):
            yield from ((alias.name, entry.lineno) for alias in entry.names)
        elif isinstance(entry, ast.ImportFrom):
            assert entry.level == 0, f"{path}:{entry.lineno}: write imports in full"
            for alias in entry.names:  # a module of a package, or a name of a module
                inner = f"{entry.module}.{alias.name}"
                is_module = inner.removeprefix("splitpoint.") in modules()
                yield (inner if is_module else entry.module or ""), entry.lineno


def own(path: Path, *, when_imported: bool = False) -> Iterator[tuple[str, int]]:
    """The modules of ours that a file imports."""
    for name, line in imports(path, when_imported=when_imported):
        if name.startswith("splitpoint.") and name.removeprefix("splitpoint.") in modules():
            yield name.removeprefix("splitpoint."), line


def test_every_room_has_its_place() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(RANK)


@pytest.mark.parametrize("module", sorted(modules()))
def test_rooms_import_earlier_rooms_only(module: str) -> None:
    room = module.split(".")[0]
    late = [
        f"{module}:{line} imports {target}"
        for target, line in own(modules()[module])
        if (there := target.split(".")[0]) != room and RANK[there] >= RANK[room]
    ]
    assert late == []


def test_nothing_inside_imports_the_package_root() -> None:
    """Its names belong to the rooms; only the command line asks it for the version."""
    found = [(m, line) for m, path in modules().items() for name, line in imports(path) if name == "splitpoint"]
    assert [f"{m}:{line}" for m, line in found if not m.startswith("cli")] == []


def test_modules_have_no_import_cycle() -> None:
    graph = {
        module: {target for target, _ in own(path, when_imported=True)} - {module} for module, path in modules().items()
    }
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", ["splitpoint", "splitpoint.cli"])
def test_importing_loads_no_engine(module: str) -> None:
    """`splitpoint --help` on a small device must not wait for ONNX Runtime."""
    heavy = (
        "torch",
        "onnxruntime",
        "scipy",
        "onnx",
        "google.protobuf",
        "torchvision",
        "timm",
        "transformers",
        "matplotlib",
        "cv2",
    )
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[-1].strip() for line in ran.stderr.splitlines() if "|" in line}
    assert "splitpoint" in loaded
    assert sorted(m for m in loaded for h in heavy if m == h or m.startswith(h + ".")) == []


@pytest.mark.parametrize("module", ["", *sorted(modules())])
def test_nothing_unpickles(module: str) -> None:
    path = modules()[module] if module else SRC / "__init__.py"
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    assert sorted(name for name, _ in imports(path) if name.split(".")[0] in banned) == []
    calls = [
        f"{path.name}:{entry.lineno} {ast.unparse(entry.func)}"
        for entry in ast.walk(tree(path))
        if isinstance(entry, ast.Call)
        and (
            ast.unparse(entry.func) in ("eval", "exec", "torch.jit.load")
            or (
                ast.unparse(entry.func) == "torch.load"
                and "weights_only=True" not in [ast.unparse(k) for k in entry.keywords]
            )
            or (
                ast.unparse(entry.func) in ("np.load", "numpy.load")
                and "allow_pickle=False" not in [ast.unparse(k) for k in entry.keywords]
            )
        )
    ]
    assert calls == []
