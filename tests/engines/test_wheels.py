"""Which wheel of ONNX Runtime goes with which machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from splitpoint.engines import wheels
from splitpoint.engines.wheels import for_jetson, replace
from splitpoint.models.zoo import digits

R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another environment, `env` in the current folder, that is not activated."""
    bin = tmp_path / "env" / "bin"
    bin.mkdir(parents=True)
    for name in ("python", "pip", "splitpoint"):
        (bin / name).write_text("#!/bin/sh\n")
        (bin / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(bin / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(sys, "argv", [str(bin / "splitpoint"), "doctor"])
    monkeypatch.setenv("PATH", "/nowhere")
    return bin


@pytest.mark.parametrize("content", ["raise ImportError('libonnxruntime.so.1: cannot open')", ""])
def test_an_onnxruntime_that_is_broken_is_a_sentence(content: str, tmp_path: Path) -> None:
    """What stays of the folder when one of two distributions was taken away."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words, status in ((["doctor"], 0), (["run", "zoo:lenet5", str(digits()[0])], 5)):
        done = subprocess.run(
            [sys.executable, "-m", "splitpoint", *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        said = done.stdout if status == 0 else done.stderr
        assert re.search(r"ONNX Runtime cannot be used \(.*\): .*pip uninstall -y .*onnxruntime && .*pip install", said)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("release", "python", "system", "said"),
    [
        (R36, (3, 10), "JetPack 6 (L4T 36.4), Python 3.10", "onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"),
        (R36, (3, 12), "JetPack 6 (L4T 36.4), Python 3.12", "is known for this Python"),
        (R36.replace("4.3", "3.0"), (3, 10), "JetPack 6 (L4T 36.3)", "there is one for JetPack 6.1 and later"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", (3, 10), "JetPack 5 (L4T 35.4)", "no wheel with cuda"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", (3, 12), "JetPack 7 (L4T 38.2)", "no wheel with cuda"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", (3, 12), "an unknown JetPack (L4T 99.1)", "no wheel with cuda"),
        ("nonsense", (3, 10), "a Jetson of an unknown release", "no wheel with cuda is known"),
    ],
)  # fmt: skip
def test_a_jetson_gets_its_wheel_or_a_plain_word(release: str, python: tuple[int, int], system: str, said: str) -> None:
    about, line = for_jetson(release, python)
    assert about.startswith(system)
    assert said in line


def test_a_jetson_is_asked_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitpoint.engines.onnxruntime import install_line

    (tmp_path / "nv_tegra_release").write_text(R36)
    monkeypatch.setattr(wheels, "_RELEASE", tmp_path / "nv_tegra_release")
    assert install_line("cuda") == for_jetson(R36)[1]
    monkeypatch.setattr(wheels, "_RELEASE", tmp_path / "none")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "PyPI has no onnxruntime-gpu for aarch64" in install_line("cuda")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert install_line("cuda") == replace("onnxruntime-gpu")
