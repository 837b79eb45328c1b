"""--cloud and how to speak with it: as one value, and never without a server to speak with."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from splitpoint.cli.options import server_options as options
from splitpoint.cli.options.server_options import cloud_option, server_security_options
from splitpoint.errors import UsageError
from splitpoint.security import OPEN, Security, ServerSecurity


def given(option: object, *words: str) -> dict[str, object]:
    """What a command with `option` gets."""
    got: dict[str, object] = {}

    @click.command()
    @option  # type: ignore[operator]
    def command(**values: object) -> None:
        got.update(values)

    result = CliRunner().invoke(command, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return got


def test_how_to_speak_with_a_server_is_one_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(options, "keep_to_memory", lambda: kept.append(True))
    for name in ("CA", "TLS_CERT", "TLS_KEY", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"SPLITPOINT_{name}", raising=False)
    got = given(cloud_option(), "--cloud", "10.0.0.7", "--ca", "ca.pem", "--server-name", "box")
    assert got == {"cloud": "10.0.0.7", "security": Security(ca=Path("ca.pem"), server_name="box")}
    assert kept == [True], "what is run is what a server says"


@pytest.mark.parametrize(
    "words", [("--tls",), ("--ca", "x"), ("--tls-cert", "x"), ("--token-file", "x"), ("--server-name", "x")]
)
def test_without_a_server_there_is_nobody_to_speak_with(words: tuple[str, ...]) -> None:
    assert given(cloud_option(required=False)) == {"cloud": None, "security": OPEN}
    with pytest.raises(UsageError, match="need a server: --cloud HOST"):
        given(cloud_option(required=False), *words)


def test_a_servers_own_are_one_value_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CERT", "TLS_KEY", "CLIENT_CA", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"SPLITPOINT_{name}", raising=False)
    assert given(server_security_options, "--insecure") == {"security": ServerSecurity(insecure=True)}
    got = given(server_security_options, "--tls-cert", "c", "--tls-key", "k")
    assert got == {"security": ServerSecurity(certificate=Path("c"), key=Path("k"))}
