"""splitpoint keys: what it makes, and which hosts it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serving import Gate, affine

from splitpoint.cli import main
from splitpoint.models.model import Model
from splitpoint.runtime.server.server import Server
from splitpoint.security import server_security

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPLITPOINT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_keys_makes_what_server_and_device_need(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my keys"
    assert main(["keys", str(folder), "--host", "server.lab", "--host", "192.168.1.7", "--host", "localhost"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].count("localhost") == 1
    assert "--cloud server.lab --ca ca.pem --token-file token" in said, "where the device has copied them to"
    assert "--host 0.0.0.0" in said
    assert "'" in said, "a path with a space is quoted"
    assert (folder / "token").read_text().strip() not in said
    for path in folder.iterdir():
        assert mode(path) == (0o644 if path.suffix == ".pem" else 0o600), path
    assert main(["keys", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    security = server_security(
        certificate=folder / "server.pem", key=folder / "server.key", token_file=folder / "token", environ={}
    )
    for name, value in (("CA", "ca.pem"), ("TOKEN_FILE", "token")):
        monkeypatch.setenv(f"SPLITPOINT_{name}", str(folder / value))
    with Server([model], engine=Gate(), port=0, security=security) as server:
        assert main(["doctor", "--cloud", server.address]) == 0
        assert "reachable" in capsys.readouterr().out
        monkeypatch.delenv("SPLITPOINT_TOKEN_FILE")
        assert main(["doctor", "--cloud", server.address]) == 6
        assert "wants a token" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["", "a b", "-x", "x" * 64, "a..b", "*.*.x", "a/b", "a.*"])
def test_a_host_that_is_none_is_named(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", str(tmp_path / "k"), "--host", host]) == 2
    assert "neither a host's name nor an IP address" in capsys.readouterr().err
    assert not (tmp_path / "k").exists()
