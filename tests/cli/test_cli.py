"""The entry points: a status comes back, and the `splitpoint` command exits with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from splitpoint.cli import main


def test_the_status_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("splitpoint")
    assert main(["no-such-verb"]) == 2


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["no-such-verb"], 2)])
def test_the_command_exits_with_it(words: list[str], status: int) -> None:
    code = f"import sys; sys.argv = ['splitpoint', *{words!r}]; from splitpoint.cli import script; script()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
