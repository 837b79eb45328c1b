"""What must hold when something goes wrong: processes end, files are refused before the work, nothing is ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from serving import Gate, affine, until

from splitpoint.cli import main
from splitpoint.cli.verbs import group
from splitpoint.errors import StorageError
from splitpoint.files import check_writable
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server

# --- processes ------------------------------------------------------------------------------------------------------


def children(pid: int) -> dict[int, str]:
    """Process → its command line, of those that `pid` started and that run."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == pid and status[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
    return found


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def started(*words: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "splitpoint", *words], env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        left = children(process.pid)
        process.kill()
        process.wait()
        for pid in left:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


TINY = """
title = "tiny"
model = "zoo:lenet5"
at = ["pool1"]
inputs = "synthetic"
requests = 100000
link = "wifi"
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def wait_for(process: subprocess.Popen[bytes], *words: str) -> dict[int, str]:
    """The children of `process`, once there is one with each of `words` in its command line."""
    found: dict[int, str] = {}

    def there() -> bool:
        found.clear()
        found.update(children(process.pid))
        assert process.poll() is None, f"it ended with {process.returncode}"
        return all(any(word in line for line in found.values()) for word in words)

    assert until(there, 60), found
    return found


@needs_proc
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_scenario_that_is_ended_leaves_no_process(tmp_path: Path, number: int, status: int) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    out = tmp_path / "new" / "out"
    with started("lab", "run", str(file), "-o", str(out)) as process:
        left = wait_for(process, " serve ", "lab link", "lab edge")
        process.send_signal(number)
        assert process.wait(30) == status
        assert until(lambda: not any(map(runs, left)), 30), [line for pid, line in left.items() if runs(pid)]
    if number == signal.SIGTERM:
        assert not out.parent.exists(), "an empty folder is worth nothing"


@needs_proc
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_demo_that_is_ended_leaves_no_process(tmp_path: Path, number: int, status: int) -> None:
    with started("demo", TMPDIR=str(tmp_path)) as process:
        left = wait_for(process, " serve ")
        process.send_signal(number)
        assert process.wait(30) == status
        assert until(lambda: not any(map(runs, left)), 30), left
    if number == signal.SIGTERM:
        assert not list(tmp_path.glob("splitpoint-demo-*"))


def test_a_server_still_ends_in_order() -> None:
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", "zoo:lenet5", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        line = next(line for line in process.stdout if line.startswith("serving on"))
        assert line.endswith(", 1 thread\n")
        process.send_signal(signal.SIGTERM)
        assert "then ending" in process.stdout.read()
        assert process.wait(20) == 0, "and not with the end of its standard input"


def test_a_scenario_that_fails_leaves_no_empty_folder(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(TINY.replace("zoo:lenet5", "missing.onnx"))
    assert main(["lab", "run", str(file), "-o", str(tmp_path / "a" / "b")]) != 0
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    assert main(["lab", "run", str(file), "-o", str(tmp_path / "mine")]) != 0
    assert (tmp_path / "mine").exists()


# --- files ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(StorageError, match="there is no folder"):
        check_writable(tmp_path / "no" / "x.json")
    with pytest.raises(StorageError, match="cannot be written"):
        check_writable(tmp_path / ("x" * 300))
    if Path("/proc").is_dir():
        with pytest.raises(StorageError, match=r"/proc/x.json cannot be written"):
            check_writable(Path("/proc/x.json"))
    path = tmp_path / "x.json"
    check_writable(path)
    path.write_text("mine")
    check_writable(path)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_write_protected_file_or_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("mine")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(StorageError, match="write-protected"):
        check_writable(path)


# --- options and codecs that change nothing -------------------------------------------------------------------------


def invoke(*words: str) -> Result:
    return CliRunner().invoke(group, words)


@pytest.mark.parametrize("words", [["link", "--budget", "5s"], ["link", "--link", "wifi", "--budget", "3s"]])
def test_a_budget_without_a_server_to_measure_to_is_refused(words: list[str]) -> None:
    assert "--budget" in str(invoke(*words).exception)


@pytest.mark.parametrize("words", [["--threads", "4"], ["--device", "cpu"]])
def test_a_server_is_not_profiled_with_our_threads(words: list[str]) -> None:
    assert "splitpoint serve on the server" in str(invoke("profile", "--cloud", "127.0.0.1:1", *words).exception)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return affine(tmp_path_factory.mktemp("affine"))


def test_a_codec_that_takes_nothing_is_said_once(model: Model) -> None:
    told: list[str] = []
    with (
        Server([model], engine=Gate(), port=0) as server,
        Edge(
            server.address,
            model,
            at="m1",
            codec="jpeg:90",
            engine=Gate(),
            on_event=lambda e: told.append(str(e.sentence)),
        ) as edge,
    ):
        assert told == [f"jpeg:90 takes none of what crosses at {edge.cut.name}: sent raw"]
        edge.infer(np.zeros((1, 1024), np.float32))
        edge.switch("output")
        edge.switch("m1")
        assert len(told) == 1, "once, and not where nothing crosses"
        edge.switch("m1", "int8")
        edge.switch("m2", {"m2": "raw"})
        assert len(told) == 1
