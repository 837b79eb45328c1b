"""What is printed to be typed next is right for how splitpoint was installed and started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from splitpoint import install
from splitpoint.cli import demo
from splitpoint.cli.verbs import VERBS, typed
from splitpoint.engines import wheels
from splitpoint.engines.wheels import repair
from splitpoint.errors import EngineError, MissingExtraError


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


def test_not_activated_it_is_called_by_its_path(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.command() == "env/bin/splitpoint"
    assert install.pip("install", "a>=1", "b") == "env/bin/python -m pip install 'a>=1' b"
    monkeypatch.chdir("/usr")
    assert install.command() == str(environment / "splitpoint")


def test_activated_it_is_called_by_its_name(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{environment}:/nowhere")
    assert install.command() == "splitpoint"
    assert install.pip("install", "a") == "pip install a"
    assert install.python() == "python"


def test_another_environment_on_the_path_is_not_taken_for_this_one(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python is a link to the same file, as those of all virtual environments are."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("python", "pip"):
        (other / name).symlink_to(environment / name)
    (other / "splitpoint").write_text("#!/bin/sh\n")
    (other / "splitpoint").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert install.command() == "env/bin/splitpoint"
    assert install.pip("install", "a") == "env/bin/python -m pip install a"


def test_started_as_a_module_it_is_called_by_its_script_if_there_is_one(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/splitpoint/__main__.py"])
    assert install.command() == "env/bin/splitpoint"
    (environment / "splitpoint").unlink()
    assert install.command() == "env/bin/python -m splitpoint"


def test_a_path_with_a_space_is_quoted(tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "my env"
    (tmp_path / "env").rename(spaced)
    monkeypatch.setattr(sys, "executable", str(spaced / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", [""])
    assert install.command() == "'my env/bin/splitpoint'"


def test_pipx_and_uv_have_their_own_pip(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (environment / "uv").write_text("#!/bin/sh\n")
    (environment / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(environment))
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    assert install.pip("install", "a>=1") == "uv pip install --python env/bin/python 'a>=1'"
    (environment.parent / "pipx_metadata.json").write_text("{}")
    assert install.pip("install", "a>=1") == "pipx runpip env install 'a>=1'"


@pytest.mark.parametrize("name", ["tls", "video", "torch", "xlsx", "plot", "predict"])
def test_an_extra_is_named_by_its_packages(name: str) -> None:
    """The same line for a checkout, a folder, a repository, a wheel and an index; ONNX Runtime is left alone."""
    words = shlex.split(install.extra(name))
    packages = words[words.index("install") + 1 :]
    wanted = [line for line in metadata.requires("splitpoint") or [] if f"'{name}'" in line]
    assert packages == [line.split(";")[0].strip() for line in wanted]
    assert not any(p.startswith("onnxruntime") for p in packages)
    assert (
        str(MissingExtraError("it", name, "work"))
        == f"it is needed to work (the extra [{name}]): {install.extra(name)}"
    )


def test_without_metadata_the_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", gone)
    root = Path(install.__file__).parents[2]
    assert install.extra("tls").endswith(f" install -e {shlex.quote(f'{root}[tls]')}")


def test_commands_in_messages_are_typed_as_this_one_was(environment: Path) -> None:
    assert typed("make it with splitpoint profile") == "make it with env/bin/splitpoint profile"
    assert typed("(splitpoint calibrate-kernels)") == "(env/bin/splitpoint calibrate-kernels)"
    assert all(typed(f"splitpoint {verb} X") == f"env/bin/splitpoint {verb} X" for verb in VERBS)
    assert typed("start splitpoint serve MODEL") == "start env/bin/splitpoint serve MODEL"
    for text in (
        "start `splitpoint serve MODEL` there",
        "update splitpoint there",
        "in /home/splitpoint run",
        "env/bin/splitpoint run",
        "a splitpoint server",
    ):
        assert typed(text) == text


def test_a_mistake_names_the_command_that_was_typed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("splitpoint")
    done = subprocess.run(
        [script, "run", "--nonsense"], env={**os.environ, "PATH": "/bin"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"(see: {script} run --help)" in done.stderr


#: What makes a verb of these be done soon.
SOON = {"run": "--budget 1s", "compare": "--budget 1s --repeat 2", "calibrate": "--limit 1"}


def test_what_the_demo_says_next_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line, as a shell reads it, in the folder it names; the server at a port of its own."""
    monkeypatch.chdir(tmp_path)
    text = demo._next()
    assert f"Next, in {tmp_path}:" in text
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert [shlex.split(c)[1] for c in lines] == [
        "serve", "run", "run", "compare", "calibrate", "inspect", "doctor"
    ]  # fmt: skip
    environment = {**os.environ, "SPLITPOINT_CACHE": str(tmp_path / "cache")}
    server = subprocess.Popen(
        f"exec {lines[0].partition('#')[0]} --port 0 --until-stdin-ends", shell=True, text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.startswith("serving on ")).split()[2].rpartition(":")[2]
        for line in lines[1:]:
            typed_line = line.replace("localhost", f"localhost:{port}").replace(
                " #", f" {SOON.get(shlex.split(line)[1], '')} #"
            )
            done = subprocess.run(typed_line, shell=True, text=True, env=environment, capture_output=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    finally:
        server.communicate()


# --- ONNX Runtime's wheels --------------------------------------------------------------------------------------------


def stand_in(folder: Path, name: str, version: str, module: str = "onnxruntime") -> None:
    """An installed distribution that brings `module`, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    (folder / module).mkdir(exist_ok=True)
    (folder / module / "__init__.py").write_text("")


def test_two_distributions_of_onnxruntime_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "onnxruntime", "1.32.0")
    stand_in(tmp_path, "onnxruntime-genai", "0.9.0", "onnxruntime_genai")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert install.onnxruntimes() == {"onnxruntime": "1.32.0"}
    stand_in(tmp_path, "onnxruntime-gpu", "1.23.0")
    found = install.onnxruntimes()
    assert found == {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.23.0"}
    assert re.fullmatch(
        r".*uninstall .*-y onnxruntime onnxruntime-gpu && .* install .*onnxruntime-gpu==1.23.0", repair(found)
    )


def test_what_is_left_of_a_distribution_is_seen_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain one was taken away, and the folder with it: the one for the GPU is installed by name only."""
    stand_in(tmp_path, "onnxruntime-gpu", "1.23.0")
    shutil.rmtree(tmp_path / "onnxruntime")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert install.onnxruntimes() == {"onnxruntime-gpu": "1.23.0"}
    with pytest.raises(EngineError, match=r"pip uninstall -y onnxruntime-gpu && .*pip install onnxruntime-gpu==1.23.0"):
        wheels.load()


def test_doctor_warns_of_two(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime-gpu", "1.23.0", "elsewhere")  # not over the real module
    record = next(tmp_path.glob("*.dist-info")) / "RECORD"
    record.write_text(record.read_text().replace("elsewhere/", "onnxruntime/"))
    words = [sys.executable, "-m", "splitpoint", "doctor"]
    alone = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    both = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    assert "warning" not in alone
    assert re.search(r"warning    .*onnxruntime-gpu 1\.23\.0.* are one folder, onnxruntime: .*Keep one: ", both)


def test_versions_name_whichever_brings_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that was measured with another ONNX Runtime is not this one's."""
    from splitpoint.machine import versions

    stand_in(tmp_path, "onnxruntime-gpu", "1.23.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert versions() == {"onnxruntime-gpu": "1.23.0"}
