"""splitpoint quickstart: nothing is asked or written, and what it prints works as it is printed."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from commands import PYTHON, fails, ok

from splitpoint.cli import main, quickstart
from splitpoint.models.zoo import digits, zoo_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """An empty folder, and a machine that others call 127.0.0.1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "address", lambda: "127.0.0.1")
    return tmp_path


def lines(text: str) -> tuple[list[str], list[str]]:
    """The server's and the edge's, as printed."""
    server, edge = text.split("\non the ")[1:]
    return [[line.strip() for line in part.splitlines() if line.startswith("  ")] for part in (server, edge)]  # type: ignore[return-value]


def test_the_lines_work_as_they_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    text = ok(capsys, "quickstart", "zoo:lenet5", "-p", port)
    assert list(folder.iterdir()) == [], "nothing is written"
    (keys, serve), (copy, run) = lines(text)
    # Named by its words: how the command is called depends on where this test runs.
    assert main(shlex.split(keys)[1:]) == 0
    words = shlex.split(serve)[1:]
    assert "--insecure" not in words
    server = subprocess.Popen([*PYTHON, *words, "--threads", "1"], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stdout is not None
        assert any(line.startswith("serving on ") for line in server.stdout)
        for word in shlex.split(copy)[1:3]:
            source = Path(word.removeprefix("127.0.0.1:"))
            shutil.copy(source, folder)  # scp keeps who may read it, too
        assert shlex.split(run)[-1] == "photos/"
        said = ok(capsys, *shlex.split(run)[1:-1], digits()[0], "--at", "input")
        assert f"lenet5 5a704421ff22, server 127.0.0.1:{port}" in said
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_keys_that_are_there_are_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok(capsys, "keys", "-o", "splitpoint-keys", "--host", "127.0.0.1")
    server, _ = lines(ok(capsys, "quickstart", "zoo:lenet5"))
    assert len(server) == 1
    assert " serve zoo:lenet5 " in server[0]


def test_the_server_is_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(ok(capsys, "quickstart", "zoo:lenet5", "--cloud", "gpu.local", "-p", "99", "--json"))
    assert [line.split()[:3] for line in data["server"]] == [
        ["splitpoint", "keys", "splitpoint-keys"], ["splitpoint", "serve", "zoo:lenet5"]
    ]  # fmt: skip
    assert "--host gpu.local" in data["server"][0]
    assert "-p 99 " in data["server"][1]
    assert " --cloud gpu.local:99 " in data["edge"][-1]


def test_a_model_that_lies_here_is_meant_and_its_options_are_repeated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = folder / "my net.onnx"
    mine.write_bytes(zoo_path("lenet5").read_bytes())
    server, _ = lines(ok(capsys, "quickstart", "--allow-domain", "x y"))
    assert " serve 'my net.onnx' --allow-domain 'x y' " in server[-1]
    (folder / "other.onnx").write_bytes(mine.read_bytes())
    assert "say which MODEL" in fails(capsys, 2, "quickstart")


def test_without_a_network_both_lines_are_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "address", lambda: None)
    text = ok(capsys, "quickstart", "zoo:lenet5")
    server, edge = lines(text)
    assert len(server) == len(edge) == 1
    assert " run --cloud localhost " in edge[0]
    assert "no address on a network" in text


def test_without_cryptography_the_lines_say_that_they_are_insecure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    text = ok(capsys, "quickstart", "zoo:lenet5")
    assert "--insecure" in text
    assert "cryptography" in text
    assert "keys" not in text


@pytest.mark.parametrize("host", ["fd00::1", "10.0.0.7"])
def test_an_address_of_ipv6_is_written_as_one(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "address", lambda: host)
    _, edge = lines(ok(capsys, "quickstart", "zoo:lenet5", "-p", "99"))
    assert f"--cloud {'[fd00::1]' if ':' in host else host}:99 " in edge[-1]
