"""Tokens: where they come from, who may read them, and whom they let in."""

from __future__ import annotations

from pathlib import Path

import certificates
import pytest

from splitpoint import security
from splitpoint.errors import UsageError
from splitpoint.security import Security, ServerSecurity, client_security, read_token, server_security

pytestmark = pytest.mark.usefixtures("no_leaks", "_no_environment")

TOKEN = certificates.TOKEN


# --- values ---------------------------------------------------------------------------------------------------------


def test_no_token_is_ever_shown() -> None:
    assert TOKEN not in repr(Security(token=TOKEN)) + repr(ServerSecurity(token=TOKEN))


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o622, 0o660, 0o602])
def test_a_token_file_for_others_is_refused_with_the_command_that_helps(token_file: Path, bits: int) -> None:
    token_file.chmod(bits)
    with pytest.raises(UsageError, match=f"chmod 600 {token_file}"):
        read_token(token_file)
    with pytest.raises(UsageError, match="chmod 600"):
        server_security(token_file=token_file)


@pytest.mark.parametrize("bits", [0o444, 0o440, 0o644, 0o640])
def test_a_secret_on_a_read_only_mount_is_read(token_file: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker and Kubernetes mount them, the latter behind links: nobody could change their modes."""
    token_file.chmod(bits)
    folder = token_file.parent
    (folder / "..data").symlink_to(folder)
    (folder / "mounted").symlink_to(f"..data/{token_file.name}")
    monkeypatch.setattr(security, "_is_mounted_read_only", lambda descriptor: True)
    assert read_token(folder / "mounted") == TOKEN


@pytest.mark.parametrize("bits", [0o666, 0o620, 0o602])
def test_a_secret_that_others_may_write_is_refused_on_any_mount(
    token_file: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_is_mounted_read_only", lambda descriptor: True)
    token_file.chmod(bits)
    with pytest.raises(UsageError, match="chmod 600"):
        read_token(token_file)


@pytest.mark.parametrize("bits", [0o600, 0o400])
def test_a_token_file_of_ones_own_is_read(token_file: Path, bits: int) -> None:
    token_file.chmod(bits)
    assert read_token(token_file) == TOKEN


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"two words", "one word"),
        (b"one\ntwo", "one word"),
        ("schl\u00fcssel-schl\u00fcssel".encode(), "one word"),
        (b"x" * 1025, "1024"),
    ],
)
def test_a_file_without_a_token_is_named(token_file: Path, data: bytes, words: str) -> None:
    token_file.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        read_token(token_file)
    assert str(token_file) in str(caught.value)
    assert "schl" not in str(caught.value)


def test_a_token_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match=f"cannot read the token file {path}"):
            read_token(path)


def test_a_short_token_is_refused_by_the_server_and_not_shown() -> None:
    with pytest.raises(UsageError, match="16 or more") as caught:
        ServerSecurity(token="hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "admitted"),
    [
        (TOKEN, True),
        ("", False),
        (TOKEN[:-1], False),
        (TOKEN + "x", False),
        ("schlüssel", False),
        ("x" * 70_000, False),
    ],
)
def test_only_the_token_itself_is_let_in(said: str, admitted: bool) -> None:
    assert ServerSecurity(token=TOKEN).admits(said) is admitted


def test_our_own_processes_on_loopback_do_not_inherit_who_is_let_in_elsewhere(token_file: Path) -> None:
    environ = {"PATH": "/bin", "SPLITPOINT_CACHE": "/c", "SPLITPOINT_TOKEN": TOKEN, "SPLITPOINT_CA": "ca.pem"}
    assert security.unguarded(environ) == {"PATH": "/bin", "SPLITPOINT_CACHE": "/c"}
    environ["SPLITPOINT_TOKEN_FILE"] = str(token_file)
    assert server_security(environ=security.unguarded(environ)) == ServerSecurity()


def test_everything_may_come_from_the_environment(token_file: Path) -> None:
    environ = {
        "SPLITPOINT_CA": "ca.pem",
        "SPLITPOINT_TLS_CERT": "mine.pem",
        "SPLITPOINT_TLS_KEY": "mine.key",
        "SPLITPOINT_CLIENT_CA": "theirs.pem",
        "SPLITPOINT_TOKEN": "from-the-environment",
    }
    pair = Path("mine.pem"), Path("mine.key")
    assert client_security(environ=environ) == Security(False, Path("ca.pem"), *pair, "from-the-environment")
    assert server_security(environ=environ) == ServerSecurity(*pair, Path("theirs.pem"), "from-the-environment")
    environ["SPLITPOINT_TOKEN_FILE"] = str(token_file)
    assert client_security(environ=environ).token == TOKEN
    given = client_security(ca=Path("b"), certificate=Path("c"), environ=environ)
    assert (given.ca, given.certificate, given.key) == (Path("b"), Path("c"), None), "what is given comes first"
    assert client_security(environ={}) == Security()
    assert not Security().encrypts
