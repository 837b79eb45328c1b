"""The command line, called as a user's shell would."""

from __future__ import annotations

import pytest

from splitpoint.cli import main


def ok(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What a command prints that must succeed."""
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out
