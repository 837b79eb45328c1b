"""Installs the wheel with nothing but its core, on every Python of this machine, and runs scripts/smoke.py there.

    python scripts/minimal.py            # each Python 3.10 and later: newest versions, and the oldest that are allowed
    python scripts/minimal.py --quick    # the oldest versions on the oldest Python, the newest on the newest

Packages come as wheels only: a device has no compiler. One more environment has an ONNX Runtime of another name, as a
Jetson has, and keeps it (docs/install.md). Prints what each weighs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wheel import LIST, ROOT, build, requirements

#: Python 3.x, those that the metadata has bounds for.
MINORS = (10, 11, 12, 13, 14)
NEWEST, OLDEST, STAND_IN = "newest", "oldest", "own ONNX Runtime"
_ROW = "{:<6} {:<17} {:<8} {:<13} {:>8} {:>8} {:>7} {:>8}"


def pythons() -> dict[int, str]:
    """Minor version → a Python that really runs here and can make environments: on the path, or one of pyenv's."""
    interpreters = {}
    for minor in MINORS:
        for name in candidates(minor):
            test = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
            if subprocess.run([name, "-c", test], capture_output=True).returncode == 0:
                interpreters[minor] = name
                break
    return interpreters


def candidates(minor: int) -> Iterator[str]:
    if sys.version_info[1] == minor:
        yield sys.executable
    if named := shutil.which(f"python3.{minor}"):
        yield named
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python"), reverse=True))


def smoke(python: str, kind: str, wheel: Path, folder: Path) -> dict[str, Any]:
    """What scripts/smoke.py says, in an environment made in `folder` and removed again."""
    place = folder / "env"
    run(python, "-m", "venv", str(place))
    inside = str(place / "bin" / "python")
    pip = [
        inside,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary",
        ":all:",
    ]
    started = time.perf_counter()
    if kind == NEWEST:
        run(*pip, str(wheel))
    elif kind == OLDEST:
        (folder / "oldest.txt").write_text("\n".join(requirements(wheel, oldest=True)))
        run(*pip, "-r", str(folder / "oldest.txt"))
        run(*pip, "--no-index", str(wheel))  # nothing may be missing
    else:
        run(*pip, "--no-deps", str(stand_in(inside, folder)))
        run(*pip, "-r", str(wheel.parent / LIST))
        run(*pip, "--no-deps", str(wheel))
    seconds = time.perf_counter() - started
    said = run(inside, str(ROOT / "scripts" / "smoke.py"))
    facts = json.loads(said.splitlines()[-1])
    if kind == STAND_IN:
        assert "onnxruntime" not in facts["versions"], "the plain onnxruntime was put over the one that was there"
        assert "onnxruntime-gpu" in facts["versions"]
    shutil.rmtree(place)
    return {**facts, "install_s": seconds}


def stand_in(python: str, folder: Path) -> Path:
    """A wheel of `onnxruntime-gpu` that has the plain one's files."""
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "onnxruntime")
    (plain,) = folder.glob("onnxruntime-*.whl")
    made = plain.with_name(plain.name.replace("onnxruntime-", "onnxruntime_gpu-", 1))
    old, new = (f"{name}-{plain.name.split('-')[1]}.dist-info" for name in ("onnxruntime", "onnxruntime_gpu"))
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == f"{old}/METADATA":
                data = data.replace(b"Name: onnxruntime\n", b"Name: onnxruntime-gpu\n")
            if name == f"{old}/RECORD":  # only names: the hashes of what was changed are not its own any more
                names = (line.partition(b",")[0].replace(old.encode(), new.encode()) for line in data.splitlines())
                data = b"".join(n + b",,\n" for n in names)
            target.writestr(name.replace(old, new), data)
    return made


def run(*words: str) -> str:
    # Whatever is on the path of this Python must not be found there.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two environments instead of all")
    quick = parser.parse_args().quick
    interpreters = pythons()
    print("Python " + ", ".join(f"3.{m}" for m in interpreters), end="; ")
    print(
        "not on this machine: " + (", ".join(f"3.{m}" for m in MINORS if m not in interpreters) or "none"), flush=True
    )
    wanted = [(m, kind) for m in interpreters for kind in (NEWEST, OLDEST)] + [(max(interpreters), STAND_IN)]
    if quick:
        wanted = [(min(interpreters), OLDEST), (max(interpreters), NEWEST)]
    with tempfile.TemporaryDirectory(prefix="splitpoint-minimal-") as folder:
        wheel = build(Path(folder, "dist"))
        print(f"wheel {wheel.stat().st_size / 1e6:.0f} MB; run: `splitpoint run` of one image, its whole process\n")
        print(_ROW.format("", "versions", "numpy", "ONNX Runtime", "install", "on disk", "run", "memory"))
        for minor, kind in wanted:
            with tempfile.TemporaryDirectory(prefix="splitpoint-minimal-") as own:
                of = smoke(interpreters[minor], kind, wheel, Path(own))
            versions = of["versions"]
            ort = versions.get("onnxruntime") or versions["onnxruntime-gpu"]
            cost = (
                f"{of['install_s']:.0f} s",
                f"{of['disk_mb']:.0f} MB",
                f"{of['run_s']:.1f} s",
                f"{of['run_mb']:.0f} MB",
            )
            print(_ROW.format(f"3.{minor}", kind, versions["numpy"], ort, *cost), flush=True)
    print(f"\n{len(wanted)} passed, 0 failed")


if __name__ == "__main__":
    main()
