"""On a system that lacks what connections need, one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

# --- other systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        ("import splitpoint", 1),
        ("sys.argv[0] = '/usr/bin/splitpoint'; from splitpoint.cli import script; script()", 2),
    ],
)
def test_on_another_system_one_sentence_is_said(rest: str, status: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import socket, sys; del socket.MSG_DONTWAIT; {rest}"], capture_output=True, text=True
    )
    assert ran.returncode == status
    last = ran.stderr.strip().splitlines()[-1]
    assert "splitpoint needs Linux" in last
    assert "WSL 2" in last
    assert not last.startswith("ImportError")
    assert status == 1 or ran.stderr.count("\n") == 1


def test_who_catches_an_import_error_catches_that_too() -> None:
    rest = "\ntry:\n    import splitpoint\nexcept ImportError as exc:\n    print(type(exc).__name__)"
    ran = subprocess.run(
        [sys.executable, "-c", f"import socket; del socket.MSG_DONTWAIT{rest}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "UnsupportedError\n"
