"""Rooms import only earlier rooms; importing does no work; nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import SUPPORT

import splitpoint
from splitpoint.cli.verbs import VERBS

TESTS = SUPPORT.parent
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
    files = {}
    for path in sorted(SRC.rglob("*.py")):
        name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            files[name] = path
    return files


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules a file imports, with their lines: those of functions and of type checkers too."""
    for entry in ast.walk(tree(path)):
        if isinstance(entry, ast.Import):
            yield from ((alias.name, entry.lineno) for alias in entry.names)
        elif isinstance(entry, ast.ImportFrom):
            assert entry.level == 0, f"{path}:{entry.lineno}: write imports in full"
            for alias in entry.names:  # a module of a package, or a name of a module
                inner = f"{entry.module}.{alias.name}"
                is_module = inner.removeprefix("splitpoint.") in modules()
                yield (inner if is_module else entry.module or ""), entry.lineno


def own(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of ours that a file imports."""
    for name, line in imports(path):
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
    asking = [(m, line) for m, path in modules().items() for name, line in imports(path) if name == "splitpoint"]
    assert [f"{m}:{line}" for m, line in asking if not m.startswith("cli")] == []


def room_of(module: str) -> str:
    """The innermost room that a module stands in; a module beside rooms is one of its own."""
    return module if modules()[module].stem == "__init__" else module.rpartition(".")[0] or module


def test_nothing_imports_in_a_circle() -> None:
    """Neither modules nor rooms, whether an import is made at once, in a function, or for type checkers only."""
    between = {module: {target for target, _ in own(path)} - {module} for module, path in modules().items()}
    tuple(TopologicalSorter(between).static_order())
    rooms: dict[str, set[str]] = {}
    for module, targets in between.items():
        room = room_of(module)
        within = {room.rsplit(".", k)[0] for k in range(room.count(".") + 1)}  # a room may use what it stands in
        rooms.setdefault(room, set()).update({room_of(target) for target in targets} - within)
    tuple(TopologicalSorter(rooms).static_order())


def test_a_name_says_which_file_it_is() -> None:
    """Every name of a file stands once, but `__init__` and `files`; a verb's file has the verb's name."""
    stems = Counter(path.stem for module, path in modules().items() if not module.startswith("cli."))
    assert [stem for stem, count in stems.items() if count > 1 and stem not in ("__init__", "files")] == []
    verbs = {name.replace("-", "_") for name in [*VERBS, "evaluate", "train"]}
    assert (
        sorted({p.stem for m, p in modules().items() if m.startswith("cli.")} & set(stems) - verbs - {"__init__"}) == []
    )


def test_class_names_are_unique() -> None:
    names = Counter(e.name for path in modules().values() for e in ast.walk(tree(path)) if isinstance(e, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


#: Modules without tests of their own, and why none could say more than those of the modules that use them.
WITHOUT_TESTS: dict[str, str] = {
    "engines.apart_process": "the other end of engines.apart, in a process of its own: every test there runs it",
    "models.rows.computing": "rules of one table in four files: models/rows/test_rows.py has cases for each operator",
    "models.rows.moving": "as models.rows.computing",
    "models.rows.numbering": "as models.rows.computing",
    "models.rows.shaping": "as models.rows.computing",
    "models.torch.report": "values and a sentence of them: models/torch/test_torch.py reads it",
}


def is_door(path: Path) -> bool:
    """Whether a file has a docstring, imports and names, but nothing that could be tested."""
    return not any(isinstance(e, ast.FunctionDef | ast.ClassDef) for e in tree(path).body)


def home(module: str) -> Path:
    """Where a module's tests stand: those of ``a.b`` in ``a/test_b.py``, those of the room ``a`` in ``a/test_a.py``."""
    parts = module.split(".")
    folder = parts if modules()[module].stem == "__init__" else parts[:-1]
    return TESTS.joinpath(*folder, f"test_{parts[-1]}.py")


def test_tests_stand_in_the_tree_of_what_they_test() -> None:
    there = set(TESTS.rglob("test_*.py"))
    across = {path for path in there if path.relative_to(TESTS).parts[0] in ("integration", "attacks")}
    homes = {home(module): module for module in modules()}
    strays = there - across - set(homes) - {TESTS / "test_splitpoint.py"}
    assert sorted(str(path.relative_to(TESTS)) for path in strays) == []
    exempt = {m for m, path in modules().items() if path.stem == "__init__" and is_door(path)} | set(WITHOUT_TESTS)
    assert sorted(module for path, module in homes.items() if path not in there and module not in exempt) == []
    assert sorted(module for module in WITHOUT_TESTS if home(module) in there) == []


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
