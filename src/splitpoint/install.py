"""How this copy of splitpoint was installed and started: what to type to add a package to it, and to run it.

Hints name an extra's packages, not `splitpoint[extra]`. So one line is right for a checkout, a folder, a repository,
a wheel that may be gone by now and an index, and it installs nothing else again: above all no other ONNX Runtime over
one that was chosen for this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

#: A requirement of an extra, as the metadata has it: ``cryptography>=42; extra == 'tls'``.
_OF_EXTRA = re.compile(r"""([^;]+?)\s*;\s*extra\s*==\s*["']([^"']+)["']""")


def extra(name: str) -> str:
    """The line that installs what the extra `name` needs: ``pip install 'cryptography>=42'``."""
    try:
        lines = metadata.requires("splitpoint") or []
    except metadata.PackageNotFoundError:
        lines = []
    packages = [match[1] for line in lines if (match := _OF_EXTRA.fullmatch(line)) and match[2] == name]
    if not packages:  # it runs from its source, without having been installed
        root = Path(__file__).parents[2]
        packages = ["-e", f"{root}[{name}]"] if (root / "pyproject.toml").is_file() else [f"splitpoint[{name}]"]
    return pip("install", *packages)


def pip(verb: str, *words: str) -> str:
    """A line that calls pip for this Python's environment: ``.venv/bin/python -m pip install numpy``."""
    given = " ".join(map(shlex.quote, words))
    if (Path(sys.prefix) / "pipx_metadata.json").is_file():
        return f"pipx runpip {shlex.quote(Path(sys.prefix).name)} {verb} {given}"
    if find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip {verb} --python {shown(Path(sys.executable))} {given}"
    path = shutil.which("pip")
    if path and Path(path).parent == Path(sys.executable).parent:
        return f"pip {verb} {given}"
    return f"{python()} -m pip {verb} {given}"


def python() -> str:
    """How this Python is called: by its name if the shell finds it so, else by its path."""
    return _called(Path(sys.executable))


def command() -> str:
    """How splitpoint is called, as it was: ``splitpoint``, ``.venv/bin/splitpoint`` or ``python -m splitpoint``."""
    beside = Path(sys.executable).with_name("splitpoint")
    started = Path(sys.argv[0]) if sys.argv and sys.argv[0] else beside
    for script in (started, beside):
        if script.name == "splitpoint" and script.is_file():
            return _called(script)
    return f"{python()} -m splitpoint"


def onnxruntimes() -> dict[str, str]:
    """The installed distributions that bring the module `onnxruntime`, name → version: one, if all is well."""
    versions = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or ""
        # Not onnxruntime-genai and the like, which bring modules of their own beside it. And not `distribution.files`:
        # Python 3.12 leaves out what is not there any more, because the folder went away with another distribution.
        if name.startswith(("onnxruntime", "ort")):
            record = distribution.read_text("RECORD") or ""  # lines of path, hash and size
            if "\nonnxruntime/__init__.py," in f"\n{record}":
                versions[name] = distribution.version
    return versions


def _called(program: Path) -> str:
    """The folder tells whether the name finds `program`: the Pythons of two environments are links to one file."""
    path = shutil.which(program.name)
    if path is None:
        return shown(program)
    here = Path(path).absolute().parent == program.absolute().parent
    linked = program.name == "splitpoint" and os.path.samefile(path, program)  # pipx
    return program.name if here or linked else shown(program)


def shown(path: Path) -> str:
    """A path as it is typed: relative where it is below the current folder, and quoted."""
    path = path.absolute()
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except (ValueError, OSError):  # elsewhere, or the folder is gone
        return shlex.quote(str(path))
